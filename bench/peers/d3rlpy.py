"""d3rlpy's SAC, CQL, IQL and TD3+BC, and its replay buffer."""

from __future__ import annotations

import logging
import sys
from typing import Any

import d3rlpy
import numpy as np
import structlog

from bench.peers.serve import BATCH, ROWS, data, one_thread, serve

EPISODE = 1000


def agents() -> dict[str, Any]:
    """The configs by work. CQL's conservative term has a constant weight, as ours has."""
    algos = d3rlpy.algos

    def nets(layers: int, *names: str) -> dict[str, Any]:
        made = d3rlpy.models.VectorEncoderFactory([256] * layers)
        return {f"{name}_encoder_factory": made for name in ("actor", "critic", *names)}

    return {
        "sac-2": algos.SACConfig(batch_size=BATCH, **nets(2)),
        "sac-10": algos.SACConfig(batch_size=BATCH, n_critics=10, **nets(3)),
        "cql": algos.CQLConfig(batch_size=BATCH, n_action_samples=10, alpha_learning_rate=0.0, **nets(3)),
        "iql": algos.IQLConfig(batch_size=BATCH, **nets(2, "value")),
        "td3bc": algos.TD3PlusBCConfig(batch_size=BATCH, **nets(2)),
    }


def main(work: str) -> None:
    """Serve a work."""
    one_thread()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    rows = data()
    never, timeouts = np.zeros(ROWS, np.float32), np.zeros(ROWS, np.float32)
    timeouts[EPISODE - 1 :: EPISODE] = 1
    dataset = d3rlpy.dataset.MDPDataset(rows["obs"], rows["act"], rows["rew"][:, None], never, timeouts)
    if work == "dataset":
        serve(lambda: dataset.sample_transition_batch(BATCH))
        return
    agent = agents()[work].create(device="cpu:0")
    agent.build_with_dataset(dataset)
    serve(lambda: agent.update(dataset.sample_transition_batch(BATCH)))


if __name__ == "__main__":
    main(sys.argv[1])
