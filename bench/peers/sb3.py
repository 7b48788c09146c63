"""Stable-Baselines3's SAC, and its replay buffer."""

from __future__ import annotations

import sys

from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure

from bench.peers.serve import BATCH, ROWS, fill, one_thread, serve, task

NETS = {
    "sac-2": {"net_arch": [256, 256]},
    "sac-10": {"net_arch": [256, 256, 256], "n_critics": 10},
    "dataset": {},
}
UPDATES = 8
"""Updates in each call of `train`, as for eight environment steps."""


def main(work: str) -> None:
    """Serve a work."""
    one_thread()
    how = {"buffer_size": ROWS, "batch_size": BATCH, "learning_rate": 3e-4, "device": "cpu"}
    agent = SAC("MlpPolicy", task(), policy_kwargs=NETS[work], **how)
    agent.set_logger(configure(None, []))
    fill(agent.replay_buffer)
    if work == "dataset":
        serve(lambda: agent.replay_buffer.sample(BATCH))
    else:
        serve(lambda: agent.train(gradient_steps=UPDATES, batch_size=BATCH), UPDATES)


if __name__ == "__main__":
    main(sys.argv[1])
