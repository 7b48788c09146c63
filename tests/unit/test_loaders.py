"""One counter environment, whose observations say which episode and which step they are, through every
format and back.
"""

import csv
import re
import warnings

import h5py
import numpy as np
import pytest
import torch
from nets import update

from mbo2o.data.dataset import TransitionDataset
from mbo2o.store import datasets
from mbo2o.store.d4rl import read_dict
from mbo2o.store.episodes import read_episodes
from mbo2o.store.minari import write_minari
from mbo2o.store.sb3 import read_sb3
from mbo2o.store.table import read_table
from mbo2o.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

LIMIT = 5
EPISODES = [(5, False), (3, True), (5, False), (5, False), (1, True), (4, True), (5, True), (2, None)]
"""Steps and ending: terminated, or not (at the time limit); the last is cut by the end of the record."""
OBS, ACT = ["episode is", "step is", "other"], ["u", "v"]
NEXT = [f"next {name}" for name in OBS]


def counter(timeouts=True, next_obs=True) -> dict[str, np.ndarray]:
    rows = [(e, t, t == n - 1, end) for e, (n, end) in enumerate(EPISODES) for t in range(n)]
    episode, step = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    x = {
        "observations": np.stack([episode, step, -episode], 1).astype(np.float32),
        "actions": np.stack([step / 10, -episode / 10], 1).astype(np.float32),
        "rewards": (10 * episode + step).astype(np.float32),
        "terminals": np.array([last and end is True for _, _, last, end in rows]),
    }
    if timeouts:
        x["timeouts"] = np.array([last and end is False for _, _, last, end in rows])
    if next_obs:
        x["next_observations"] = np.stack([episode, step + 1, -episode], 1).astype(np.float32)
    return x


FULL = counter()
ENDS = FULL["terminals"] | FULL["timeouts"]
EPISODE, STEP = FULL["observations"][:, 0].astype(int), FULL["observations"][:, 1].astype(int)


def misaligned(ds: TransitionDataset) -> int:
    """Usable rows whose next observation is not the next step of the same episode, or whose act or rew is
    another's.
    """
    b = ds.rows(ds.index)
    episode, step = b.obs[:, 0], b.obs[:, 1]
    expected = torch.stack([episode, step + 1, -episode], 1)
    act = torch.stack([step / 10, -episode / 10], 1)
    wrong = (
        (b.next_obs != expected).any(1) | ~torch.isclose(b.act, act).all(1) | (b.rew != 10 * episode + step)
    )
    return int(wrong.sum())


def refusal(f, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        f(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------- one record, many formats


def hdf5(path, x, attrs=None):
    """As D4RL writes: gzip, extra keys, a metadata group; nothing of our own writer."""
    with h5py.File(path, "w") as file:
        for key, column in x.items():
            file.create_dataset(key, data=column, compression="gzip")
        file["metadata/algorithm"] = np.bytes_(b"SAC")
        file["metadata/policy/fc0/weight"] = np.zeros((2, 2))
        file.attrs.update(attrs or {})
    return path


def split(x) -> list[dict[str, np.ndarray]]:
    return [{key: column[e == EPISODE] for key, column in x.items()} for e in range(len(EPISODES))]


def table(x) -> dict[str, np.ndarray]:
    """Columns by name."""
    columns = dict(zip(OBS + ACT, np.concatenate([x["observations"], x["actions"]], 1).T, strict=True))
    columns |= {"r": x["rewards"], "done": x["terminals"], "ep": EPISODE, "t": STEP}
    if "timeouts" in x:
        columns["cut"] = x["timeouts"]
    if "next_observations" in x:
        columns |= dict(zip(NEXT, x["next_observations"].T, strict=True))
    return columns


def mapped(x, *more) -> dict[str, object]:
    names = {"observations": OBS, "actions": ACT, "rewards": "r", "terminals": "done", "timeouts": "cut"}
    names |= {"next_observations": NEXT, "episode": "ep", "step": "t"}
    return {key: names[key] for key in (*x, *more)}


def csv_file(path, columns, delimiter=",", order=None):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        rows = list(zip(*columns.values(), strict=True))
        writer.writerows(rows if order is None else [rows[i] for i in order])
    return path


def parquet_file(path, columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({key: list(x) for key, x in columns.items()}), path)
    return path


def minari_set(x, name="counter/test-v0"):
    """What `minari.DataCollector` stores; it always has the last observation: NaN here stands for one that
    got lost.
    """
    import minari
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for e in split(x):
        last = (
            e["next_observations"][-1:] if "next_observations" in e else np.full((1, 3), np.nan, np.float32)
        )
        buffers.append(
            EpisodeBuffer(
                observations=np.concatenate([e["observations"], last]),
                actions=e["actions"],
                rewards=e["rewards"],
                terminations=e["terminals"],
                truncations=e.get("timeouts", np.zeros(len(e["rewards"]), bool)),
            )
        )
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=Box(-np.inf, np.inf, (3,)), action_space=Box(-1, 1, (2,))
    )
    return name


def from_limit(load):
    """Where neither timeouts nor next observations are there, the limit has to be known."""
    return lambda x, tmp: load(
        x, tmp, {} if {"timeouts", "next_observations"} & set(x) else {"max_episode_steps": LIMIT}
    )


def t_plus_one(x):
    """Episodes of T + 1 observations; without next observations, of T."""
    episodes = split(x)
    for e in episodes:
        if "next_observations" in e:
            e["observations"] = np.concatenate([e["observations"], e.pop("next_observations")[-1:]])
    return episodes


FORMATS = {
    "d4rl": from_limit(lambda x, tmp, attrs: datasets.read(hdf5(tmp / "x.hdf5", x, attrs))),
    "arrays": from_limit(lambda x, tmp, attrs: TransitionDataset.from_arrays(**x, attrs=attrs)),
    "dict": from_limit(lambda x, tmp, attrs: read_dict(x | {"infos/qpos": np.zeros(3)}, attrs)),
    "csv": from_limit(lambda x, tmp, attrs: read_table(csv_file(tmp / "x.csv", table(x)), mapped(x), attrs)),
    "csv with episodes": lambda x, tmp: read_table(csv_file(tmp / "x.csv", table(x)), mapped(x, "episode")),
    "csv with steps": lambda x, tmp: read_table(csv_file(tmp / "x.csv", table(x)), mapped(x, "step")),
    "parquet": lambda x, tmp: read_table(parquet_file(tmp / "x.parquet", table(x)), mapped(x, "episode")),
    "episodes": lambda x, tmp: read_episodes(split(x)),
    "episodes of T + 1": lambda x, tmp: read_episodes(t_plus_one(x)),
    "minari": lambda x, tmp: datasets.read(minari_set(x)),
}
APART = {"csv with episodes", "parquet", "episodes", "episodes of T + 1", "minari"}
"""Formats that keep episodes apart, so that the last one has an end, too: its record's."""
CONCLUDE = {"d4rl", "arrays", "dict", "csv", "csv with steps"}
"""Formats that do not, in which ends have to be concluded where timeouts are missing; a warning counts them.
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.mark.parametrize("next_obs", [True, False], ids=["next", "no next"])
@pytest.mark.parametrize("timeouts", [True, False], ids=["timeouts", "no timeouts"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name, timeouts, next_obs, tmp_path, store):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module="minari")
        ds = FORMATS[name](counter(timeouts, next_obs), tmp_path)
    concluded = not timeouts and name in CONCLUDE
    source = "next_observations" if next_obs else f"max_episode_steps={LIMIT}"
    source = "'step'" if name == "csv with steps" else source
    n = int((FULL["timeouts"][:-1]).sum())
    assert [str(w.message).partition(": ")[2] for w in said] == [
        f"no timeouts: {n} episode ends follow from {source}, beside the terminations"
    ] * concluded
    assert misaligned(ds) == 0
    assert ds.ends_known
    for got, key in [
        (ds.obs, "observations"),
        (ds.act, "actions"),
        (ds.rew, "rewards"),
        (ds.terminated, "terminals"),
    ]:
        np.testing.assert_array_equal(got, FULL[key])
    np.testing.assert_array_equal(ds.truncated[:-1], FULL["timeouts"][:-1])
    assert ds.truncated[-1] == (name in APART)
    np.testing.assert_array_equal(ds.episode, EPISODE)
    known = np.ones_like(ENDS)
    if not next_obs:
        known = ~ENDS
        known[-1] = False
    np.testing.assert_array_equal(ds.valid_next, known)
    np.testing.assert_array_equal(ds.index, np.flatnonzero(known))
    np.testing.assert_array_equal(ds.next_obs[known], FULL["next_observations"][known])
    assert ds.next_obs[~known].isnan().all()


def test_cuts_that_timeouts_hide_are_found():
    """The flags are there, and some are not set."""
    x = counter()
    x["timeouts"][:5] = False
    with pytest.warns(
        UserWarning, match="arrays: 1 rows without a flag are not followed by their own next observation"
    ):
        ds = TransitionDataset.from_arrays(**x)
    np.testing.assert_array_equal(ds.truncated, FULL["timeouts"])
    np.testing.assert_array_equal(ds.episode, EPISODE)
    x = counter()
    x["next_observations"][2] = np.nan  # lost, but nothing says that an episode ends there
    ds = TransitionDataset.from_arrays(**x)
    np.testing.assert_array_equal(ds.episode, EPISODE)
    assert ds.valid_next.sum() == len(EPISODE) - 1


def test_timeouts_count_where_rounding_breaks_every_row():
    x = counter()
    x["next_observations"] += 1e-5
    with pytest.warns(UserWarning, match="arrays: 2[0-9] rows without a flag .* timeouts are believed"):
        ds = TransitionDataset.from_arrays(**x)
    np.testing.assert_array_equal(ds.truncated, FULL["timeouts"])


def test_a_warning_says_that_cuts_may_be_invisible():
    with pytest.warns(UserWarning, match="cannot be seen"):
        ds = TransitionDataset.from_arrays(**counter(False, False))
    assert misaligned(ds) == FULL["timeouts"].sum()


def test_rows_without_a_next_observation_are_kept_for_cloning():
    from mbo2o.agents import make_agent
    from mbo2o.agents.bc import BCConfig
    from mbo2o.ensemble.mlp import MLPConfig
    from mbo2o.types import Spec

    ds = TransitionDataset.from_arrays(**counter(next_obs=False)).with_seeds((2,))
    torch.manual_seed(0)
    every = ds.every_row().sample(500)
    assert set(every.rew.flatten().tolist()) == set(FULL["rewards"].tolist())
    assert set(ds.sample(500).rew.flatten().tolist()) == set(FULL["rewards"][ds.valid_next].tolist())
    assert every.next_obs.isnan().any()
    assert ds.sample(500).next_obs.isfinite().all()
    agent = make_agent(BCConfig(actor=MLPConfig(hidden=[8])), Spec(3, 2, (2,)))
    agent.prepare(ds.every_row().rows(ds.every_row().index))
    assert update(agent, every)["actor_loss"].isfinite().all()
    assert all(p.isfinite().all() for p in agent.actor.parameters())


# ---------------------------------------------------------------------- D4RL's variants


def test_a_d4rl_kitchen_file_is_read(tmp_path):
    """Its `infos` is an array, flags are floats, and every demonstration ends in a terminal."""
    x = counter(False, False)
    x["terminals"] = ENDS.astype(np.float32)
    path = hdf5(
        tmp_path / "kitchen.hdf5",
        {key: column.astype(np.float64) for key, column in x.items()} | {"infos": EPISODE},
    )
    with pytest.warns(UserWarning, match="cannot be seen"):
        ds = datasets.read(path)
    assert misaligned(ds) == 0
    assert (len(ds), ds.n_rows) == ((~ENDS).sum() - 1, len(ENDS))


def test_a_d4rl_adroit_file_is_read(tmp_path):
    """Timeouts, groups of states and a policy; float64 and uint8 here, for files that went through other
    hands.
    """
    x = counter(next_obs=False)
    x = {key: column.astype(np.uint8 if column.dtype == bool else np.float64) for key, column in x.items()}
    more = {
        "infos/qpos": np.zeros((30, 36)),
        "infos/hand_qpos": np.zeros((30, 30)),
        "infos/action_log_std": np.zeros((30, 2)),
    }
    ds = datasets.read(hdf5(tmp_path / "pen.hdf5", x | more))
    assert misaligned(ds) == 0
    assert ds.packed.dtype == torch.float32
    assert ds.attrs == {"metadata/algorithm": "SAC"}


@pytest.mark.parametrize("load", ["file", "dict"])
def test_d4rl_replay_buffers_hold_columns(tmp_path, load):
    x = counter() | {"infos/action_log_probs": np.zeros(30), "metadata/iteration": np.int32(500)}
    x = {
        key: column[:, None] if key in ("rewards", "terminals", "timeouts") else column
        for key, column in x.items()
    }
    if load == "file":
        iteration = x.pop("metadata/iteration")
        path = hdf5(tmp_path / "replay.hdf5", x)
        with h5py.File(path, "a") as file:
            file["metadata/iteration"] = iteration
    ds = datasets.read(path) if load == "file" else read_dict(x)
    assert misaligned(ds) == 0
    assert ds.valid_next.all()
    assert ds.attrs["metadata/iteration"] == 500


def test_a_dict_with_an_unknown_name_is_refused():
    x = counter()
    x["timeout"] = x.pop("timeouts")
    assert "'timeout' is not a field; did you mean 'timeouts'?" in refusal(read_dict, x)
    assert refusal(read_dict, {}).startswith("dict: 'observations' is missing")


def maze2d(n=400):
    """generate_maze2d_datasets.py: after a waypoint `s` is not looked up again, though the step was taken."""
    rng, state = np.random.default_rng(0), np.zeros(4)
    s, rows = state, []
    for t in range(n):
        act, done = rng.uniform(-1, 1, 2), t % 37 == 36
        after = state + 0.01 * rng.normal(size=4)
        rows.append((s, act, done, state, after))
        state = after
        if not done:
            s = state
    return [np.array(column, dtype=np.float32) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_d4rl_maze2d_has_stale_observations(tmp_path, version):
    obs, act, done, before, after = maze2d()
    none = np.zeros(len(done))
    flags = {"terminals": none, "timeouts": done} if version == "v1" else {"terminals": done}
    x = {
        "observations": obs,
        "actions": act,
        "rewards": none,
        "infos/goal": obs[:, :2],
        "infos/qpos": obs[:, :2],
    } | flags
    with warnings.catch_warnings():
        warnings.simplefilter("error" if version == "v1" else "ignore")
        ds = datasets.read(hdf5(tmp_path / "maze2d.hdf5", x))
    np.testing.assert_array_equal(ds.obs[ds.index], before[ds.index])
    np.testing.assert_array_equal(ds.next_obs[ds.index], after[ds.index])
    assert len(ds) == 400 - 2 * 10 - 1  # at each waypoint the row, and the stale one below


def antmaze(late, n=600, limit=50):
    """Resets to the start, every fourth from so near that no leap shows; the flag stands `late` rows below
    the last step.
    """
    rng, xy, rows = np.random.default_rng(0), np.zeros(2), []
    for t in range(n):
        after = xy + np.array([0.3, 0.0])
        rows.append((np.append(xy, rng.normal(size=27)), after))
        xy = after if (t + 1) % limit else np.zeros(2) if (t + 1) // limit % 4 else after + 0.1
    obs, after = (np.array(x, dtype=np.float32) for x in zip(*rows, strict=True))
    true = np.arange(n) % limit == limit - 1
    flags = np.roll(true, late)
    flags[: max(late, 0)] = False
    x = {
        "observations": obs,
        "actions": obs[:, 2:10].clip(-1, 1),
        "rewards": np.zeros(n),
        "terminals": np.zeros(n),
    }
    return x | {"timeouts": flags, "infos/goal": obs[:, :2]}, after


@pytest.mark.parametrize("late", [0, 1, -1])
def test_d4rl_antmaze_timeouts_out_of_step_are_found(tmp_path, late):
    x, after = antmaze(late)
    path = hdf5(tmp_path / "antmaze.hdf5", x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ds = datasets.read(path)
    assert len(said) == (late != 0)
    if late:
        word = {1: "late", -1: "early"}[late]
        assert re.search(
            rf"{path}: timeouts are out of step: at 9 of 9 resets the flag is one row {word}",
            str(said[0].message),
        )
    np.testing.assert_allclose(ds.next_obs[ds.index, :2], after[ds.index])
    assert len(ds) == 600 - 12 * (1 if late == 0 else 2) + (late == 1)  # the last flag fell off the end


# ---------------------------------------------------------------------- episodes


def test_episodes_may_have_minaris_names():
    episodes = [
        {
            "observations": e["observations"].tolist(),
            "actions": e["actions"].tolist(),
            "rewards": e["rewards"].tolist(),
            "terminations": e["terminals"].tolist(),
            "truncations": e["timeouts"].tolist(),
            "infos": {},
        }
        for e in t_plus_one(counter())
    ]
    ds = read_episodes(episodes, {"env_id": "Counter-v0"})
    assert misaligned(ds) == 0
    assert ds.valid_next.all()
    assert ds.attrs == {"env_id": "Counter-v0"}


def spoil(key, change, episode=3):
    def spoiled():
        episodes = t_plus_one(counter())
        episodes[episode][key] = change(episodes[episode].get(key))
        return episodes

    return spoiled


@pytest.mark.parametrize(
    ("episodes", "says"),
    [
        (list, "episodes: the list is empty"),
        (
            spoil("observations", lambda x: x[:-2]),
            r"episodes\[3\]: 4 observations for 5 actions, expected 5, or one more",
        ),
        (spoil("rewards", lambda x: x[1:]), r"episodes\[3\]: 'rewards' has 4 rows for 5 actions"),
        (spoil("rewards", lambda x: None), r"episodes\[3\]: 'rewards' is missing"),
        (spoil("terminals", lambda x: True), r"episodes\[3\]: 'terminals' is one number"),
        (spoil("terminated", lambda x: [True] * 5), r"episodes\[3\]: 'terminated' is not a field"),
        (
            spoil("actions", lambda x: x[:, :1]),
            r"episodes\[3\]: 'actions' has rows of shape \(1,\), those of episodes\[0\] \(2,\)",
        ),
        (
            spoil("next_observations", lambda x: np.zeros((5, 3))),
            r"episodes\[3\]: 6 observations for 5 actions",
        ),
        (spoil("timeouts", lambda x: x + 2), "'timeouts' holds values other than 0 and 1"),
    ],
)
def test_bad_episodes_are_refused_in_one_line(episodes, says):
    assert re.search(says, refusal(read_episodes, episodes()))


# ---------------------------------------------------------------------- tables


def shuffled():
    return np.random.default_rng(0).permutation(30)


def test_rows_out_of_order_are_sorted_with_a_warning(tmp_path):
    order = np.argsort(STEP, kind="stable")  # all first steps, all second ones, ...
    path = csv_file(tmp_path / "x.csv", table(FULL), order=order)
    with pytest.warns(UserWarning, match="rows are out of order; sorted by episode and step"):
        ds = read_table(path, mapped(counter(), "episode", "step"))
    assert misaligned(ds) == 0
    np.testing.assert_array_equal(ds.rew, FULL["rewards"])
    for columns in (mapped(counter(False, False), "episode", "step"), mapped(counter(), "episode", "step")):
        with pytest.warns(UserWarning, match="out of order"):
            ds = read_table(csv_file(path, table(FULL), order=shuffled()), columns)
        assert misaligned(ds) == 0
        assert ds.n_rows == 30


def test_an_episode_that_comes_back_is_refused(tmp_path):
    path = csv_file(tmp_path / "x.csv", table(FULL), order=[*range(2, 30), 0, 1])
    message = refusal(read_table, path, mapped(counter(False, False), "episode"))
    assert re.search(
        "in line 30 an episode goes on after another one; sort the table, or map 'step', too", message
    )


def test_missing_steps_cut_and_double_ones_are_refused(tmp_path):
    path = csv_file(tmp_path / "x.csv", table(FULL), order=[i for i in range(30) if i not in (2, 10)])
    with pytest.warns(UserWarning, match="2 times steps are missing"):
        ds = read_table(path, mapped(counter(False, False), "episode", "step"))
    assert misaligned(ds) == 0
    assert len(ds) == (~ENDS).sum() - 1 - 2 * 2
    path = csv_file(path, table(FULL), order=[0, 1, 1, *range(2, 30)])
    message = refusal(read_table, path, mapped(FULL, "episode", "step"))
    assert "step 1 is there twice in one episode (line 3 and line 4)" in message


def test_steps_of_a_clock_may_be_uneven(tmp_path):
    columns = table(FULL) | {"t": np.round(STEP * 0.1 + 0.03 * np.sin(np.arange(30)), 4)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = read_table(
            csv_file(tmp_path / "x.csv", columns), mapped(counter(False, False), "episode", "step")
        )
    assert (misaligned(ds), len(ds)) == (0, (~ENDS).sum() - 1)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_files_of_spreadsheets_are_read(tmp_path, delimiter):
    """Delimiters, a byte order mark, quotes, text for flags and episodes, empty cells, a blank line, columns
    of no concern.
    """
    columns = table(FULL)
    known = ~ENDS
    columns |= {name: [x if k else "" for x, k in zip(columns[name], known, strict=True)] for name in NEXT}
    columns["done"] = [str(x).upper() for x in columns["done"]]
    columns["ep"] = [f"run {e}, again" for e in EPISODE]
    columns = {"note": ['said: "no"'] * 30} | columns
    path = csv_file(tmp_path / "x.csv", columns, delimiter)
    path.write_text("\ufeff" + path.read_text() + "\n", encoding="utf-8")
    ds = read_table(path, mapped(FULL, "episode"))
    assert misaligned(ds) == 0
    np.testing.assert_array_equal(ds.episode, EPISODE)
    np.testing.assert_array_equal(ds.valid_next, known)


def test_parquet_columns_may_be_lists(tmp_path):
    x = counter()
    columns = {"obs": x["observations"], "act": x["actions"], "r": x["rewards"], "done": x["terminals"]}
    columns["ep"] = np.array([f"run {9 - e}" for e in EPISODE])
    path = parquet_file(tmp_path / "x.parquet", columns)
    names = {"observations": "obs", "actions": "act", "rewards": "r", "terminals": "done", "episode": "ep"}
    ds = read_table(path, names)
    assert misaligned(ds) == 0
    np.testing.assert_array_equal(ds.episode, EPISODE)
    ragged = parquet_file(path, columns | {"obs": [[1.0]] * 29 + [[1.0, 2.0]]})
    assert "not a readable Parquet file" in refusal(read_table, ragged, names)
    path.write_bytes(b"PAR1")
    assert "not a readable Parquet file" in refusal(read_table, path, names)


def test_without_the_extra_parquet_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    assert "pip install 'mbo2o[parquet]'" in refusal(read_table, tmp_path / "x.parquet", mapped(FULL))


BAD_TABLES = {
    "wrong column": (None, {"rewards": "R"}, r"no column 'R'; did you mean 'r'\? found episode is, step is"),
    "nearest": (
        None,
        {"observations": ["episode is", "steps is", "other"]},
        "no column 'steps is'; did you mean 'step is'",
    ),
    "unknown field": (None, {"obs": OBS}, "columns has no use for 'obs'; did you mean 'observations'"),
    "missing field": (None, {"rewards": None}, "columns does not say where 'rewards' is"),
    "two for one": (None, {"rewards": ["r", "t"]}, "columns maps 'rewards' to 2 columns, expected one"),
    "no columns": (None, {"observations": []}, "columns maps 'observations' to 0 columns"),
    "text": (
        ("r", "nan?"),
        {},
        r"line 6, column 'r': 'nan\?' is not a number",
    ),
    "empty cell": (
        ("u", ""),
        {},
        "line 6, column 'u': an empty cell is not a number",
    ),
    "not a flag": (("done", "2"), {}, "'terminals' holds values other than 0 and 1"),
    "text for a flag": (
        ("done", "maybe"),
        {},
        "line 6, column 'done': 'maybe' is not a number",
    ),
    "nan": (("other", "nan"), {}, "'observations' is not a finite float32 in line 6, column 'other'"),
    "half a next one": (("next other", ""), {}, "'next_observations' is neither finite nor all NaN"),
    "actions": (
        ("v", "7.5"),
        {},
        r"'actions' lie in \[-0.7, 7.5\], expected \[-1, 1\]; .* bounds=\(low, high\).* clip=True",
    ),
    "step": (("t", "inf"), {"step": "t"}, "step column holds values that are not numbers"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_refused_in_one_line_that_names_the_column(tmp_path, case):
    cell, names, says = BAD_TABLES[case]
    columns = table(FULL)
    if cell:
        columns[cell[0]] = [cell[1] if i == 4 else x for i, x in enumerate(columns[cell[0]])]
    path = csv_file(tmp_path / "bad.csv", columns)
    names = {key: x for key, x in (mapped(FULL) | names).items() if x is not None}
    message = refusal(read_table, path, names)
    assert message.startswith(f"{path}: ")
    assert re.search(says, message)


def test_bad_csv_files_are_refused_in_one_line(tmp_path):
    path = csv_file(tmp_path / "x.csv", table(FULL))
    good = path.read_text().splitlines()

    def says(*lines):
        path.write_text("\n".join(lines))
        return refusal(read_table, path, mapped(FULL))

    assert "line 3 has 14 cells, expected 13" in says(*good[:2], good[2] + ",1", *good[3:])
    assert "line 3 has 12 cells, expected 13" in says(*good[:2], good[2].rpartition(",")[0], *good[3:])
    assert "2 columns are called 'r'" in says(good[0].replace(",t,", ",r,"), *good[1:])
    assert "'observations' has no rows" in says(good[0])
    assert "no column 'episode is'; found none" in says("")
    path.write_bytes(b"\x89PNG\xff\xfe")
    assert "not text in UTF-8" in refusal(read_table, path, mapped(FULL))
    assert "no such file" in refusal(read_table, tmp_path / "none.csv", mapped(FULL))
    assert "not text in UTF-8" in refusal(datasets.read, path)


# ---------------------------------------------------------------------- Stable-Baselines3


class ReplayBuffer:
    """As stable_baselines3.common.buffers stores steps (2.9); that one stands in its place where it is
    installed.
    """

    def __init__(
        self, size, obs_dim, act_dim, n_envs, optimize_memory_usage=False, handle_timeout_termination=True
    ):
        self.buffer_size = max(size // n_envs, 1)
        self.n_envs, self.pos, self.full = n_envs, 0, False
        self.optimize_memory_usage, self.handle_timeout_termination = (
            optimize_memory_usage,
            handle_timeout_termination,
        )
        shape = (self.buffer_size, n_envs)
        self.observations = np.zeros((*shape, obs_dim), np.float32)
        if not optimize_memory_usage:
            self.next_observations = np.zeros((*shape, obs_dim), np.float32)
        self.actions = np.zeros((*shape, act_dim), np.float32)
        self.rewards, self.dones, self.timeouts = (np.zeros(shape, np.float32) for _ in range(3))

    def add(self, obs, next_obs, action, reward, done, infos):
        self.observations[self.pos] = obs
        if self.optimize_memory_usage:
            self.observations[(self.pos + 1) % self.buffer_size] = next_obs
        else:
            self.next_observations[self.pos] = next_obs
        self.actions[self.pos], self.rewards[self.pos], self.dones[self.pos] = action, reward, done
        if self.handle_timeout_termination:
            self.timeouts[self.pos] = [info.get("TimeLimit.truncated", False) for info in infos]
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0


def real_buffer(size, obs_dim, act_dim, n_envs, **options):
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    from gymnasium.spaces import Box

    spaces = Box(-np.inf, np.inf, (obs_dim,)), Box(-1, 1, (act_dim,))
    return buffers.ReplayBuffer(size, *spaces, device="cpu", n_envs=n_envs, **options)


def played(make, size, n_envs, steps, **options):
    """Environment k has episodes k·100, k·100 + 1, ... with the lengths and endings of EPISODES from the
    k-th on.
    """
    buffer, kept = make(size, 3, 2, n_envs, **options), [[] for _ in range(n_envs)]
    at = [(0, 0)] * n_envs
    for _ in range(steps):
        rows = []
        for k, (e, t) in enumerate(at):
            n, end = EPISODES[:-1][(e + k) % 7]
            name, last = 100 * k + e, t == n - 1
            obs, next_obs = [name, t, -name], [name, t + 1, -name]
            rows.append(
                (
                    obs,
                    next_obs,
                    [t / 10, -name / 1000],
                    10 * name + t,
                    last,
                    {"TimeLimit.truncated": last and not end},
                )
            )
            kept[k].append((*obs, 10 * name + t, last and end, last and not end))
            at[k] = (e + 1, 0) if last else (e, t + 1)
        *columns, infos = zip(*rows, strict=True)
        buffer.add(*(np.array(x, np.float32) for x in columns), list(infos))
    return buffer, [np.array(x, dtype=np.float64) for x in kept]


def sb3_misaligned(ds) -> int:
    b = ds.rows(ds.index)
    name, t = b.obs[:, 0], b.obs[:, 1]
    wrong = (b.next_obs != torch.stack([name, t + 1, -name], 1)).any(1) | (b.rew != 10 * name + t)
    return int((wrong | ~torch.isclose(b.act, torch.stack([t / 10, -name / 1000], 1)).all(1)).sum())


BUFFERS = pytest.mark.parametrize("make", [ReplayBuffer, real_buffer], ids=["stand-in", "real"])


@BUFFERS
@pytest.mark.parametrize(
    ("n_envs", "size", "steps"), [(1, 40, 23), (3, 120, 23), (3, 60, 47), (1, 20, 20), (2, 2, 5)]
)
@pytest.mark.parametrize("shared", [False, True])
def test_sb3_environments_are_told_apart_and_rings_unrolled(make, n_envs, size, steps, shared):
    options = {"optimize_memory_usage": shared, "handle_timeout_termination": not shared}
    buffer, kept = played(make, size, n_envs, steps, **options)
    per_env = min(steps, buffer.buffer_size - (shared and steps >= buffer.buffer_size))
    if per_env == 0:  # one slot, which the latest next observation took
        with pytest.warns(UserWarning, match="time limits"):
            assert "has no rows" in refusal(read_sb3, buffer)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ds = read_sb3(buffer, {"env_id": "Counter-v0"})
    rows = np.concatenate([x[-per_env:] for x in kept])
    np.testing.assert_array_equal(ds.obs, rows[:, :3])
    np.testing.assert_array_equal(ds.rew, rows[:, 3])
    assert sb3_misaligned(ds) == 0
    np.testing.assert_array_equal(np.diff(ds.episode) > 0, np.diff(rows[:, 0]) != 0)
    ends, latest = rows[:, 4:].any(1), np.arange(len(rows)) % per_env == per_env - 1
    np.testing.assert_array_equal(ds.terminated, ends if shared else rows[:, 4])
    np.testing.assert_array_equal(
        ds.truncated, latest & ~ends if shared else rows[:, 5].astype(bool) | latest & ~ends
    )
    np.testing.assert_array_equal(ds.valid_next, ~ends | latest if shared else np.ones_like(ends))
    assert [bool(re.search("cannot tell time limits", str(w.message))) for w in said] == [True] * shared
    assert ds.attrs == {"env_id": "Counter-v0"}


def test_sb3_copies_the_buffer():
    buffer, _ = played(ReplayBuffer, 40, 2, 15)
    ds = read_sb3(buffer)
    before = ds.packed.clone()
    buffer.observations[:] = buffer.next_observations[:] = buffer.rewards[:] = 7
    assert torch.equal(ds.packed, before)


def test_sb3_finds_the_reset_that_no_flag_shows():
    """A second call of `learn` resets the environment in the middle of an episode."""
    buffer, _ = played(
        ReplayBuffer, 100, 1, 15
    )  # two steps into the fourth episode, whose flag will be missing
    for t in range(3):
        obs, next_obs = [[50, t, -50]], [[50, t + 1, -50]]
        buffer.add(obs, next_obs, [[t / 10, -0.05]], [500 + t], [False], [{}])
    with pytest.warns(UserWarning, match="1 rows without a flag"):
        ds = read_sb3(buffer)
    assert (sb3_misaligned(ds), len(ds)) == (0, 18)
    assert ds.truncated.nonzero().flatten().tolist() == [4, 12, 14, 17]


def test_sb3_goals_are_flattened():
    buffer, _ = played(ReplayBuffer, 40, 2, 15)
    goal = np.full((20, 2, 1), 9, np.float32)
    for name in ("observations", "next_observations"):
        x = getattr(buffer, name)
        setattr(buffer, name, {"observation": x, "achieved_goal": x[..., :1], "desired_goal": goal})
    ds = read_sb3(buffer)
    assert ds.obs_dim == 4
    assert (ds.obs[:, 3] == 9).all()


def test_bad_sb3_buffers_are_refused_in_one_line():
    buffer, _ = played(ReplayBuffer, 40, 2, 15)
    load = read_sb3
    assert "has no 'observations'" in refusal(load, "buffer.pkl")
    buffer.actions = buffer.actions.astype(np.int64)
    assert "actions are int64; only continuous control" in refusal(load, buffer)
    buffer, _ = played(ReplayBuffer, 40, 2, 15)
    buffer.actions *= 9
    assert "'actions' lie in" in refusal(load, buffer)
    assert "has no rows" in refusal(load, ReplayBuffer(40, 3, 2, 1))
    pixels = ReplayBuffer(40, 3, 2, 1)
    pixels.observations = pixels.next_observations = np.zeros((40, 1, 3, 8, 8), np.uint8)
    pixels.pos = 3
    assert "'observations' has shape (3, 3, 8, 8), expected (rows, features)" in refusal(load, pixels)
    del buffer.dones
    assert "has no 'dones'" in refusal(load, buffer)


# ---------------------------------------------------------------------- export, and Minari over the network


def test_minari_reads_back_what_we_write(store):
    import minari

    ds = TransitionDataset.from_arrays(**counter(), attrs={"env_id": "Counter-v0", "seed": 3})
    write_minari(ds, "counter/ours-v0")
    theirs = minari.load_dataset("counter/ours-v0")
    assert (theirs.total_episodes, theirs.total_steps) == (len(EPISODES), 30)
    for e, (n, end) in zip(theirs.iterate_episodes(), EPISODES, strict=True):
        assert len(e.observations) == n + 1
        np.testing.assert_array_equal(e.observations[:, 1], np.arange(n + 1))
        assert (e.observations[:, 0] == e.id).all()
        np.testing.assert_allclose(e.actions[:, 0], np.arange(n) / 10, rtol=1e-6)
        np.testing.assert_array_equal(e.rewards, 10 * e.id + np.arange(n))
        assert e.terminations.tolist() == [False] * (n - 1) + [end is True]
        assert e.truncations.tolist() == [False] * (n - 1) + [end is not True]
    assert theirs.observation_space.shape == (3,)
    assert theirs.env_spec is None  # Counter-v0 cannot be made
    assert "env_id: Counter-v0, seed: 3" in theirs.storage.metadata["description"]
    back = datasets.read("minari:counter/ours-v0")
    assert torch.equal(back.packed, ds.packed)
    assert torch.equal(back.episode, ds.episode)


def test_a_minari_export_holds_nan_where_an_observation_is_unknown(store):
    ds = TransitionDataset.from_arrays(**counter(next_obs=False))
    with pytest.warns(UserWarning, match="8 of 8 episodes end in an observation of NaN"):
        write_minari(ds, "counter/ours-v0")
    back = datasets.read("counter/ours-v0")
    assert back.packed.numpy().tobytes() == ds.packed.numpy().tobytes()
    assert torch.equal(back.terminated, ds.terminated)  # no termination was lost
    x = counter()
    x["next_observations"][2] = np.nan  # in the middle of an episode
    with pytest.warns(UserWarning, match="1 of 9 episodes"):
        write_minari(TransitionDataset.from_arrays(**x), "counter/gap-v0")
    back = datasets.read("counter/gap-v0")
    assert (misaligned(back), len(back), back.n_rows) == (0, 29, 30)


def test_a_minari_export_stores_the_environment_if_it_fits(store):
    import minari

    rng = np.random.default_rng(0)
    x = {
        "observations": rng.normal(size=(6, 2)),
        "actions": rng.uniform(-1, 1, (6, 1)),
        "rewards": np.zeros(6),
    }
    x |= {"terminals": np.zeros(6), "timeouts": np.arange(6) == 5}
    for name, env_id, fits in [("one", "MountainCarContinuous-v0", True), ("two", "Pendulum-v1", False)]:
        with pytest.warns(UserWarning, match="NaN"):
            write_minari(TransitionDataset.from_arrays(**x, attrs={"env_id": env_id}), f"{name}/x-v0")
        assert (minari.load_dataset(f"{name}/x-v0").env_spec is not None) == fits
    assert datasets.read("one/x-v0").attrs["env_id"] == "MountainCarContinuous-v0"


def test_a_minari_export_is_whole_or_not_there(store, monkeypatch):
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    ds = TransitionDataset.from_arrays(**counter())
    write_minari(ds, "counter/ours-v0")
    assert re.search(
        r"minari:counter/ours-v0: exists already, at .*counter/ours-v0",
        refusal(write_minari, ds, "counter/ours-v0"),
    )
    assert "ids are namespace/name-v0" in refusal(write_minari, ds, "no version")
    for fault in (KeyboardInterrupt, OSError("disk\nfull")):

        def failing(self, episodes, fault=fault):
            raise fault

        monkeypatch.setattr(HDF5Storage, "update_episodes", failing)
        with pytest.raises(UserError if isinstance(fault, OSError) else fault) as caught:
            write_minari(ds, "counter/other-v0")
        assert "\n" not in str(caught.value)
        assert not (store / "counter/other-v0").exists()
    assert len(datasets.read("counter/ours-v0")) == 30


def test_a_set_that_is_not_there_is_downloaded(store, monkeypatch):
    import minari

    asked = []
    monkeypatch.setattr(
        minari, "download_dataset", lambda name: (asked.append(name), minari_set(counter(), name))
    )
    for _ in range(2):
        assert misaligned(datasets.read("minari:counter/far-v0")) == 0
    assert asked == ["counter/far-v0"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (ConnectionError("no route\nto host"), "no route to host"),
        (ValueError("Couldn't find any version for dataset counter/far"), "Couldn't find any version"),
        (ImportError('pip install "minari[hf]"'), r"pip install 'mbo2o\[download\]'"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_without_a_network_it_says_where_to_put_it(store, monkeypatch, fault, says):
    import minari

    def failing(name):
        raise fault

    monkeypatch.setattr(minari, "download_dataset", failing)
    message = refusal(datasets.read, "counter/far-v0")
    assert re.search(
        rf"cannot be fetched \({says}.*copy the set to {store}/counter/far-v0.*MINARI_DATASETS_PATH", message
    )


def by_d4rl(path) -> dict[str, np.ndarray]:
    """What D4RL's `OfflineEnv.get_dataset` makes of a file."""
    keys = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: keys.append(name) if isinstance(item, h5py.Dataset) else None)
        return {key: file[key][:] for key in keys}


def by_d3rlpy(x) -> list[dict[str, np.ndarray]]:
    """What d3rlpy's `MDPDataset` makes of that: episodes up to each terminal or timeout; a rest without
    either is dropped.
    """
    ends = np.flatnonzero(x["terminals"] + x["timeouts"])
    parts = [slice(a, b + 1) for a, b in zip(np.append(0, ends[:-1] + 1), ends, strict=True)]
    return [
        {key: x[key][part] for key in ("observations", "actions", "rewards", "terminals")} for part in parts
    ]


def test_d4rl_and_d3rlpy_read_what_we_write(tmp_path):
    datasets.write(read_episodes(split(counter())), tmp_path / "x.hdf5")
    x = by_d4rl(tmp_path / "x.hdf5")
    for key in ("observations", "actions", "rewards", "terminals"):
        assert x[key].squeeze().shape == FULL[key].shape
    episodes = by_d3rlpy(x)
    assert len(episodes) == len(EPISODES)
    for i, (e, (n, end)) in enumerate(zip(episodes, EPISODES, strict=True)):
        np.testing.assert_array_equal(e["observations"][:, :2], [(i, t) for t in range(n)])
        np.testing.assert_array_equal(e["rewards"], 10 * i + np.arange(n))
        assert e["terminals"][-1] == (end is True)


def test_the_installed_d3rlpy_reads_what_we_write(tmp_path):
    dataset = pytest.importorskip("d3rlpy.dataset")
    datasets.write(read_episodes(split(counter())), tmp_path / "x.hdf5")
    x = by_d4rl(tmp_path / "x.hdf5")
    theirs = dataset.MDPDataset(
        **{key: x[key] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    )
    for e, mine in zip(theirs.episodes, by_d3rlpy(x), strict=True):
        np.testing.assert_array_equal(e.observations, mine["observations"])
        np.testing.assert_array_equal(e.actions, mine["actions"])
        np.testing.assert_array_equal(np.ravel(e.rewards), mine["rewards"])
        assert e.terminated == mine["terminals"][-1]
