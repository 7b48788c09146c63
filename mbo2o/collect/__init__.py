"""Collecting datasets."""
