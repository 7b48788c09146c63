"""Studies: many runs that answer one question, and the CSV files in data/results behind the pages."""
