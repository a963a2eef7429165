"""What every other package uses: errors, seeds, the seam between training and search."""
