"""What a log alone says of a policy: the figure and the table of a run without an environment."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mbo2o.report.read import RunLog
from mbo2o.report.style import BLUE, GREEN, INK, NARROW, ORANGE, PURPLE, add_title, dress, thousands

VALUES = {"fqe": ("fitted Q evaluation", BLUE), "model_value": ("in the learned model", GREEN)}
"""The estimates of the policy's value, their names and colours."""
HELD = {
    "holdout_td_error": ("TD error²\non held-out rows", PURPLE),
    "holdout_action_error": ("squared distance from\nheld-out actions", ORANGE),
}
"""What is measured on held-out rows."""


def estimates(log: RunLog, narrow: bool = False) -> Figure:
    """Values with their intervals, TD error and distance from the data, over gradient steps.

    Each seed is a line; its interval is a band. narrow: for a page of a phone's width.
    """
    below = [name for name in HELD if log.has("eval", name)]
    size = 9 if narrow else 12
    height = 4.6 + 2.2 * len(below)
    figure = Figure(figsize=(NARROW if narrow else 10, height))
    ratios = {"height_ratios": [1.9, *([1] * len(below))], "hspace": 0.14}
    axes: list[Axes] = list(
        figure.subplots(1 + len(below), 1, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    )
    figure.subplots_adjust(
        left=0.2 if narrow else 0.13, right=0.96, top=1 - 1.2 / height, bottom=0.72 / height
    )
    seeds = log.config.get("seeds", 1)
    add_title(figure, "What the log says of the policy", f"{log.title} · {seeds} seed{'s' * (seeds != 1)}")
    for name, (label, colour) in VALUES.items():
        _band(axes[0], log, name, label, colour)
    behaviour = log.series("eval", "behaviour_value").values
    if behaviour.size:
        label = "what the recorded policy earned"
        axes[0].axhline(float(behaviour[-1].mean()), color=INK, ls=":", lw=1.8, label=label)
    axes[0].set_ylim(*_limits(log))
    axes[0].set_ylabel("discounted return\nfrom the log's starts", fontsize=size)
    axes[0].legend(edgecolor="none", framealpha=0.9, fontsize=size, loc="best")
    for x, name in zip(axes[1:], below, strict=True):
        label, colour = HELD[name]
        series = log.series("eval", name)
        x.plot(series.step, series.values, color=colour, lw=1.6)
        x.set_ylabel(label, fontsize=size)
        x.set_ylim(bottom=0)
    for x in axes:
        dress(x, labels=size)
    axes[-1].set_xlabel("offline gradient steps", fontsize=size)
    axes[-1].xaxis.set_major_formatter(FuncFormatter(thousands))
    return figure


def _band(axes: Axes, log: RunLog, name: str, label: str, colour: str) -> None:
    """The lines of all seeds, and the band between low and high of each."""
    middle = log.series("eval", name)
    if not len(middle.step):
        return
    low, high = (log.series("eval", f"{name}_{x}") for x in ("low", "high"))
    for k in range(middle.values.shape[1]):
        text = label if k == 0 else None
        axes.plot(middle.step, middle.values[:, k], color=colour, lw=2, label=text)
        if low.values.shape == high.values.shape == middle.values.shape:
            axes.fill_between(
                middle.step, low.values[:, k], high.values[:, k], color=colour, alpha=0.15, lw=0
            )


def _limits(log: RunLog) -> tuple[float, float]:
    """An axis that shows all lines, and bands as far as they are no more than three times as wide."""
    found = np.concatenate([log.series("eval", x).values.ravel() for x in (*VALUES, "behaviour_value")])
    found = found[np.isfinite(found)]
    low, high = (float(found.min()), float(found.max())) if found.size else (0.0, 1.0)
    pad = (high - low) or max(1.0, abs(high))
    return low - pad, high + pad


def table(log: RunLog) -> str:
    """The last estimates as a table of HTML; "" if the run has none."""
    rows = []
    for name, (label, _) in VALUES.items():
        found, low, high = (log.series("eval", f"{name}{x}").values for x in ("", "_low", "_high"))
        for k in range(found.shape[1] if len(found) else 0):
            known = len(low) == len(found) == len(high)
            between = f"{low[-1, k]:.4g} … {high[-1, k]:.4g}" if known else "–"
            rows.append((f"{label}, seed {k}", f"{found[-1, k]:.4g}", between))
    behaviour = log.series("eval", "behaviour_value").values
    if behaviour.size:
        rows.append(("what the recorded policy earned", f"{behaviour[-1].mean():.4g}", ""))
    for name, (label, _) in HELD.items():
        last = log.series("eval", name).values[-1:]
        if last.size:
            rows.append((label.replace("\n", " "), f"{last.mean():.4g}", ""))
    if not rows:
        return ""
    body = "".join("<tr>" + "".join(f"<td>{x}</td>" for x in row) + "</tr>" for row in rows)
    head = "<tr><th>discounted return, estimated</th><th>value</th><th>interval</th></tr>"
    note = (
        "The run had no environment, so nothing was played. The two estimates do not know each other; where "
        "they disagree, neither is to be trusted. An interval knows what varies in the log, not what the log "
        "lacks."
    )
    scrolls = f'<div class="table"><table>{head}{body}</table></div>'
    return f'<h2 id="numbers">Numbers</h2>{scrolls}<p class="note">{note}</p>'
