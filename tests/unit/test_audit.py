"""The dataset doctor: every fault that it names is seeded once, found there, and not found in the healthy
twin.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mbo2o.cli import main as cli
from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.fields import Fields
from mbo2o.doctor.audit import audit
from mbo2o.doctor.check import check
from mbo2o.doctor.evidence import Record, Task
from mbo2o.doctor.findings import ADVICE, FAMILIES
from mbo2o.dynamics.termination import hopper
from mbo2o.store.hdf5 import read_hdf5, write_hdf5
from mbo2o.store.minari import write_minari
from mbo2o.types import UserError

DATA = Path(__file__).parents[2] / "data"
HOPPER = Task("Hopper-v5", 11, 3, 1000, "Hopper-v5")
LENGTH, EPISODES = 25, 40


def counter() -> Fields:
    """Observations say which episode (twice) and which step.

    A fifth of the episodes terminates, at 20 steps.
    """
    lengths = np.where(np.arange(EPISODES) % 5 == 4, 20, LENGTH)
    episode, step = np.repeat(np.arange(EPISODES), lengths), np.concatenate([np.arange(n) for n in lengths])
    obs = np.stack([episode, step + 1, 0.5 - episode], 1)
    last = step == lengths[episode] - 1
    rng = np.random.default_rng(0)
    return {
        "observations": obs.astype(np.float32),
        "actions": rng.uniform(-1, 1, (len(obs), 2)).astype(np.float32),
        "rewards": rng.normal(size=len(obs)).astype(np.float32),
        "terminals": last & (lengths[episode] == 20),
        "timeouts": last & (lengths[episode] == LENGTH),
        "next_observations": (obs + np.array([0, 1, 0])).astype(np.float32),
    }


def ends(obs, act, next_obs):
    """The counter's rule: episodes 4, 9, 14, ... end as they reach step 20 (obs[1] is one more)."""
    return (next_obs[..., 1] == 21) & (next_obs[..., 0] % 5 == 4)


COUNTER = Task("Counter-v0", 3, 2, LENGTH, "Counter-v0")


@pytest.fixture(scope="module")
def real():
    return read_hdf5(DATA / "hopper-medium-v5.hdf5")[0]


def drop(x, *keys):
    return {key: v for key, v in x.items() if key not in keys}


def look(fields, task=COUNTER, rule=ends, attrs=None):
    return audit(fields, attrs or ({"env_id": task.env_id} if task else {}), task=task, termination=rule)


def names(report, severity=("fault", "warning", "note")):
    return {f.name for f in report.findings if f.severity in severity}


def verdicts(report):
    return {family: report.verdict(family)[0] for family in FAMILIES}


def test_the_healthy_counter_has_no_finding():
    report = look(counter())
    assert report.findings == []
    assert set(verdicts(report).values()) == {"yes"}
    assert report.safe
    assert report.certificate.certified
    assert report.certificate.text().startswith(
        "certified: the rule given ends 0 of 952 rows without a terminal"
    )
    assert report.certificate.terminal_rows == 8


# ---- the known real cases


def rolled(x, key, rows):
    return x | {key: np.roll(x[key], rows, 0)}


def zero_filled(x):
    """d3rlpy's habit."""
    return x | {"next_observations": np.where(x["terminals"][:, None], 0, x["next_observations"])}


def extra_observations(x):
    """d3rlpy's reading of Minari: T + 1 observations per episode joined uncut, actions and flags T."""
    end = x["terminals"] | x["timeouts"]
    pieces = np.split(np.arange(len(end)), np.flatnonzero(end)[:-1] + 1)
    obs = np.concatenate(
        [np.concatenate([x["observations"][p], x["next_observations"][p[-1:]]]) for p in pieces]
    )
    return drop(x, "next_observations") | {"observations": obs[: len(end)]}


def next_below(x):
    """The row below, whatever it is: observations[1:] without a look at the flags."""
    return x | {"next_observations": np.concatenate([x["observations"][1:], x["next_observations"][-1:]])}


def out_of_step(x):
    """D4RL issue 77: antmaze -v0 and -v1."""
    return rolled(drop(x, "next_observations") | {"terminals": x["terminals"] & False}, "timeouts", -1) | {
        "timeouts": np.roll(x["timeouts"] | x["terminals"], -1)
    }


def no_flags(x):
    """MuJoCo without timeouts and next observations, of a task that does not terminate."""
    return drop(x, "next_observations", "timeouts") | {"terminals": np.zeros_like(x["terminals"])}


def limit_as_terminal(x):
    return x | {"terminals": x["terminals"] | x["timeouts"], "timeouts": np.zeros_like(x["timeouts"])}


def hidden(x):
    """Cuts that next observations show and flags do not."""
    return x | {"timeouts": np.zeros_like(x["timeouts"])}


def zero_rewards(x):
    """OfflineRL-Kit issue 14."""
    return x | {"rewards": np.zeros_like(x["rewards"])}


def shuffled(x):
    order = np.random.default_rng(1).permutation(len(x["rewards"]))
    return {key: v[order] for key, v in x.items()}


def lanes(x, n=2):
    """Two environments' steps taken in turn, as vector buffers keep them."""
    half = len(x["rewards"]) // n
    return {
        key: np.stack([v[i * half : (i + 1) * half] for i in range(n)], 1).reshape(-1, *v.shape[1:])
        for key, v in x.items()
    }


def goes_on(x, key):
    """Flags in the midst of episodes, where the record goes on: D4RL's maze2d (timeouts) and antmaze
    (terminals).
    """
    inside = np.flatnonzero(x["observations"][:, 1] == 8)
    return x | {key: x[key] | np.isin(np.arange(len(x["rewards"])), inside)}


def set_rows(x, key, rows, value):
    out = x[key].copy()
    out[rows] = value
    return x | {key: out}


def twice(x):
    return {key: np.concatenate([v, v[:500]]) for key, v in x.items()}


NO, YES = dict.fromkeys(FAMILIES, "no"), dict.fromkeys(FAMILIES, "yes")
BLIND = {"cloning": "yes", "td": "no", "dynamics": "no", "returns": "no"}
UNSURE = {"cloning": "yes", "td": "with care", "dynamics": "with care", "returns": "with care"}
CASES = {
    # name: (finding, fault, verdicts that differ from yes)
    "next below": ("next_is_next_start", next_below, {"td": "no", "dynamics": "no"}),
    "zero-filled": ("zero_next", zero_filled, {"dynamics": "no"}),
    "stale": (
        "stale_next",
        lambda x: (
            x
            | {
                "next_observations": np.where(
                    (x["terminals"] | x["timeouts"])[:, None], x["observations"], x["next_observations"]
                )
            }
        ),
        {"td": "no", "dynamics": "no"},
    ),
    "stray": (
        "next_strays",
        lambda x: set_rows(x, "next_observations", [3, 40], 30.0),
        {"td": "no", "dynamics": "no"},
    ),
    "one more observation": ("extra_observations", extra_observations, NO),
    "out of step": ("timeouts_out_of_step", out_of_step, BLIND),
    "hidden, told": ("hidden_cuts", hidden, {"returns": "with care"}),
    "hidden, blind": ("hidden_cuts", no_flags, BLIND),
    "no flags": ("boundaries_unknown", no_flags, BLIND),
    "over the limit": ("episodes_over_limit", no_flags, BLIND),
    "no timeouts": ("timeouts_missing", lambda x: drop(x, "timeouts"), {}),
    "limit as terminal": (
        "limit_as_terminal",
        limit_as_terminal,
        {"td": "no", "dynamics": "with care", "returns": "with care"},
    ),
    "timeouts go on": ("timeouts_go_on", lambda x: drop(goes_on(x, "timeouts"), "next_observations"), None),
    "terminals go on": ("terminals_go_on", lambda x: goes_on(x, "terminals"), None),
    "shuffled": ("rows_out_of_order", shuffled, {"returns": "no"}),
    "lanes": ("rows_out_of_order", lanes, {"returns": "no"}),
    "next shifted": ("next_observations_shifted", lambda x: rolled(x, "next_observations", -1), None),
    "next repeated": (
        "next_observations_shifted",
        lambda x: x | {"next_observations": x["observations"]},
        None,
    ),
    "next of others": (
        "next_observations_misaligned",
        lambda x: x | {"next_observations": np.random.default_rng(0).permutation(x["next_observations"])},
        None,
    ),
    "unknown": (
        "next_unknown",
        lambda x: set_rows(x, "next_observations", slice(0, 500), np.nan),
        {"td": "with care", "dynamics": "with care"},
    ),
    "terminals unused": (
        "terminals_unused",
        lambda x: drop(x, "next_observations"),
        {"td": "with care", "dynamics": "with care"},
    ),
    "death unmarked": (
        "false_dead",
        lambda x: (
            x | {"terminals": np.zeros_like(x["terminals"]), "timeouts": x["terminals"] | x["timeouts"]}
        ),
        {"td": "with care", "dynamics": "no"},
    ),
    "death invented": (
        "false_alive",
        lambda x: x | {"terminals": (x["observations"][:, 1] == 15) | x["terminals"]},
        None,
    ),
    "twins": ("duplicate_rows", twice, {"cloning": "with care", "dynamics": "with care"}),
    "twin episodes": ("duplicate_episodes", twice, {"cloning": "with care", "dynamics": "with care"}),
    "leak": ("split_leak", twice, {"cloning": "with care", "dynamics": "with care"}),
    "constant action": (
        "constant_actions",
        lambda x: set_rows(x, "actions", (slice(None), 1), 0.0),
        {"td": "with care", "dynamics": "with care"},
    ),
    "saturated": (
        "saturated_actions",
        lambda x: x | {"actions": np.sign(x["actions"])},
        {"cloning": "with care"},
    ),
    "zero rewards": ("constant_rewards", zero_rewards, {"td": "no", "returns": "no"}),
    "a wild reward": ("reward_outliers", lambda x: set_rows(x, "rewards", [17], 1e6), UNSURE),
    "constant observation": (
        "constant_observations",
        lambda x: set_rows(x, "observations", (slice(None), 0), 0.0),
        None,
    ),
    "one episode": ("few_episodes", lambda x: {key: v[:LENGTH] for key, v in x.items()}, UNSURE),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_found_and_judged(case):
    name, fault, expected = CASES[case]
    report = look(fault(counter()))
    assert name in names(report)
    if expected is not None:
        assert verdicts(report) == YES | expected
    for family in FAMILIES:  # a verdict has a reason, and a finding's own harm shows in it
        verdict, reason = report.verdict(family)
        assert bool(reason) == (verdict != "yes")


def test_the_catalogue_is_complete():
    environment = {"environment_unknown", "environment_missing", "environment_sizes", "environment_version"}
    elsewhere = {"actions_shifted", "rewards_shifted"}  # on Hopper, below
    read = {"actions_in_env_units", "observations_lose_precision"}  # in test_actions, test_precision
    joint = {"angle_leaps", "rare_switch"}  # on a spinning joint, below
    assert {name for name, *_ in CASES.values()} | environment | elsewhere | read | joint == set(ADVICE)


def only(report, name):
    return next(f for f in report.findings if f.name == name)


def test_counts_and_rows_are_those_of_the_fault():
    x = counter()
    end = np.flatnonzero(x["terminals"] | x["timeouts"])
    found = only(look(next_below(x)), "next_is_next_start")
    assert (found.count, found.of, found.rows) == (EPISODES - 1, len(x["rewards"]), end[:5].tolist())
    assert found.message.startswith("4.1 % (39) of next observations are the next episode's start")
    found = only(look(out_of_step(x)), "timeouts_out_of_step")
    assert found.rows == end[:5].tolist()
    assert "98 % (39) of timeouts stand 1 row before the cut" in found.message
    found = only(look(no_flags(x)), "hidden_cuts")
    assert (found.count, found.rows) == (EPISODES - 1, end[:5].tolist())
    assert only(look(twice(x)), "duplicate_rows").count == 500
    assert (
        "copies of about 62 % of the rows" in only(look(twice(x)), "split_leak").message
    )  # 1000 × 0.9 of 1460
    assert only(look(zero_filled(x)), "zero_next").count == x["terminals"].sum()


def test_a_wrong_row_in_thousands_is_borne_with_care(real):
    x = set_rows(real, "next_observations", [100], 30.0)
    report = audit(x, task=HOPPER)
    assert verdicts(report) == YES | {"td": "with care", "dynamics": "with care"}
    assert report.safe
    x = set_rows(real, "next_observations", np.arange(100, 5000, 300), 30.0)
    assert verdicts(audit(x, task=HOPPER)) == YES | {"td": "no", "dynamics": "no"}


def test_untrue_next_observations_do_not_certify_a_rule():
    x = counter()
    assert look(zero_filled(x)).certificate.terminals_untested == 8
    assert not look(zero_filled(x)).certificate.certified
    assert look(x, rule=lambda o, a, n: torch.zeros(len(o), dtype=torch.bool)).certificate.false_alive == 8


def test_a_death_at_the_limit_is_a_death():
    """The rule knows better than the clock: where it confirms the terminals, they are no time limits."""
    x = limit_as_terminal(counter())
    last = lambda o, a, n: (n[..., 1] == LENGTH + 1) | ends(o, a, n)  # noqa: E731
    assert "limit_as_terminal" in names(look(x))
    assert look(x, rule=last).findings == []


def test_a_rule_that_fails_is_the_users_error():
    with pytest.raises(UserError, match="fails on these rows"):
        look(counter(), rule=lambda o, a, n: 1 / 0)


@pytest.mark.parametrize("rows", [1, 2, 3, 11])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_few_rows_are_enough_to_say_something(rows):
    x = {key: v[20 : 20 + rows] for key, v in counter().items()}
    assert "few_episodes" in names(look(x))
    assert "rows_out_of_order" not in names(look(shuffled(x)))
    report = look({key: v[:, :1] if v.ndim == 2 else v for key, v in x.items()}, task=None, rule=None)
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["certificate"] is None
    assert "environment unknown" in report.text()


def test_what_the_schema_refuses_is_refused():
    with pytest.raises(UserError, match="'observations' is not a finite float32 in row 3"):
        look(set_rows(counter(), "observations", 3, np.nan))


# ---- on real rows


def test_the_shipped_files_are_sound():
    for name in ("hopper-medium-v5", "hopper-medium-replay-v5"):
        report = audit(*read_hdf5(DATA / f"{name}.hdf5"), task=HOPPER, termination=hopper)
        assert report.findings == []
        assert report.certificate.certified
        assert report.certificate.terminal_rows in (63, 713)


def test_resets_are_found_without_any_flag(real):
    blind = drop(real, "next_observations") | {
        key: np.zeros(len(real["rewards"]), bool) for key in ("timeouts", "terminals")
    }
    jumps = Record(blind, {}).motion.jumps
    np.testing.assert_array_equal(jumps, (real["terminals"] | real["timeouts"])[:-1])


def test_resets_of_a_runner_are_found_though_its_steps_are_as_long():
    """Four joints turn by a radian a step; each episode starts near rest, as HalfCheetah's do."""
    rng, pieces = np.random.default_rng(0), []
    for _ in range(40):
        radius = np.minimum(1, 0.02 * 1.6 ** np.arange(50))[:, None]
        angle = np.arange(50)[:, None] + rng.uniform(0, 6, 4)
        pieces.append(
            np.concatenate([radius * np.sin(angle), radius * np.cos(angle)], 1)
            + rng.normal(size=(50, 8)) / 50
        )
    x = {"observations": np.concatenate(pieces), "actions": rng.uniform(-1, 1, (2000, 1))}
    x |= {"rewards": rng.normal(size=2000), "terminals": np.zeros(2000), "timeouts": np.zeros(2000)}
    found = only(audit(x), "hidden_cuts")
    assert (found.count, found.rows) == (39, [49, 99, 149, 199, 249])
    assert names(audit(x | {"timeouts": np.arange(2000) % 50 == 49}), ("fault", "warning")) == set()


# ---- facts beat statistics


def spinning(switch: bool, rows: int = 4000) -> Fields:
    """A joint that spins, observed as an angle in (-π, π] and a speed.

    Or without leaps, with a switch that is on in two rows.

    Every next observation is the row below, and episodes of 200 steps go on where the last one stopped.
    """
    rng = np.random.default_rng(1)
    act, speed, angle = rng.uniform(-1, 1, (rows, 1)), np.zeros(rows + 1), np.zeros(rows + 1)
    speed[0] = 2
    for t in range(rows):
        speed[t + 1] = np.clip(speed[t] + 0.1 * act[t, 0], -4, 4)
        angle[t + 1] = angle[t] + 0.05 * speed[t + 1]
    on = np.isin(np.arange(rows + 1), [500, 1250])
    wrapped = [(angle + np.pi) % (2 * np.pi) - np.pi, speed]
    obs = np.stack([np.sin(angle), np.cos(angle), speed, on] if switch else wrapped, 1).astype(np.float32)
    return {
        "observations": obs[:-1],
        "actions": act.astype(np.float32),
        "rewards": -np.abs(speed[1:]).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 200 == 199,
        "next_observations": obs[1:],
    }


@pytest.mark.parametrize("stored", [True, False], ids=["next stored", "next not stored"])
@pytest.mark.parametrize(
    ("switch", "name", "message", "cure"),
    [
        (False, "angle_leaps", "dimension 0 leaps by its whole range", "sine and cosine"),
        (
            True,
            "rare_switch",
            "dimension 3 rarely changes: in 0.10 % (4) of steps",
            "do nothing if the task is like that",
        ),
    ],
)
def test_an_angle_that_wraps_and_a_rare_switch_are_notes_with_a_cure(switch, name, message, cure, stored):
    x = spinning(switch)
    report = audit(x if stored else drop(x, "next_observations"))
    found = only(report, name)
    assert found.severity == "note"
    assert message in found.message
    assert cure in ADVICE[name]
    assert report.verdict("td")[0] == report.verdict("dynamics")[0] == "yes"
    assert names(report, ("fault",)) == set()
    assert not names(report) & {"hidden_cuts", "next_is_next_start"}


def test_a_leap_between_rows_that_the_file_says_follow_each_other_is_no_cut():
    """The same leap is one where the file does not say so."""
    x = counter()
    obs = x["observations"].copy()
    obs[110:] += 200.0  # in the midst of an episode
    after = np.where(
        (x["terminals"] | x["timeouts"])[:, None], obs + np.float32([0, 1, 0]), np.roll(obs, -1, 0)
    )
    x |= {"observations": obs, "next_observations": after}
    assert "hidden_cuts" not in names(audit(x))
    assert only(audit(drop(x, "next_observations")), "hidden_cuts").rows == [109]


def test_a_wrap_does_not_hide_a_cut():
    x = spinning(False)
    obs = np.concatenate([x["observations"][:3000], x["observations"][200:800]])
    x = {key: v[:3600] for key, v in x.items()} | {"observations": obs}
    report = audit(drop(x, "next_observations") | {"timeouts": np.zeros(3600, bool)})
    assert {"angle_leaps"} <= names(report)


def test_in_few_episodes_a_guess_asks_for_care_and_a_fact_for_more(real):
    few = {key: v[:1500] for key, v in real.items()}
    few |= {"terminals": np.zeros(1500, bool), "timeouts": np.arange(1500) % 500 == 499}
    report = audit(drop(rolled(few, "actions", -1), "next_observations"), task=HOPPER)
    assert {"few_episodes", "actions_shifted"} <= names(report)
    assert "no" not in verdicts(report).values()
    stale = few | {"next_observations": np.zeros_like(few["observations"])}
    assert "few_episodes" in names(audit(stale, task=HOPPER))
    assert verdicts(audit(stale, task=HOPPER))["td"] == "no"


def test_next_observations_of_another_row_are_told_from_rows_of_several_environments(real):
    assert "next_observations_shifted" in names(audit(rolled(real, "next_observations", -1), task=HOPPER))
    assert "rows_out_of_order" in names(audit(lanes(real), task=HOPPER))


@pytest.mark.parametrize(
    ("reward", "dies", "verdict"),
    [(0, True, "no"), (-1, False, "no"), (-1, True, "with care"), (1, False, "with care")],
)
def test_a_constant_reward_chooses_between_long_episodes_and_short_ones(reward, dies, verdict):
    x = counter()
    x |= {"rewards": np.full_like(x["rewards"], reward)}
    if not dies:
        x |= {"terminals": x["terminals"] & False, "timeouts": x["terminals"] | x["timeouts"]}
    report = audit(x)
    assert report.verdict("td")[0] == report.verdict("returns")[0] == verdict
    assert "constant_rewards" in names(report)


@pytest.mark.parametrize("rows", [-1, 1])
def test_shifted_actions_and_rewards(real, rows):
    assert "actions_shifted" in names(audit(rolled(real, "actions", rows), task=HOPPER), ("fault",))
    assert names(audit(rolled(real, "rewards", rows), task=HOPPER), ("fault",)) == {"rewards_shifted"}
    where = "above" if rows == -1 else "below"
    assert (
        f"of the row {where}"
        in only(audit(rolled(real, "actions", rows), task=HOPPER), "actions_shifted").message
    )


@pytest.mark.parametrize(
    "case", ["next below", "zero-filled", "one more observation", "out of step", "hidden, blind", "shuffled"]
)
def test_the_known_cases_on_hopper(real, case):
    name, fault, expected = CASES[case]
    report = audit(fault(real), task=HOPPER)
    assert name in names(report)
    masked = {"td": "yes"} if case == "next below" else {}  # all of Hopper's ends but one are terminals
    assert verdicts(report) == YES | expected | masked


# ---- environment


def test_the_environment(real):
    say = lambda task, own="Hopper-v5": names(audit(real, {"env_id": own}, task=task))  # noqa: E731
    assert say(HOPPER) == set()
    assert say(None) == {"environment_unknown"}
    assert say(HOPPER, "Hopper-v2") == {"environment_version"}
    assert say(Task("Hopper-v4", 11, 3, 1000, "Hopper-v5"), "Hopper-v4") == {"environment_version"}
    assert say(Task("Hopper-v2", newest="Hopper-v5", problem="moved"), "Hopper-v2") == {
        "environment_missing",
        "environment_version",
    }
    assert say(Task("Hopper-v5", 12, 3, 1000, "Hopper-v5")) == {"environment_sizes"}


def test_an_environment_is_the_same_with_and_without_its_module(real):
    say = lambda task, own: names(audit(real, {"env_id": own}, task=task))  # noqa: E731
    for own in ("Mass-v0", "mytask:Mass-v0", "other:Mass-v0"):
        assert say(Task("mytask:Mass-v0", 11, 3, 1000, "Mass-v0"), own) == set()
        assert say(Task("Mass-v0", 11, 3, 1000, "Mass-v0"), own) == set()
    assert say(Task("mytask:Mass-v0", 11, 3, 1000, "Mass-v1"), "Mass-v0") == {"environment_version"}
    assert say(Task("mytask:Mass-v0", 11, 3, 1000, "Mass-v0"), "Load-v0") == {"environment_version"}


# ---- command line


def run(capsys, *args):
    with pytest.raises(SystemExit) as e:
        cli.main(["data", "check", *map(str, args)])
    out = capsys.readouterr()
    return e.value.code, out.out, out.err


def test_a_sound_file(capsys):
    code, out, _ = run(capsys, "hopper-medium-v5")
    assert code == 0
    assert (
        "certified: the rule hopper ends 0 of 19937 rows without a terminal, and misses 0 of 63 terminals"
        in out
    )
    assert "dynamics training    yes" in out
    assert "no findings" in out


def test_a_poisoned_file_and_its_json(tmp_path, capsys):
    path = tmp_path / "x.hdf5"
    write_hdf5(path, next_below(counter()), {"env_id": "Counter-v0"})
    code, out, _ = run(capsys, path)
    assert code == 1
    assert (
        "dynamics training    no         4.1 % (39) of next observations are the next episode's start" in out
    )
    assert "Counter-v0 cannot be made here" in out
    assert "not checked: terminals against a rule" in out

    code, out, _ = run(capsys, path, "--json", "--termination", "none")
    report = json.loads(out)
    assert code == 1
    about = {"dataset", "env_id", "rows", "episodes", "certificate", "coverage", "not_checked"}
    assert set(report) == about | {"findings", "safe", "verdicts"}
    assert report["verdicts"]["dynamics"]["verdict"] == "no"
    assert report["safe"] is False
    for f in report["findings"]:
        assert set(f) == {"name", "message", "count", "of", "rows", "place", "harms", "severity", "advice"}
    counts = {"alive_rows", "false_dead", "terminal_rows", "false_alive", "terminals_untested"}
    assert set(report["certificate"]) == counts | {"rule", "certified"}
    assert report["certificate"]["false_alive"] == 1  # the others' next observations are not what followed
    assert len(report["coverage"]["observation_std"]) == 3


def test_a_file_of_an_older_version_in_the_newer_environment(tmp_path, capsys, real):
    path = tmp_path / "x.hdf5"
    write_hdf5(path, {key: v[:3000] for key, v in real.items()}, {"env_id": "Hopper-v2"})
    code, out, _ = run(capsys, path)
    assert code == 0
    assert "Hopper-v2 cannot be made here" in out
    assert "the newest version is Hopper-v5" in out
    code, out, _ = run(capsys, path, "--env", "Hopper-v5")
    assert code == 0
    assert "with care  the data are of Hopper-v2, not of Hopper-v5" in out
    code, out, _ = run(capsys, path, "--env", "Pendulum-v1")
    assert code == 0
    assert "have 11 and 3 dimensions, Pendulum-v1 has 3 and 1" in out


def test_columns_of_replay_buffers_are_read(tmp_path, capsys):
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        for key, v in counter().items():
            file[key] = v[:, None] if v.ndim == 1 else v
    assert run(capsys, path)[0] == 0


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["nowhere.hdf5"], "nowhere.hdf5: no such file"),
        (["hoper-medium-v5"], "did you mean 'hopper-medium-v5'?"),
        (["hopper-medium-v5", "--env", "Hoper-v5"], "Hoper"),
        (["hopper-medium-v5", "--termination", "hoper"], "termination=hoper: no such rule"),
        (["hopper-medium-v5", "--termination", "learned"], "nothing to certify"),
        (["hopper-medium-v5", "--termination", "math:sqrt"], "termination math:sqrt: fails on these rows"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(args, expected, capsys):
    code, _, err = run(capsys, *args)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


def test_a_minari_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    write_minari(TransitionDataset.from_arrays(**counter()), "counter/test-v0")
    for name in ("minari:counter/test-v0", "counter/test-v0"):
        code, out, _ = run(capsys, name)
        assert code == 0
        assert "960 rows, 40 episodes" in out


def test_a_share_of_everything_is_written_without_an_exponent():
    x = counter()
    same = {**x, **{k: np.zeros_like(v) for k, v in x.items()}}
    assert "copies of about 100 % of the rows" in only(look(same), "split_leak").message


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("Pendulum-v1", "takes no argument 'gravity', which env_kwargs gives"),
        (None, "does not say which environment it is of"),
    ],
)
def test_arguments_for_an_environment_that_cannot_use_them_are_refused(tmp_path, env_id, says):
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as f:
        shapes = {"observations": (8, 3), "actions": (8, 1), "rewards": 8, "terminals": 8, "timeouts": 8}
        for key, shape in shapes.items():
            f[key] = np.zeros(shape, bool if key.startswith(("term", "time")) else np.float32)
        f.attrs.update({} if env_id is None else {"env_id": env_id})
    with pytest.raises(UserError, match=says):
        check(str(path), env_kwargs={"gravity": 1.0})
