"""The environments of runs: how they are made, stepped, watched and scored."""
