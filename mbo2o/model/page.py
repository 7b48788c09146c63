"""The page of a model: what it is of, how far it is to be trusted, and what its data are fit for."""

from __future__ import annotations

from collections.abc import Sequence

from mbo2o.doctor.findings import FAMILIES, Report
from mbo2o.model.dynamics import Dynamics
from mbo2o.model.trust import CRITERION, DEPTHS, Trust


def page(dynamics: Dynamics, report: Report | None) -> str:
    """The page in Markdown; report: the doctor's on the data."""
    about, trust, net = dynamics.about, dynamics.trust, dynamics.net
    assert trust is not None
    low, high = (", ".join(f"{x:g}" for x in bound) for bound in (dynamics.low, dynamics.high))
    lines = [
        f"# Model of {about.env_id or 'a task without a name'}",
        "",
        f"- data: {net.info.get('dataset', 'not named')}",
        f"- network: {net.cfg.members} members, {net.cfg.elites} of them predict",
        f"- hidden layers: {', '.join(map(str, net.cfg.net.hidden))}",
        f"- sizes: {dynamics.obs_dim} observations, {dynamics.act_dim} actions",
        f"- actions: from [{low}] to [{high}]" + ("" if about.bounded else " (no environment names its box)"),
        f"- episodes end by the rule `{about.rule}`"
        + (f", and are cut after {about.time_limit} steps" if about.time_limit else ""),
        f"- trusted depth: {trust.depth()} steps. {CRITERION.format(error=0.5, coverage=0.8)}",
        "",
        "## One step",
        "",
        _rows_text(trust),
        "",
        *one_step_table(trust),
        "",
        "## By depth",
        "",
        _depth_text(trust),
        "",
        *depth_table(trust),
    ]
    if report is not None:
        lines += ["", "## Data", "", *_doctor(report)]
    return "\n".join(lines) + "\n"


def one_step_table(trust: Trust) -> list[str]:
    """A row for each dimension and for the reward, in Markdown."""
    lines = ["| | error (RMSE) | variance left | in 50 % intervals | in 90 % intervals |"]
    lines += ["|---|---|---|---|---|"]
    t = trust.table
    numbers = list(zip(t["rmse"], t["unexplained"], t["inside50"], t["inside90"], strict=True))
    for i, (rmse, left, half, most) in enumerate(numbers):
        name = "reward" if i == len(numbers) - 1 else f"observation[{i}]"
        lines.append(f"| {name} | {rmse:.4g} | {left:.2%} | {half:.0%} | {most:.0%} |")
    return lines


def depth_table(trust: Trust) -> list[str]:
    """A row for each of `DEPTHS` that was measured, and for the last depth, in Markdown."""
    lines = ["| steps | error | nine tenths below | in 50 % | in 90 % | ended too early | windows |"]
    lines += ["|---|---|---|---|---|---|---|"]
    last = len(trust.error)
    for depth in sorted({d for d in DEPTHS if d <= last} | {last}):
        i = depth - 1
        cells = [f"{depth}", f"{float(trust.error[i]):.3g}", f"{float(trust.worst[i]):.3g}"]
        cells += [f"{float(x[i]):.0%}" for x in (trust.inside50, trust.inside90, trust.ended)]
        lines.append(f"| {' | '.join([*cells, f'{float(trust.windows[i]):.0f}'])} |")
    return lines


def _rows_text(trust: Trust) -> str:
    where = "of held-out episodes" if trust.held_out else "that the fit may have seen"
    return (
        f"On {trust.rows} rows {where}. The variance left is the share of the variance of the change, or of "
        "the reward, that the mean does not explain. Intervals of a calibrated model hold 50 % and 90 %."
    )


def _depth_text(trust: Trust) -> str:
    where = "held-out episodes" if trust.held_out else "episodes that the fit may have seen"
    return (
        f"Rollouts with the recorded actions, from states of {where}. The error of their mean is in standard "
        "deviations of the data. A branch ended too early if the rule ends it while the record goes on."
    )


def _doctor(report: Report) -> Sequence[str]:
    lines = [f"{report.rows} rows, {report.episodes} episodes.", ""]
    for family, name in FAMILIES.items():
        verdict, reason = report.verdict(family)
        lines.append(f"- {name}: **{verdict}**" + (f" ({reason})" if reason else ""))
    text = report.certificate.text() if report.certificate else "no rule was compared with the terminals"
    return [*lines, "", f"Termination: {text}."]
