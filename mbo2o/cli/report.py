"""The commands that read runs: `report`, `table` and `runs`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mbo2o.cli.command import add


def _report(options: argparse.Namespace) -> None:
    from mbo2o.errors import optional
    from mbo2o.report.runs import find_runs
    from mbo2o.store.whole import writing

    runs = find_runs(options.runs)
    optional("matplotlib", "a report")
    with writing(Path(options.out or runs[0])):
        if len(runs) == 1:
            from mbo2o.report.page import write_report

            print(write_report(runs[0], options.out))
        else:
            from mbo2o.report.comparison import write_comparison
            from mbo2o.report.switch import write_switch

            for run in runs:
                write_switch(run)
            print(write_comparison(runs, options.out))


def _table(options: argparse.Namespace) -> None:
    from mbo2o.report.arms import by_task
    from mbo2o.report.numbers import comparison, records, render
    from mbo2o.report.runs import find_runs, look_at

    tasks = by_task([look_at(path) for path in find_runs(options.runs)])
    if options.format == "json":
        print(json.dumps(records(tasks), indent=1))
        return
    for n, (task, arms) in enumerate(tasks.items()):
        head, rows = comparison(arms)
        if options.format == "csv":  # one table, whose first column is the task
            print(render(["task", *head], [[task, *row] for row in rows], "csv"))
            continue
        if len(tasks) > 1:
            print(f"{chr(10) * bool(n)}{'%' if options.format == 'latex' else ''} {task}".strip(" "))
        print(render(head, rows, options.format))


def _runs(options: argparse.Namespace) -> None:
    from mbo2o.report.numbers import render
    from mbo2o.report.runs import listing

    print(render(*listing([options.folder]), options.format))


def add_to(commands: Any) -> None:
    """Declare `report`, `table` and `runs`."""
    several = "the directory of a run, or a folder of runs"
    p = add(
        commands,
        "report",
        _report,
        "Draw a run: RUN/report/index.html, with each figure as PNG and SVG. Several runs, or a folder of "
        "runs, are compared on one page. Both pages open without a network.",
        "mbo2o report runs/moore-...\n"
        "  mbo2o report runs/wsrl-... runs/rlpd-... --out page\n"
        "  mbo2o report runs",
        more="Runs whose settings differ in nothing but their seeds are pooled. Runs of different tasks "
        "share no picture.",
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help=several)
    p.add_argument(
        "--out", metavar="DIR", help="where the page goes; by default RUN/report, or FOLDER/comparison"
    )

    p = add(
        commands,
        "table",
        _table,
        "Print the numbers of runs, with intervals over seeds: before and at the switch, dip, steps to "
        "recover, regret, mean online, final.",
        "mbo2o table runs\n  mbo2o table runs/wsrl-... runs/rlpd-... --format latex",
        more="--format json has every seed's number.",
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help=several)
    p.add_argument("--format", default="md", choices=["text", "md", "csv", "json", "latex"])

    p = add(
        commands,
        "runs",
        _runs,
        "List the runs of a folder: method, data, seeds, state, place, last return and hours.",
        "mbo2o runs\n  mbo2o runs runs/studies --format csv",
    )
    p.add_argument("folder", nargs="?", default="runs", metavar="FOLDER")
    p.add_argument("--format", default="text", choices=["text", "md", "csv", "json", "latex"])
