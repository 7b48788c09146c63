"""Policies, optimisers and normalisers built on the ensemble."""
