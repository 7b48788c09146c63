"""The learned dynamics as an object: it predicts, rolls out, is an environment, and says what to trust."""
