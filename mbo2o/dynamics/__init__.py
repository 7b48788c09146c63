"""The probabilistic dynamics model: what it is, how it is fitted, how it is rolled out, when it ends."""
