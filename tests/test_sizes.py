"""Every study has three sizes: what its arms would run, without running it."""

import pytest

from mbo2o.cli.main import main, parser
from mbo2o.cli.study import arms_of, of_checkout, studies
from mbo2o.types import UserError
from studies import ledger
from studies.measured import SIZES

ON = {**ledger.ON, "offline": "hopper-medium-v5", "parity": "hopper-medium-v5"}
ON["mopo"] = ON["moore"]
OTHER = [
    ("enoto", "--experiment", x) for x in ("td3bc-mid", "lapo-mid", "switch=td3bc-enoto", "switch=lapo-enoto")
]


def arms(*command):
    return arms_of(parser().parse_args(["study", *command]))


def learners(recipe):
    """The agents of a recipe that learn from data, or from nothing."""
    return [x for x in (getattr(recipe, name, None) for name in ("offline", "agent")) if x]


def nets(agent):
    return [getattr(agent, x).hidden for x in ("actor", "critic", "cvae") if hasattr(agent, x)]


@pytest.mark.parametrize("study", studies())
def test_every_study_has_three_sizes_or_says_which_are_missing(study):
    module = of_checkout(f"studies.{study}")
    missing = getattr(module, "MISSING", "")
    for size in SIZES[1:]:
        if size in getattr(module, "LARGER", {}):
            assert len(arms(study, ON[study], "--size", size)) > 3
        else:
            assert size in missing
            with pytest.raises(UserError, match=f"no size {size}"):
                arms(study, ON[study], "--size", size)
    assert len(arms(study, ON[study])) > 3


MID = [(x, ON[x], "--size", "mid") for x in studies() if x != "parity"]
MID += [(study, ON[study], *more) for study, *more in OTHER[:2]]


@pytest.mark.parametrize("command", MID, ids=" ".join)
def test_mid_has_the_papers_nets_and_batches_and_a_tenth_of_their_updates(command):
    for name, arm in arms(*command).items():
        recipe = arm.recipe
        for agent in learners(recipe):
            assert all(len(h) >= 2 and min(h) >= 256 for h in nets(agent)), name
        assert recipe.batch == 256, name
        if hasattr(recipe, "offline_steps"):
            assert recipe.offline_steps >= 100_000, name
        if steps := getattr(recipe, "online_steps", 0):
            begun = getattr(recipe, "random_steps", 0)
            quarter = 4 if name == "redq" else 1  # as many updates in a quarter of the steps
            assert quarter * (steps + begun) >= 50_000, name
        critics = getattr(recipe, "critics", None) or getattr(learners(recipe)[0], "critics", 2)
        if (
            command[0] in ("enoto", "wsrl")
            and name not in ("kept", "kept-data", "freed")
            and "keep" not in name
        ):
            assert critics == 10, name


def test_paper_has_the_presets_as_they_are():
    found = arms("methods", "hopper-medium-v5", "--size", "paper", "--seeds", "5")
    assert (found["wsrl"].recipe.offline_steps, found["wsrl"].recipe.utd) == (250_000, 4)
    assert found["iql"].recipe.offline.actor_decay_steps == found["iql"].recipe.offline_steps == 1_000_000
    assert found["enoto"].recipe.critics == 10
    assert found["enoto"].recipe.offline.critic.hidden == [256, 256, 256]
    assert found["calql"].recipe.offline.weight == 10.0
    assert found["scratch"].recipe.agent.critics == 10
    assert {x.seeds for x in found.values()} == {5}
    assert {x.dataset for name, x in found.items() if name not in ("sac", "scratch", "mbpo")} == {
        "hopper-medium-v5"
    }
    # equal budgets online, whatever a paper had
    assert {getattr(x.recipe, "online_steps", 300_000) or 300_000 for x in found.values()} == {300_000}
    methods = of_checkout("studies.methods")
    jobs = of_checkout("studies.results").jobs_of(methods, found, list(found))
    starts = {name: job.start for name, job in jobs.items() if job.start}
    assert starts["cql"] != starts["cql-sac"] != starts["wsrl"]  # other presets are other offline phases
    learned = arms("offline", "hopper-medium-v5", "--size", "paper")
    assert learned["edac"].recipe.offline_steps == 3_000_000
    assert learned["lapo"].recipe.batch == 512
    assert learned["td3bc"].recipe.offline.actor.hidden == [256, 256]
    obac = arms("obac", "Hopper-v5", "--size", "paper")
    assert (obac["obac"].recipe.online_steps, obac["sac"].recipe.agent.critic.hidden) == (
        4_000_000,
        [512, 512],
    )
    moore = arms("moore", "hopper-medium-replay-v5", "--size", "paper")
    assert (moore["priority"].recipe.dynamics.members, moore["priority"].recipe.rollouts) == (7, 50_000)


def test_the_ledger_s_commands_compose():
    commands = {
        ledger.command_for(c, size) for c in ("A1", "E1", "F1", "D7", "M8", "O1", "W1") for size in SIZES
    }
    for command in commands:
        words = command.split()[2:]
        assert len(arms(*words)) > 3, command


def test_a_size_that_an_experiment_contradicts_is_refused(capsys):
    with pytest.raises(SystemExit) as done:
        main(["study", "enoto", "x.hdf5", "--size", "mid", "--experiment", "td3bc-small"])
    assert done.value.code == 2
    assert "is of the size small, not mid" in capsys.readouterr().err
