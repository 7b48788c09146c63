"""What a run looks like: statistics, pictures, one page."""
