"""Readers and writers of dataset formats; each returns or takes plain arrays."""
