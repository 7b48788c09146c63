"""What may be wrong with a dataset, and the evidence for it."""
