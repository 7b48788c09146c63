"""Files: datasets and checkpoints, written whole or not at all."""
