"""The dataset doctor: finds what is wrong with a dataset, and shows the evidence."""
