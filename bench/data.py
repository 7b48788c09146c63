"""Batches of 256 rows per second: of a dataset, a buffer and mixtures of both, beside peers' buffers."""

from __future__ import annotations

from collections.abc import Callable

from bench.measure import Options, Row, in_turns, keep, one_core, repeated, result, show
from bench.peers.processes import make_ready, opened
from bench.update import chosen, dataset
from bench.works import ACT, BATCH, OBS
from mbo2o.data.buffer import ReplayBuffer
from mbo2o.sources import make_source
from mbo2o.sources.aged import AgedConfig
from mbo2o.sources.mix import MixConfig
from mbo2o.types import Batch, Spec

ONLINE = 20_000
PEERS = {"dataset": ("sb3", "d3rlpy")}
TITLES = {
    "dataset": "a dataset of 100 000 rows",
    "buffer": "a buffer of 20 000 rows",
    "mix": "half of each, exactly (`mix`)",
    "aged": "each by chance (`aged`)",
}


def main(options: Options) -> None:
    """Measure what `options.only` names, or all."""
    kinds = chosen(options, {name: name for name in TITLES})
    if options.peers:
        make_ready(peer for name in kinds for peer in PEERS.get(name, ()))
    draws = samplers(options)
    with one_core():
        for name in kinds:
            rows: list[Row] = [{"who": "mbo2o"}]
            with opened(PEERS.get(name, ()) if options.peers else (), name) as peers:
                rows += [{"who": x.who} for x in peers]
                rates = [repeated(draws[name], 1, options.device), *(x.rate for x in peers)]
                for row, found in zip(rows, in_turns(rates, options.rounds, options.seconds), strict=True):
                    row["rates"] = found
            measured = result(rows, options, "batches/s")
            show(TITLES[name], measured)
            keep(options.json, name, measured)


def samplers(options: Options) -> dict[str, Callable[[], Batch]]:
    """What draws a batch of each kind."""
    spec = Spec(OBS, ACT, (options.seeds,), options.device)
    offline, online = dataset().to(spec.device).with_seeds(spec.seeds), ReplayBuffer(spec, ONLINE)
    online.add(offline.sample(ONLINE))
    mix, aged = (make_source(cfg, spec, offline, online) for cfg in (MixConfig(), AgedConfig()))
    for source in (mix, aged):
        source.begin()
        source.advance(10_000)
    sources = {"dataset": offline, "buffer": online, "mix": mix, "aged": aged}
    return {name: lambda x=x: x.sample(BATCH) for name, x in sources.items()}  # type: ignore[misc]
