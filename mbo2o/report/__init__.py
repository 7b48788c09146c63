"""Statistics of runs, their figures, and the page that reports one run."""
