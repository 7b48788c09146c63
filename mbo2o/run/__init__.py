"""Runs own time: stepping, logging, evaluating, checkpointing."""
