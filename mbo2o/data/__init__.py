"""Where batches come from: datasets, buffers, and sources made of sources."""
