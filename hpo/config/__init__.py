"""Study files: their schema, their checks, and the files that they name."""
