"""Which trial is run next, with which parameters, and whether it goes on."""
