"""Units of actions: agents see [-1, 1] for every box of a dataset, and nothing is guessed silently."""

import json
import warnings

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mbo2o.agents.bc import BCConfig
from mbo2o.cli.data import MODES as DATA_MODES
from mbo2o.cli.main import main as cli
from mbo2o.data.actions import MODES, Actions
from mbo2o.data.dataset import TransitionDataset
from mbo2o.data.fields import check_fields
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.recipes.finetune import FinetuneConfig
from mbo2o.run.config import RunConfig
from mbo2o.store import datasets
from mbo2o.store.d4rl import read_dict
from mbo2o.store.episodes import read_episodes
from mbo2o.store.sb3 import read_sb3
from mbo2o.store.table import read_table
from mbo2o.training import Config, restore, train
from mbo2o.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")

ROWS = 12
LOW, HIGH = np.array([-0.4, 0.0, 2.0]), np.array([0.4, 3.0, 5.0])


def fields(actions):
    """Two episodes of six steps with these actions; observations count."""
    obs = np.stack([np.arange(ROWS), np.arange(ROWS) // 6], 1).astype(np.float32)
    last = np.arange(ROWS) % 6 == 5
    return {
        "observations": obs,
        "actions": actions,
        "rewards": np.ones(ROWS, np.float32),
        "terminals": last & False,
        "timeouts": last,
        "next_observations": obs + np.float32([1, 0]),
    }


def h5_file(path, x, **attrs):
    with h5py.File(path, "w") as file:
        for key, value in x.items():
            file[key] = value
        file.attrs.update(attrs)
    return path


def episodes(x):
    return [{key: v[i : i + 6] for key, v in x.items()} for i in (0, 6)]


def minari_set(x, box, name="box/test-v0"):
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [
        EpisodeBuffer(
            observations=np.append(e["observations"], e["next_observations"][-1:], 0),
            actions=e["actions"],
            rewards=e["rewards"],
            terminations=e["terminals"],
            truncations=e["timeouts"],
        )
        for e in episodes(x)
    ]
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=spaces.Box(-np.inf, np.inf, (2,)), action_space=box
    )
    return name


class Buffer:
    """What `from_sb3` reads of a replay buffer, filled by hand."""

    def __init__(self, x):
        one = {key: v[:, None] for key, v in x.items()}
        self.observations, self.next_observations = one["observations"], one["next_observations"]
        self.actions, self.rewards = one["actions"], one["rewards"]
        self.dones, self.timeouts = one["timeouts"].astype(np.float32), one["timeouts"].astype(np.float32)
        self.pos, self.full, self.n_envs = len(x["rewards"]), False, 1


def table(path, x):
    width = x["actions"].shape[1]
    names = {
        "observations": ["o0", "o1"],
        "actions": [f"a{i}" for i in range(width)],
        "rewards": "r",
        "terminals": "d",
    }
    names |= {"timeouts": "t", "next_observations": ["n0", "n1"]}
    columns = [
        x["observations"],
        x["actions"],
        x["rewards"],
        x["terminals"],
        x["timeouts"],
        x["next_observations"],
    ]
    header = ",".join(
        name for group in names.values() for name in ([group] if isinstance(group, str) else group)
    )
    rows = np.column_stack([np.asarray(c, np.float64) for c in columns])
    np.savetxt(path, rows, "%.17g", ",", header=header, comments="")
    return path, names


LOADERS = {
    "arrays": lambda x, tmp, **how: TransitionDataset.from_arrays(**x, **how),
    "dict": lambda x, tmp, **how: read_dict(x, **how),
    "episodes": lambda x, tmp, **how: read_episodes(episodes(x), **how),
    "hdf5": lambda x, tmp, **how: datasets.read(h5_file(tmp / "x.hdf5", x), **how),
    "memmap": lambda x, tmp, **how: datasets.read(h5_file(tmp / "x.hdf5", x), "memmap", **how),
    "sb3": lambda x, tmp, **how: read_sb3(Buffer(x), **how),
}
FLAT = LOADERS | {"table": lambda x, tmp, **how: read_table(*table(tmp / "x.csv", x), **how)}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    monkeypatch.setenv("MBO2O_CACHE", str(tmp_path / "cache"))


def refusal(f, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        f(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- several axes


@pytest.mark.parametrize("loader", LOADERS)
def test_actions_of_several_axes_are_flattened_in_c_order(loader, tmp_path):
    actions = np.random.default_rng(0).uniform(-1, 1, (ROWS, 2, 3)).astype(np.float32)
    made = LOADERS[loader](fields(actions), tmp_path)
    assert made.act.numpy().tobytes() == actions.reshape(ROWS, 6).tobytes()
    assert made.act_dim == 6


def test_minari_s_actions_of_several_axes_are_flattened_and_mapped_each_by_its_own_bounds():
    low, high = np.array([[-2, 0], [1, -5]], np.float32), np.array([[2, 4], [3, -4]], np.float32)
    raw = np.random.default_rng(0).uniform(low, high, (ROWS, 2, 2)).astype(np.float32)
    with pytest.warns(
        UserWarning, match=r"minari:box/test-v0: actions are mapped to \[-1, 1\] from .* \[-5, 4\]$"
    ):
        made = datasets.read(minari_set(fields(raw), spaces.Box(low, high)))
    expected = ((raw - (low + high) / 2) / ((high - low) / 2)).reshape(ROWS, 4)
    np.testing.assert_allclose(made.act, expected, atol=1e-6)


def test_bounds_may_have_the_actions_shape():
    low, high = np.zeros((2, 2)), np.array([[1.0, 2.0], [4.0, 8.0]])
    made = TransitionDataset.from_arrays(**fields(np.full((ROWS, 2, 2), 1.0)), bounds=(low, high))
    np.testing.assert_allclose(made.act[0], [1, 0, -0.5, -0.75])


# ---- the mapping


@pytest.mark.parametrize("loader", FLAT)
def test_every_loader_maps_the_box_to_the_unit_box(loader, tmp_path):
    share = np.random.default_rng(0).uniform(-1, 1, (ROWS, 3))
    share[0], share[1] = -1, 1
    raw = (LOW + HIGH) / 2 + share * (HIGH - LOW) / 2
    made = FLAT[loader](fields(raw), tmp_path, bounds=(LOW, HIGH))
    np.testing.assert_allclose(made.act, share, atol=1e-6)
    assert (made.act[0].tolist(), made.act[1].tolist()) == ([-1] * 3, [1] * 3)


@st.composite
def boxes(draw):
    """Random boxes that lie anywhere, with actions in them."""
    width = draw(st.integers(1, 4))
    number = st.floats(-1e3, 1e3, allow_subnormal=False)
    low = np.array(draw(st.lists(number, min_size=width, max_size=width)))
    size = np.array(draw(st.lists(st.floats(1e-3, 1e4), min_size=width, max_size=width)))
    share = draw(hnp.arrays(np.float64, (ROWS, width), elements=st.floats(0, 1)))
    return low, low + size, np.minimum(low + share * size, low + size)


@settings(max_examples=60, deadline=None)
@given(boxes())
def test_mapping_there_and_back_is_exact_to_a_millionth_of_the_width(case):
    low, high, raw = case
    unit = TransitionDataset.from_arrays(**fields(raw), bounds=(low, high)).act.numpy().astype(np.float64)
    back = (low + high) / 2 + unit * (high - low) / 2
    assert (np.abs(back - raw) <= 1e-6 * (high - low)).all()


@settings(max_examples=60, deadline=None)
@given(boxes(), st.sampled_from(["unit", "clip", None]), st.data())
def test_unit_data_are_untouched_bit_for_bit_in_any_environment(case, mode, data):
    low, high, raw = case
    x = data.draw(hnp.arrays(np.float32, raw.shape, elements=st.floats(-1, 1, width=32)))
    x[0] = 1  # they use the whole unit box, so that no smaller box holds them
    x[1] = -1
    how = Actions(mode, (low, high), "dataset_actions=")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        act = check_fields(fields(x), "x", units=how)["actions"]
    assert act.tobytes() == x.tobytes()
    assert how.doubt(act, [slice(0, ROWS)]) is None
    unit_box = Actions("env", (-np.ones(raw.shape[1]), np.ones(raw.shape[1])))
    assert unit_box.to_unit(x).astype(np.float32).tobytes() == x.tobytes()


# ---- doubt and refusal


DOUBTED = {
    "humanoid": ([-0.4], [0.4], 0.2, 0.4),
    "one-sided": ([0.0], [1.0], 0.1, 0.9),
    "off centre": ([0.5], [0.75], 0.5, 0.75),
    "one of two": ([-0.4, -2.0], [0.4, 2.0], -0.3, 0.3),
}
SURE = {
    "a wide box holds scaled actions, too": ([-2.0], [2.0], -0.5, 0.5),
    "the unit box": ([-1.0], [1.0], 0.1, 0.2),
    "they leave the box": ([-0.4], [0.4], -0.5, 0.3),
    "they leave it in one dimension": ([-0.4, 0.0], [0.4, 1.0], -0.3, 0.3),
}


@pytest.mark.parametrize("storage", ["ram", "memmap"])
@pytest.mark.parametrize("case", DOUBTED)
def test_actions_that_never_leave_a_small_box_are_doubted(case, storage, tmp_path):
    low, high, least, most = DOUBTED[case]
    raw = np.random.default_rng(0).uniform(least, most, (ROWS, len(low)))
    raw[0], raw[1] = least, most
    path = h5_file(tmp_path / "x.hdf5", fields(raw))
    datasets.read(path, storage)  # where no environment is known there is nothing to compare with
    box = (np.array(low), np.array(high))
    said = refusal(datasets.find(path).read, storage, Actions(None, box, "dataset_actions="))
    assert said == (
        f"{path}: 'actions' lie in [{least:g}, {most:g}], the box of this environment is [{min(low):g}, {max(high):g}]: "  # noqa: E501
        "are they raw? give dataset_actions=env if they are in its units, "
        "dataset_actions=unit if they are scaled to [-1, 1] already"
    )
    given_unit = datasets.find(path).read(storage, Actions("unit", box, "dataset_actions="))
    np.testing.assert_array_equal(given_unit.act, raw.astype(np.float32))
    mapped = datasets.find(path).read(storage, Actions("env", box, "dataset_actions="))
    np.testing.assert_allclose(mapped.act, (raw - (box[0] + box[1]) / 2) / ((box[1] - box[0]) / 2), atol=1e-6)


@pytest.mark.parametrize("case", SURE)
def test_actions_that_leave_a_small_box_are_not_doubted(case, tmp_path):
    low, high, least, most = SURE[case]
    raw = np.linspace(least, most, ROWS)[:, None].repeat(len(low), 1)
    path = h5_file(tmp_path / "x.hdf5", fields(raw))
    made = datasets.find(path).read("ram", Actions(None, (np.array(low), np.array(high)), "dataset_actions="))
    np.testing.assert_array_equal(made.act, raw.astype(np.float32))


def test_actions_outside_are_refused_with_both_ways_out():
    raw = np.linspace(-1.5, 2, ROWS)[:, None]
    said = refusal(TransitionDataset.from_arrays, **fields(raw))
    assert said == (
        "arrays: 'actions' lie in [-1.5, 2], expected [-1, 1]; if they are in the environment's own units, rescale them with "  # noqa: E501
        "bounds=(low, high); if they are a policy's unclipped outputs, clip them with clip=True"
    )
    said = refusal(check_fields, fields(raw), "x", units=Actions(None, (-2, 2), "dataset_actions="))
    assert (
        "(its box is [-2, 2]), rescale them with dataset_actions=env or dataset_actions=[LOW,HIGH];" in said
    )
    assert said.endswith("clip them with dataset_actions=clip")
    said = refusal(TransitionDataset.from_arrays, **fields(raw), bounds=(-1.5, 1.5))
    assert "lie in [-1.5, 2], expected the box [-1.5, 1.5]" in said
    assert said.endswith("give bounds=(low, high), clip=True")


@pytest.mark.parametrize("loader", FLAT)
def test_unclipped_outputs_are_clipped_and_counted(loader, tmp_path):
    raw = np.linspace(-1.5, 1.5, ROWS)[:, None].repeat(2, 1)
    outside = int((np.abs(raw) > 1).sum())
    with pytest.warns(
        UserWarning, match=f"{outside} of {raw.size} numbers in 'actions' are outside and clipped"
    ):
        made = FLAT[loader](fields(raw), tmp_path, clip=True)
    np.testing.assert_array_equal(made.act, raw.clip(-1, 1).astype(np.float32))
    (tmp_path / "y").mkdir()
    with pytest.warns(UserWarning, match="are outside and clipped"):
        made = FLAT[loader](fields(4 * raw), tmp_path / "y", bounds=(-4, 4), clip=True)
    np.testing.assert_allclose(made.act, raw.clip(-1, 1), atol=1e-6)


BAD_BOUNDS = {
    "upside down": ((1, -1), r"bounds of actions \[1, -1\] are not finite numbers with low <= high"),
    "infinite": ((-np.inf, np.inf), "not finite numbers"),
    "of another width": (([-1] * 3, [1] * 3), "'actions' have 2 dimensions, their bounds 3"),
}


@pytest.mark.parametrize("case", BAD_BOUNDS)
def test_bounds_that_are_not_finite_or_not_ordered_are_refused(case):
    bounds, said = BAD_BOUNDS[case]
    with pytest.raises(UserError, match=said):
        TransitionDataset.from_arrays(**fields(np.zeros((ROWS, 2))), bounds=bounds)


def test_an_unknown_mode_is_refused():
    assert DATA_MODES == MODES  # which the command line names without loading NumPy
    assert "dataset_actions=raw is not one of unit, env, clip, env-clip" in refusal(
        Actions, "raw", None, "dataset_actions="
    )


def test_a_minari_set_is_mapped_by_its_own_box_unless_a_mode_says_otherwise(tmp_path):
    raw = np.random.default_rng(0).uniform(-0.4, 0.4, (ROWS, 2)).astype(np.float32)
    name = minari_set(fields(raw), spaces.Box(-0.4, 0.4, (2,)))
    for storage in ("ram", "memmap", "memmap"):  # the second time out of the map, which says it again
        with pytest.warns(
            UserWarning, match=r"mapped to \[-1, 1\] from the set's own action space, \[-0.4, 0.4\]"
        ):
            made = datasets.read(name, storage)
        np.testing.assert_allclose(made.act, raw / 0.4, atol=1e-6)
        unit = datasets.find(name).read(storage, Actions("unit"))
        assert unit.act.numpy().tobytes() == raw.tobytes()


# ---- training, and the doctor


class Narrow(gym.Env):
    """Pays minus the distance of the action from 0.3; Humanoid-v5's box."""

    observation_space, action_space = (
        spaces.Box(-1, 1, (2,), np.float64),
        spaces.Box(-0.4, 0.4, (1,), np.float32),
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 2), -abs(float(action[0]) - 0.3), False, False, {}


gym.register("MboNarrow-v0", entry_point=Narrow, max_episode_steps=10)


@pytest.fixture
def raw_file(tmp_path):
    """Case: the environment's own actions, always about 0.3; the file names its environment."""
    rng, n = np.random.default_rng(0), 400
    obs, last = rng.uniform(-1, 1, (n + 1, 2)), np.arange(n) % 10 == 9
    act = np.clip(0.3 + 0.02 * rng.standard_normal((n, 1)), -0.4, 0.4).astype(np.float32)
    x = {
        "observations": obs[:-1],
        "actions": act,
        "rewards": -np.abs(act[:, 0] - 0.3),
        "terminals": last & False,
    }
    return h5_file(
        tmp_path / "raw.hdf5", x | {"timeouts": last, "next_observations": obs[1:]}, env_id="MboNarrow-v0"
    )


def cloning(path, directory, **more):
    net = MLPConfig(hidden=[16, 16])
    recipe = FinetuneConfig(
        offline=BCConfig(actor=net, actor_lr=3e-3), offline_steps=400, online_steps=0, batch=64
    )
    often = RunConfig(
        log_every=200, eval_every=400, eval_episodes=3, checkpoint_every=400, online_capacity=50
    )
    return Config(recipe=recipe, dataset=str(path), dir=str(directory), report=False, run=often, **more)


def test_training_refuses_raw_actions_and_learns_from_them_when_told(raw_file, tmp_path):
    said = refusal(train, cloning(raw_file, tmp_path / "refused"))
    assert "the box of this environment is [-0.4, 0.4]: are they raw? give dataset_actions=env" in said
    assert not (tmp_path / "refused").exists()
    directory = train(cloning(raw_file, tmp_path / "told", dataset_actions="env"))
    lines = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    final = [x["return"][0] for x in lines if x["kind"] == "eval"][-1]
    assert final > -0.5  # ten steps, each within 0.05 of 0.3; taken for scaled ones they stop at 0.12: -1.8
    run, _ = restore(directory)
    np.testing.assert_allclose(run.dataset.act.mean(), 0.3 / 0.4, atol=0.01)


def test_unit_given_silences_the_doubt(raw_file, tmp_path):
    cfg = cloning(raw_file, tmp_path / "unit", dataset_actions="unit")
    cfg.recipe.offline_steps = 5
    run, _ = restore(train(cfg))
    np.testing.assert_allclose(run.dataset.act.mean(), 0.3, atol=0.01)
    cfg.dataset_actions = "env"
    assert "dataset_actions=unit, not env" in refusal(train, cfg)


def data(capsys, *args):
    with pytest.raises(SystemExit) as e:
        cli(["data", *map(str, args)])
    out = capsys.readouterr()
    return e.value.code, out.out, out.err


def test_the_doctor_doubts_raw_actions_and_believes_a_mode(raw_file, capsys):
    code, out, _ = data(capsys, "check", raw_file, "--json")
    report = json.loads(out)
    found = {f["name"]: f for f in report["findings"]}
    assert code == 1
    assert (
        "the box of this environment is [-0.4, 0.4]: are they raw?"
        in found["actions_in_env_units"]["message"]
    )
    assert {x["verdict"] for x in report["verdicts"].values()} == {"no"}
    for mode in ("env", "unit"):
        _, out, _ = data(capsys, "check", raw_file, "--json", "--actions", mode)
        assert "actions_in_env_units" not in {f["name"] for f in json.loads(out)["findings"]}


def test_inspecting_maps_by_the_file_s_own_environment(raw_file, capsys, tmp_path):
    assert data(capsys, "inspect", raw_file, "--actions", "env")[0] == 0
    made = datasets.read(str(raw_file), actions="env")
    np.testing.assert_allclose(made.act.mean(), 0.75, atol=0.01)
    h5_file(tmp_path / "nameless.hdf5", fields(np.zeros((ROWS, 1))))
    code, _, err = data(capsys, "inspect", "nameless.hdf5", "--actions", "env")
    assert (code, err.strip()) == (
        2,
        "mbo2o: nameless.hdf5: --actions env needs the environment's box; name the environment",
    )
    h5_file(tmp_path / "wide.hdf5", fields(np.full((ROWS, 1), 1.5)))
    code, _, err = data(capsys, "check", "wide.hdf5")
    assert code == 2
    assert "rescale them with --actions env" in err
