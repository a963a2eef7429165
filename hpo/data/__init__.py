"""Rows of files and of data sets on the Hub: keys of a study file, readers, splits."""
