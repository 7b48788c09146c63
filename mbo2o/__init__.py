"""Model-based offline-to-online reinforcement learning: one probabilistic ensemble for dynamics and critics."""

__version__ = "0.1.0"
