"""`mbo2o bench`: every command measures and keeps what it measured; the tables say what the files say."""

import json
import os
from dataclasses import replace
from pathlib import Path

import nets
import pytest
import torch

from bench import gpu, rollout, update
from bench.floor import Net, floor, product
from bench.measure import Options, clock, in_turns, keep, machine, one_core, read, repeated, result
from bench.table import rates, starts, tables, turns, wanted
from bench.works import ROLLOUTS, WORKS, Work
from mbo2o.agents.sac import SACConfig
from mbo2o.cli.main import main
from mbo2o.dynamics.model import DynamicsConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import UserError

TINY = MLPConfig(hidden=[8])


def run(capsys, *args):
    """Exit code, output and errors of a command."""
    with pytest.raises(SystemExit) as e:
        main([str(x) for x in args])
    out = capsys.readouterr()
    return e.value.code, out.out, out.err


@pytest.fixture
def small(monkeypatch):
    """Works that take no time."""
    net = Net(2, 16, (23, 8, 1), "fwx")
    works = {
        "sac": Work("SAC", nets.small("sac"), (net,), wanted={"fp32": {"sbx": (1.0, None)}}),
        "redq": Work("REDQ", nets.small("redq", policy_delay=2), (net,), utd=2),
        "model": Work("dynamics", DynamicsConfig(members=2, elites=1, net=TINY), (net,)),
    }
    monkeypatch.setattr(update, "WORKS", works)
    monkeypatch.setattr(update, "BATCH", 8)
    monkeypatch.setattr(update, "ROWS", 500)
    update.dataset.cache_clear()
    monkeypatch.setattr(rollout, "STARTS", 20)
    monkeypatch.setattr(rollout, "SACConfig", lambda: SACConfig(actor=TINY, critic=TINY))
    monkeypatch.setattr(rollout, "DynamicsConfig", lambda **how: DynamicsConfig(**how, net=TINY))
    yield works
    update.dataset.cache_clear()


QUICK = ("--rounds", 2, "--seconds", 0.01)
PRECISIONS = ["fp32", "bf16"]


def check(path, names, rows):
    found = read(path)
    assert list(found) == list(names)
    for x in found.values():
        assert len(x["rows"]) == rows
        assert all(len(row["rates"]) == 2 and min(row["rates"]) > 0 for row in x["rows"])
        assert x["machine"] == machine()
    return found


def test_update_measures_every_work_by_engine_and_precision(small, tmp_path, capsys):
    args = ("bench", "update", *QUICK, "--engine", "eager", "--json", tmp_path / "x.json")
    code, out, _ = run(capsys, *args)
    assert code == 0
    found = check(tmp_path / "x.json", small, 2)
    for x in found.values():
        assert [(r["who"], r["engine"], r["precision"]) for r in x["rows"]] == [
            ("mbo2o", "eager", p) for p in PRECISIONS
        ]
        assert set(x["floors"]) == {*PRECISIONS}
    assert "mbo2o eager bf16" in out


def test_rates_count_the_updates_of_all_seeds(small, monkeypatch):
    """A clock that moves by 1 in each update says one update per second, and per seed."""
    now = [0.0]
    monkeypatch.setattr("bench.measure.clock", lambda device: lambda: now[0])
    taught = update.Engine.update

    def counted(self, agent, batch):
        now[0] += 1
        return taught(self, agent, batch)

    monkeypatch.setattr(update.Engine, "update", counted)
    for name in ("sac", "redq"):
        for seeds in (1, 3):
            rate, _ = update.started(small[name], update.EngineConfig(), Options(seeds=seeds))
            assert rate(5) == seeds


def test_steps_of_the_dynamics_are_counted_between_their_ends(small, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(update, "clock", lambda device: lambda: now[0])
    taught = update.Learner.step

    def counted(self, x, y):
        now[0] += 2
        taught(self, x, y)

    monkeypatch.setattr(update.Learner, "step", counted)
    rate, _ = update.started(small["model"], update.EngineConfig(), Options(seeds=3))
    assert rate(10) == 3 / 2


def test_rollout_measures_both_kinds(small, tmp_path, capsys):
    path = tmp_path / "x.json"
    code, _, _ = run(capsys, "bench", "rollout", *QUICK, "--engine", "eager", "--seeds", 2, "--json", path)
    assert code == 0
    found = check(path, ROLLOUTS, 2)
    assert {x["seeds"] for x in found.values()} == {2}


@pytest.mark.parametrize(
    ("what", "names"),
    [("data", ["dataset", "buffer", "mix", "aged"]), ("turn", ["step", "turn", "acting", "add"])],
)
def test_data_and_turn_measure_all_they_name(small, tmp_path, capsys, what, names):
    assert run(capsys, "bench", what, *QUICK, "--json", tmp_path / "x.json")[0] == 0
    check(tmp_path / "x.json", names, 1)


def test_start_measures_commands_by_cpu_and_wall(tmp_path, capsys):
    path = tmp_path / "x.json"
    assert run(capsys, "bench", "start", "--rounds", 2, "--only", "python", "help", "--json", path)[0] == 0
    found = check(path, ["python", "help"], 2)
    assert [r["who"] for r in found["help"]["rows"]] == ["CPU", "wall"]


def test_a_work_that_is_measured_again_takes_the_place_of_its_former_result(small, tmp_path, capsys):
    path = tmp_path / "x.json"
    keep(path, "sac", {"rows": []})
    keep(path, "other", {"rows": []})
    code, _, _ = run(capsys, "bench", "update", *QUICK, "--only", "sac", "--engine", "eager", "--json", path)
    assert code == 0
    found = read(path)
    assert found["other"] == {"rows": []}
    assert len(found["sac"]["rows"]) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["update", "--engine", "graph"], "engine=graph needs a GPU, and device=cpu"),
        (["update", "--precision", "tf32", "--engine", "eager"], "precision=tf32 needs a GPU"),
        (["update", "--precision", "tf32"], "nothing of that runs on device=cpu"),
        (["update", "--engine", "auto"], "auto is decided by the length of a run"),
        (["update", "--engine", "fast"], "engine=fast is not one of"),
        (["update", "--engine", "eager", "--precision", "fp8"], "precision=fp8 is not one of"),
        (["update", "--only", "sca-2"], "did you mean 'sac-2'?"),
        (["rollout", "--only", "x"], "no work is called 'x'"),
        (["data", "--rounds", "0"], "rounds=0 must be at least 1"),
        (["turn", "--seeds", "0"], "seeds=0 must be at least 1"),
        (["turn", "--seconds", "0"], "seconds=0.0 must be above 0"),
        (["update", "--device", "cuda:77"], "device=cuda:77 is not available here"),
        (["update", "--device", "meta", "--peers"], "--peers compares on one CPU core"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(args, said, capsys):
    code, _, err = run(capsys, "bench", *args)
    assert code == 2
    assert said in err
    assert len([x for x in err.splitlines() if x.startswith("mbo2o: ")]) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"a": {}}'])
def test_a_file_of_something_else_is_refused_and_stays(small, tmp_path, capsys, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    code, _, err = run(
        capsys, "bench", "update", *QUICK, "--only", "sac", "--engine", "eager", "--json", path
    )
    assert code == 2
    assert "holds no results of a benchmark" in err
    assert path.read_text() == text


def test_where_nothing_compiles_the_other_engines_are_measured(monkeypatch, capsys):
    monkeypatch.setattr("mbo2o.run.engine.shutil.which", lambda name: None)
    assert {x.mode for x in Options().engines()} == {"eager"}
    assert capsys.readouterr().out.startswith("compiled is left out: ")
    with pytest.raises(UserError, match=r"a C\+\+ compiler is needed"):
        Options(engine=["compiled"]).engines()


# ---- how it is measured


def test_a_rate_is_the_units_of_the_calls_per_second_of_the_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("bench.measure.clock", lambda device: lambda: now[0])

    def step():
        now[0] += 0.5

    assert repeated(step, units=4)(3) == 8


def test_all_take_turns_and_none_always_follows_the_same_one():
    order = []
    found = in_turns([lambda s, k=k: order.append(k) or k + s for k in range(3)], rounds=4, seconds=0.5)
    assert order == [0, 1, 2, 2, 1, 0] * 2
    assert found == [[k + 0.5] * 4 for k in range(3)]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no process")
def test_one_core_is_used_and_given_back():
    before = os.sched_getaffinity(0), torch.get_num_threads()
    with one_core():
        assert (len(os.sched_getaffinity(0)), torch.get_num_threads()) == (1, 1)
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before


def test_the_cpu_s_clock_counts_work_and_not_waiting():
    import time

    now = clock("cpu")
    start = now()
    time.sleep(0.2)
    assert now() - start < 0.1


# ---- floors


def test_a_floor_is_the_sum_of_the_products_of_its_passes(monkeypatch):
    seen = []
    monkeypatch.setattr("bench.floor.product", lambda *shape: seen.append(shape) or 1.0)
    assert floor([Net(2, 8, (3, 4, 1), "fwx")], "fp32") == 5  # no gradient of the first layer's inputs
    assert floor([Net(2, 8, (3, 4, 1), "fX", 0.25)], "fp32") == 1
    assert floor([Net(2, 8, (3, 4, 1), "f"), Net(1, 8, (3, 4), "f")], "bf16") == 3
    assert seen[0] == (2, 8, 3, 4, "f", "fp32")


@pytest.mark.parametrize("kind", ["f", "w", "x"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_of_every_pass_are_timed(monkeypatch, kind, precision):
    monkeypatch.setattr("bench.floor.SECONDS", 1e-4)
    assert product(2, 8, 3, 4, kind, precision) > 0


def test_floors_have_the_layers_of_the_networks_that_learn():
    """The products of a work's critics and model, forward and backward, are those of the real ones."""
    agent = nets.make_agent(WORKS["sac-10"].cfg, nets.Spec(17, 6))
    weights = [tuple(p.shape) for n, p in agent.critic.named_parameters() if n.endswith("weight")]
    critics = next(n for n in WORKS["sac-10"].nets if n.passes == "fwx")
    assert weights == [(10, a, b) for a, b in zip(critics.sizes, critics.sizes[1:], strict=False)]
    model = update.GaussianDynamics(nets.Spec(17, 6), WORKS["dynamics"].cfg)
    weights = [tuple(p.shape) for n, p in model.net.named_parameters() if n.endswith("weight")]
    net = WORKS["dynamics"].nets[0]
    assert weights == [(net.members, a, b) for a, b in zip(net.sizes, net.sizes[1:], strict=False)]


# ---- tables


def row(who, rates, **more):
    return {"who": who, "rates": rates} | more


def stored(rows, **more):
    return {"machine": "a CPU", "load": 1.5, "rounds": 3, "seeds": 1, "rows": rows} | more


RESULTS = {
    "sac-10": stored(
        [
            row("mbo2o", [10, 10, 10], engine="eager", precision="fp32"),
            row("mbo2o", [11, 12, 30], engine="compiled", precision="fp32"),
            row("mbo2o", [40, 50, 60], engine="compiled", precision="bf16"),
            row("sbx-rl 0.28.0", [10, 10, 10], precision="fp32"),
            row("d3rlpy 2.8.1", [8, 9, 10], precision="fp32"),
            row("d3rlpy 2.8.1", [20, 20, 20], precision="bf16"),
        ],
        floors={"fp32": 20.0, "bf16": 12345.0},
    )
}


def cells(table, start):
    line = next(x for x in table.splitlines() if x.startswith(start))
    return [x.strip() for x in line.strip("|").split("|")]


def test_the_table_of_rates_shows_ours_peers_and_floors():
    text = rates(RESULTS, WORKS)
    assert cells(text, "| work")[1:4] == ["eager fp32", "compiled fp32", "compiled bf16"]
    found = cells(text, "| SAC, 10")
    assert found[1:4] == ["10", "12", "50"]
    assert "sbx-rl 0.28.0 fp32 10<br>d3rlpy 2.8.1 fp32 9<br>d3rlpy 2.8.1 bf16 20" in found
    assert found[-1] == "20, 12.3k"
    assert text.splitlines()[-1] == "Medians of at least 3 rounds. a CPU; load 1.5 to 1.5."


def test_the_table_of_what_is_wanted_has_medians_of_the_ratios_of_rounds():
    text = wanted(RESULTS, WORKS)
    lines = [[x.strip() for x in line.strip("|").split("|")] for line in text.splitlines()[2:5]]
    title = "SAC, 10 critics, 3x256"
    sbx = "1.20× (sbx-rl 0.28.0 fp32)"
    fast = "5.00× (sbx-rl 0.28.0 fp32)"
    alike = "2.50× (d3rlpy 2.8.1 bf16)"
    assert lines == [
        [title, "bf16", "≥ 3.1× sbx, aim 3.5×", "5.00× (4.00 to 6.00)", "aim", "1234.50×", fast, alike],
        [title, "bf16", "≥ 4.3× d3rlpy", "5.56× (5.00 to 6.00)", "yes", "1371.67×", fast, alike],
        [title, "fp32", "≥ 1.05× sbx, aim 1.2×", "1.20× (1.10 to 3.00)", "aim", "2.00×", sbx, sbx],
    ]


def test_what_falls_short_is_said():
    slow = json.loads(json.dumps(RESULTS))
    slow["sac-10"]["rows"][2]["rates"] = [30, 30, 30]
    assert cells(wanted(slow, WORKS), "| SAC, 10")[4] == "no"


def test_a_work_without_peers_has_no_row_of_what_is_wanted():
    alone = {"sac-10": stored(RESULTS["sac-10"]["rows"][:3])}
    assert "SAC" not in wanted(alone, WORKS)


@pytest.mark.parametrize(("turn", "said"), [(100, "≤ 1.5 steps: not met"), (800, "≤ 1.5 steps: met")])
def test_the_table_of_turns_counts_in_steps_of_the_environment(turn, said):
    found = {"step": stored([row("mbo2o", [1000])]), "turn": stored([row("mbo2o", [turn])])}
    line = cells(turns(found), "| a turn of")
    assert line[1:] == [f"{1e6 / turn:,.0f}", f"{1000 / turn:.2f}", said]


def test_the_table_of_starts_judges_by_cpu_seconds():
    found = {"help": stored([row("CPU", [0.2, 0.2, 0.9]), row("wall", [3, 3, 3])])}
    assert cells(starts(found), "| `mbo2o")[1:] == ["0.20", "3.00", "≤ 0.3 s: met"]


def test_every_table_is_made_from_stored_files(tmp_path):
    for what, found in {
        "update": RESULTS | {"min-10-utd20": stored(RESULTS["sac-10"]["rows"][:1])},
        "rollout": {"rollout-one": stored(RESULTS["sac-10"]["rows"][:1])},
        "data": {"mix": stored([row("mbo2o", [5.0])])},
        "turn": {"step": stored([row("mbo2o", [5.0])])},
        "start": {"cfg": stored([row("CPU", [1]), row("wall", [1])])},
    }.items():
        (tmp_path / f"bench-{what}.json").write_text(json.dumps(found))
    speed = {
        "who": "five members",
        "engine": "eager",
        "precision": "fp32",
        "start": 1.0,
        "rates": [40.0, 60.0],
    }
    returns = [{"who": who, "values": [[1.0, 2.0]] * 2} for who in ("policy", "planning")]
    stored_plan = Path(__file__).parents[2] / "data" / "results" / "bench-plan.json"
    planned = json.loads(stored_plan.read_text()) | {"speed": stored([speed])}
    planned["run-mine"] = stored(returns) | {"env": "Hopper-v5", "episodes": 1, "horizons": [4, 8]}
    (tmp_path / "bench-plan.json").write_text(json.dumps(planned))
    for name, table in tables(tmp_path).items():
        assert table().count("\n") >= 4, name


def test_results_say_how_they_were_taken():
    found = result([row("mbo2o", [1.0])], Options(seeds=3, rounds=7), "x/s", floors={})
    assert (found["seeds"], found["rounds"], found["unit"], found["device"]) == (3, 7, "x/s", "cpu")


# ---- the script for a GPU


def test_the_script_for_a_gpu_rehearses_on_a_cpu_and_stops_by_the_clock(small, monkeypatch, tmp_path):
    cases = (gpu.Case("sac", 1, 5000), gpu.Case("missing", 1), gpu.Case("model", 2))
    monkeypatch.setattr(gpu, "CASES", cases)
    monkeypatch.setattr(gpu, "WORKS", small)
    out = tmp_path / "x.jsonl"
    how = ["--device", "cpu", "--engine", "eager", "--seconds", "0.01", "--out", str(out)]
    gpu.main([*how, "--minutes", "5"])
    lines = [json.loads(x) for x in out.read_text().splitlines()]
    assert [x["work"] for x in lines] == ["sac", "missing", "model"]
    assert [len(x.get("rates", [])) for x in lines] == [3, 0, 3]
    assert (lines[0]["wanted"], lines[0]["precision"]) == (5000, "fp32")
    assert "KeyError" in lines[1]["error"]
    gpu.main([*how, "--minutes", "0"])
    assert len(out.read_text().splitlines()) == 3


def test_after_a_failure_on_a_gpu_a_new_process_does_the_rest(small, monkeypatch, tmp_path):
    """Its arguments are those of the first one, with less time and without what was measured."""
    seen, real = [], torch.device
    monkeypatch.setattr(gpu.os, "execv", lambda path, arguments: seen.append(arguments[3:]))
    monkeypatch.setattr(gpu, "CASES", (gpu.Case("missing", 1), gpu.Case("sac", 1)))
    monkeypatch.setattr(gpu, "WORKS", small)
    monkeypatch.setattr(gpu, "machine", lambda device: "a GPU")
    monkeypatch.setattr(gpu, "Options", lambda **how: Options())
    monkeypatch.setattr(gpu.torch, "device", lambda x: real("cuda"))
    monkeypatch.setattr(
        gpu, "measured", lambda cfg, case, *how: {"rates": [1.0]} if case.work == "sac" else 1 / 0
    )
    out = tmp_path / "x.jsonl"
    gpu.main(["--engine", "eager", "--minutes", "3", "--out", str(out)])
    (arguments,) = seen
    assert float(arguments[arguments.index("--minutes") + 1]) < 3
    out.unlink()
    gpu.main(arguments)
    assert [json.loads(x)["work"] for x in out.read_text().splitlines()] == ["sac"]


def test_the_script_for_a_gpu_begins_with_what_is_wanted(monkeypatch):
    first = [case for _, case in gpu.plan(["eager"])]
    known = [case.wanted is not None for case in first]
    assert known == sorted(known, reverse=True)
    assert {case.work for case in first} <= set(WORKS)
    assert replace(first[0], wanted=None) == gpu.Case("sac-2", 1)
