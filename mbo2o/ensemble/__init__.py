"""Ensembles of networks and what is read off them: the heart of the package; imports torch and types only."""
