"""One trial divided over several devices."""
