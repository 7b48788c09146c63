"""SAC-N is SAC with N critics; EDAC's term against pairs of slopes, its second-order gradient, and whom it
teaches.
"""

from dataclasses import fields
from functools import partial

import nets
import pytest
import torch
from nets import update

from mbo2o.agents.edac import EDAC, SACN, EDACConfig, SACNConfig
from mbo2o.agents.sac import SAC, SACConfig
from mbo2o.ensemble.mlp import MLPConfig
from mbo2o.types import Spec, UserError

SMALL = MLPConfig(hidden=[16])
SMOOTH = MLPConfig(hidden=[8], activation="tanh")
LINEAR = MLPConfig(hidden=[])
batch = partial(nets.batch, n=6, obs_dim=4, act_dim=3, done=0)
make = partial(nets.make, "edac", obs_dim=4, act_dim=3)


def alignment(agent, b):
    return agent.regulariser(b, agent.q(b.obs, b.act))[1]["alignment"]


@pytest.mark.parametrize("seeds", [(), (2,)])
@pytest.mark.parametrize("n", [2, 5])
def test_the_alignment_of_equal_critics_is_n(seeds, n):
    agent = make(seeds, critics=n)
    for p in agent.critic.parameters():
        p.data.copy_(p.data.select(len(seeds), 0).unsqueeze(len(seeds)).expand_as(p))
    torch.testing.assert_close(alignment(agent, batch(seeds)), torch.full(seeds, float(n)))


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [
        ([[1, 0, 0], [0, 2, 0], [0, 0, -3]], 0.0),  # orthogonal, whatever their lengths
        ([[1, 0, 0], [-5, 0, 0]], -2.0),
        ([[1, 0, 0], [3, 0, 0], [-2, 0, 0]], -1.0),  # 2 · (1 - 1 - 1) / 2
    ],
)
def test_linear_critics(slopes, expected):
    agent = make(critics=len(slopes), critic=LINEAR)
    agent.critic.layers[0].weight.data[:, 4:, 0] = torch.tensor(slopes, dtype=torch.float32)
    torch.testing.assert_close(alignment(agent, batch()), torch.tensor(expected))


def test_term_equals_a_loop_over_pairs():
    agent, b = make((2,), critics=4, diversity=3.0), batch((2,))
    term, metrics = agent.regulariser(b, agent.q(b.obs, b.act))
    for s in range(2):
        total = 0.0
        for k in range(6):
            g = []
            for i in range(4):
                act = b.act[s, k].clone().requires_grad_()
                x = torch.cat([b.obs[s, k], act])[None]
                for layer in agent.critic.layers[:-1]:
                    x = torch.relu(x @ layer.weight[s, i] + layer.bias[s, i])
                last = agent.critic.layers[-1]
                (slope,) = torch.autograd.grad((x @ last.weight[s, i] + last.bias[s, i]).sum(), act)
                g.append(slope / slope.norm())
            total += sum(float(g[i] @ g[j]) for i in range(4) for j in range(4) if i != j) / 3
        assert metrics["alignment"][s].item() == pytest.approx(total / 6, abs=1e-4)
    torch.testing.assert_close(term.detach(), 3 * metrics["alignment"])


def test_gradient_is_of_second_order_and_right():
    """Along a random direction in the critics' weights, by finite differences in float64."""
    agent, b = make(critics=3, critic=SMOOTH).double(), batch().map(torch.Tensor.double)
    term = lambda: agent.regulariser(b, agent.q(b.obs, b.act))[0]  # noqa: E731
    params = list(agent.critic.parameters())
    found = torch.autograd.grad(term(), params, allow_unused=True)
    assert found[-1] is None  # the last bias has no say in a slope
    direction = [torch.randn_like(p) for p in params]
    slope = sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True) if g is not None)
    values = []
    for sign in (1, -1):
        for p, d in zip(params, direction, strict=True):
            p.data += sign * 1e-5 * d
        values.append(term().item())
        for p, d in zip(params, direction, strict=True):
            p.data -= sign * 1e-5 * d
    assert abs(slope) > 1e-2
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_the_term_has_gradients_for_critics_only():
    agent, b = make(), batch()
    term = agent.regulariser(b, agent.q(b.obs, b.act))[0]
    strangers = [*agent.actor.parameters(), agent.log_alpha]
    assert all(g is None for g in torch.autograd.grad(term, strangers, allow_unused=True, retain_graph=True))
    assert torch.autograd.grad(term, agent.critic.layers[0].weight)[0].abs().max() > 0


def test_update_drives_critics_apart():
    """Where rewards give all the same slope, plain critics align; EDAC's keep apart."""
    aligned = {}
    for diversity in (0.0, 1.0):
        torch.manual_seed(0)
        agent, b = make(critics=3, diversity=diversity, critic_lr=1e-2), batch(n=32)
        b.rew, b.done = 3 * b.act.sum(-1), torch.ones(32)
        for _ in range(40):
            aligned[diversity] = update(agent, b)["alignment"].item()
    assert aligned[0.0] > 2.5
    assert aligned[1.0] < 0


def test_flat_critics_give_finite_losses():
    agent, b = make(), batch()
    agent.critic.layers[0].bias.data.fill_(-100.0)  # no unit is ever active
    metrics = update(agent, b)
    assert metrics["alignment"] == 0
    assert all(p.isfinite().all() for p in agent.critic.parameters())


@pytest.mark.parametrize("critics", [1, 0])
def test_one_critic_is_refused(critics):
    with pytest.raises(UserError, match=f"critics={critics}.*two or more"):
        make(critics=critics)


@pytest.mark.parametrize("cls", [SACN, EDAC])
def test_is_sac_with_n_critics(cls):
    """SAC-N bit for bit, and EDAC with η = 0: whatever the strides of its second-order gradients, which Adam
    must heed.
    """
    shared = {"critics": 4, "actor": SMALL, "critic": SMALL}
    cfg = SACNConfig(**shared) if cls is SACN else EDACConfig(**shared, diversity=0.0)
    plain, agent = SAC(Spec(4, 3, (2,)), SACConfig(**shared)), cls(Spec(4, 3, (2,)), cfg)
    agent.load_state_dict(plain.state_dict())
    batches = [batch((2,)) for _ in range(4)]
    for a in (plain, agent):
        torch.manual_seed(1)
        for b in batches:
            update(a, b)
    assert all(torch.equal(x, agent.state_dict()[k]) for k, x in plain.state_dict().items())


def test_target_and_actor_take_the_smallest_of_n():
    agent = SACN(Spec(4, 3), SACNConfig(actor=SMALL, critic=SMALL, backup_entropy=False))
    low = torch.randn(10)
    for net in (agent.critic, agent.target):
        net.layers[-1].weight.data.zero_()
        net.layers[-1].bias.data.copy_(low[:, None, None])
    b = batch()
    torch.testing.assert_close(agent.value(b.obs, b.act), low.min().expand(6))
    torch.testing.assert_close(agent.backup(b)[0], b.rew + 0.99 * low.min())


def test_online_drops_the_diversity():
    cfg = EDACConfig(critics=7, diversity=5.0, gamma=0.9, actor=SMALL)
    online = cfg.after_switch()
    assert type(online) is SACNConfig
    assert all(getattr(online, f.name) == getattr(cfg, f.name) for f in fields(SACNConfig))
    assert SACNConfig(critics=7).after_switch().critics == 7
