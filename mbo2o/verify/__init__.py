"""Evaluations that can be played again: what a run keeps of them, and the comparison."""
