"""Planning with the learned dynamics: a bridge to mbrl-lib."""
