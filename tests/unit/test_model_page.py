"""The page about the model: its commands and its programs run as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
from logs import write_log

from mbo2o.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "dynamics.md"
SMALL = "dynamics.members=2 dynamics.elites=2 dynamics.net.hidden=[8] fit.min_updates=1 fit.max_updates=50"


def test_commands_and_programs_of_the_page_run(pendulum, capsys, monkeypatch):
    """Small: the fits, and the episodes that are played."""
    for package in ("stable_baselines3", "pytorch_mppi", "mbrl"):
        pytest.importorskip(package)
    Path("my.hdf5").symlink_to(pendulum)
    write_log("my.csv")
    text = PAGE.read_text()
    programs = re.findall(r"```(python)?\n(.*?)```", text, re.S)
    (commands,) = [code for kind, code in programs if not kind]
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "mbo2o"
        small = SMALL.split() if words[2] == "fit" else ["--episodes", "5", "--steps", "8"]
        unlike = [x for x in small if x.partition("=")[0] not in {w.partition("=")[0] for w in words}]
        fewer = ["fit.max_updates=50" if w.startswith("fit.max_updates") else w for w in words[1:]]
        with pytest.raises(SystemExit) as done:
            main([*fewer, *unlike])
        assert done.value.code == 0
    from mbo2o.model import fitting

    tiny = fitting.settings(SMALL.split())
    monkeypatch.setattr(fitting, "ModelConfig", lambda **more: fitting.replace(tiny, **more), raising=True)
    names: dict = {}
    for kind, code in programs:
        if kind:
            exec(code, names)
    assert names["action"].shape == names["again"].low.shape == (1,)
    assert "torch.Size([2, 5])" in capsys.readouterr().out
