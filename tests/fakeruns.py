"""Runs that were never trained, for tests of what reads them: a config, and a log with given curves."""

import json

import numpy as np
import yaml

STEPS = np.arange(0, 1001, 100)


def fake_run(path, online, before=None, recipe="wsrl", seed=0, steps=STEPS, score=False, **settings):
    """A run in `path`: `online` `(T, S)` returns at `steps` `(T,)`, and `before` `(S,)` when offline ended.

    Without `before` there is no offline phase. settings: of the recipe, or of the run by their dotted names.
    """
    online = np.asarray(online, float)
    lines = []

    def evaluated(phase, step, total, ret):
        place = {"kind": "eval", "phase": phase, "step": int(step), "total": int(total), "time": total / 10}
        scores = {"score": (ret / 10).tolist()} if score else {}
        lines.append({**place, "return": ret.tolist(), "returns": [[x, x] for x in ret], **scores})

    offline = 0
    if before is not None:
        offline = 500
        for step in (0, 250, 500):
            evaluated("offline", step, step, np.asarray(before, float) * step / 500)
    for t, ret in zip(steps, online, strict=True):
        evaluated("online", t, offline + t, ret)
    config = {
        "recipe": {"name": recipe, "online_steps": int(steps[-1]), "offline_steps": offline, "utd": 1},
        "env": "Pendulum-v1", "dataset": None if before is None else "pend", "seeds": online.shape[1],
        "seed": seed, "run": {"eval_episodes": 2},
    }  # fmt: skip
    for name, value in settings.items():
        part = (
            config if name in ("env", "dataset", "dir", "provenance", "dataset_sha256") else config["recipe"]
        )
        part[name] = value
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


def four_runs(folder, seeds=5):
    """Four runs of one task: two that dip and recover, one that never does, one from scratch."""
    rng = np.random.default_rng(0)
    before = 500 + 20 * rng.normal(size=seeds)
    t = STEPS[:, None] / 1000
    noise = lambda: 15 * rng.normal(size=(len(STEPS), seeds))  # noqa: E731
    dip = 300 * np.exp(-(((t - 0.15) / 0.1) ** 2)) * (t > 0)
    return [
        fake_run(folder / "a", before + 300 * t - dip + noise() * (t > 0), before, "wsrl", score=True),
        fake_run(folder / "b", before + 200 * t - dip / 2 + noise() * (t > 0), before, "moore", score=True),
        fake_run(folder / "c", before - 300 * t + noise() * (t > 0), before, "calql", score=True),
        fake_run(folder / "d", 600 * t + noise(), None, "rlpd", score=True),
    ]
