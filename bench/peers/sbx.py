"""SBX's SAC in JAX, also with ten critics and with an actor that learns in every 4th update.

The latter is REDQ's pace, but not its target: all ten target critics are asked.
"""

from __future__ import annotations

import sys
from typing import Any

from sbx import SAC
from stable_baselines3.common.logger import configure

from bench.peers.serve import BATCH, ROWS, fill, serve, task

AGENTS: dict[str, dict[str, Any]] = {
    "sac-2": {"policy_kwargs": {"net_arch": [256, 256]}},
    "sac-10": {"policy_kwargs": {"net_arch": [256, 256, 256], "n_critics": 10}},
    "redq-10": {"policy_kwargs": {"net_arch": [256, 256], "n_critics": 10}, "policy_delay": 4},
}
UPDATES = 8
"""Updates in each call of `train`, as for eight environment steps."""


def main(work: str) -> None:
    """Serve a work."""
    how = {"buffer_size": ROWS, "batch_size": BATCH, "learning_rate": 3e-4}
    agent = SAC("MlpPolicy", task(), **how, **AGENTS[work])
    agent.set_logger(configure(None, []))
    fill(agent.replay_buffer)
    serve(lambda: agent.train(UPDATES, BATCH), UPDATES)


if __name__ == "__main__":
    main(sys.argv[1])
