"""Transitions in memory: datasets, buffers, and the checks of their fields."""
