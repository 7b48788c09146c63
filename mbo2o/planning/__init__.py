"""Planning with the learned dynamics, and the bridge to mbrl."""
