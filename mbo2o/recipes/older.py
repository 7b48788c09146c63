"""Settings of recipes as older versions stored them, in today's words."""

from __future__ import annotations

import copy
from typing import Any

from mbo2o.types import UserError

Settings = dict[str, Any]

RENAMED = {
    "finetune": {"start": "warmup"},
    "enoto": {"start": "warmup"},
    "scratch": {"start": "random_steps"},
    "mopo": {"real": "real_share"},
    "moore": {"real": "real_share"},
    "mbpo": {"start": "random_steps", "real": "real_share"},
}
"""Settings that had another name: by recipe, the old name and today's."""
BUFFERS: dict[str, tuple[str, dict[str, str]]] = {
    "empty": ("online", {}),
    "append": ("append", {}),
    "mix": ("mix", {"offline_share": "offline_share"}),
    "anneal": ("anneal", {"offline_share": "offline_share", "anneal_steps": "steps"}),
    "distill": ("distilled", {"distill_share": "share", "distill_rows": "rows"}),
}
"""What recipe.buffer could be, beside `balanced`: today's source, and its settings, old name to new."""
UNUSED: Settings = {
    "offline_share": 0.5,
    "anneal_steps": 100_000,
    "distill_share": 0.05,
    "distill_rows": 50_000,
    "balanced": {
        "first_share": 0.5,
        "temperature": 5.0,
        "first_updates": 10_000,
        "lr": 3e-4,
        "ratio": {"hidden": [256, 256], "activation": "relu", "layer_norm": False, "dropout": 0.0},
    },
}
"""The values that settings of the buffer had in every run whose buffer did not read them."""
WITH_BUFFER = ("finetune", "enoto")


def modern(name: str, settings: Settings) -> tuple[str, Settings]:
    """A stored recipe's name and settings in today's words; what is today's already comes back as it is."""
    found = copy.deepcopy(settings)
    _carry_rates(found)
    for old, new in RENAMED.get(name, {}).items():
        if old in found:
            found[new] = found.pop(old)
    if name in WITH_BUFFER and "buffer" in found:
        buffer = found.pop("buffer")
        left = {old: found.pop(old) for old in UNUSED if old in found}
        if buffer == "balanced":
            found["source"] = {"name": "balanced", **left.get("balanced", {})}
        elif buffer in BUFFERS:
            source, names = BUFFERS[buffer]
            kept = {new: left[old] for old, new in names.items() if old in left}
            found["source"] = {"name": source, **kept}
        else:
            raise UserError(f"recipe.buffer={buffer} is not one of {', '.join([*BUFFERS, 'balanced'])}")
    return name, found


def _carry_rates(settings: Settings) -> None:
    """With carry_rates a named online agent learned at the offline agent's rates instead of its own."""
    offline, online = settings.get("offline"), settings.get("online")
    if settings.pop("carry_rates", False) and isinstance(offline, dict) and isinstance(online, dict):
        online |= {key: offline[key] for key in online if key.endswith("_lr") and key in offline}
