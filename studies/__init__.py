"""Studies: many runs that answer one question, and the CSV files under data/results that the README's tables come from."""
