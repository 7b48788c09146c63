"""Environments: how they are made, stepped, observed, watched for faults, and scored."""
