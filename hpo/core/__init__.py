"""Used by every other package: errors, events, seeds, formatting, the interface between training and search."""
