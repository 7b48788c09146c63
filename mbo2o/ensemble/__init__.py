"""Ensembles of networks, and what is computed from their members; this room imports torch and types only."""
