import gymnasium
import pytest
from survival import COUNTER, Counter, small

from mbo2o.training import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run without interruption."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    train(small(directory))
    return directory


@pytest.fixture
def counter(monkeypatch):
    gymnasium.register(COUNTER, entry_point=Counter)
    monkeypatch.setattr(Counter, "made", 0)
    yield Counter
    gymnasium.registry.pop(COUNTER)
