"""The online Snell rule of `depth_reg`: what it may look at, what it learns, and how good it gets.

Its theory: theory/depth_regularizer.md.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odn_hybrid.stopping import backward_induction
from odn_hybrid.training.objectives import stopping_rule
from odn_hybrid.training.objectives.stopping_rule import StoppingRule


def evidence(n: int, exits: int = 4, classes: int = 5, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Logits whose evidence for the right class adds up: calibrated at every exit; and the labels."""
    rng = np.random.default_rng(seed)
    labels, strength = rng.integers(0, classes, n), 1.2
    news = strength * rng.standard_normal((n, exits, classes))
    news[np.arange(n), :, labels] += strength**2
    logits = torch.tensor(np.cumsum(news, axis=1), dtype=torch.float32)
    return list(logits.unbind(1)), torch.tensor(labels)


def noise(exits: int, batch: int, classes: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [4 * torch.randn(batch, classes, generator=generator) for _ in range(exits)]


def even(exits: int) -> Tensor:
    return torch.linspace(1 / exits, 1.0, exits)


def taught(logits: list[Tensor], lam: float, *, batches: int = 150, batch: int = 128) -> StoppingRule:
    """A rule after some batches of inputs drawn from these."""
    rule, rng = StoppingRule(len(logits), lam), np.random.default_rng(1)
    for _ in range(batches):
        rows = torch.tensor(rng.integers(0, len(logits[0]), batch))
        rule.shares([z[rows] for z in logits], even(len(logits)))
    return rule


def exit_taken(rule: StoppingRule, logits: list[Tensor]) -> np.ndarray:
    """Exit from 0 at which each input stops."""
    return rule.stops(logits).int().numpy().argmax(axis=0)


def sure_of(chance: Tensor, classes: int = 4) -> Tensor:
    """Logits that give the first class the chance, the others the rest in equal parts."""
    rest = ((1 - chance) / (classes - 1)).log()[:, None].expand(-1, classes - 1)
    return torch.cat([chance.log()[:, None], rest], dim=1)


# --- what holds for any outputs ---------------------------------------------------------------------


@given(
    exits=st.integers(1, 5), batch=st.integers(1, 6), classes=st.integers(1, 4),
    lam=st.floats(0, 1e6), seed=st.integers(0, 50),
)  # fmt: skip
def test_shares_are_those_of_the_decisions_and_sum_to_one(exits, batch, classes, lam, seed):
    rule = StoppingRule(5, lam)
    for step in range(4):
        logits = noise(exits, batch, classes, seed + step)
        stops = rule.stops(logits)
        shares = rule.shares(logits, even(exits))
        assert stops.shape == (exits, batch) and bool(stops[-1].all())
        assert shares.shape == (exits,) and bool((shares >= 0).all())
        assert shares.sum().item() == pytest.approx(1, abs=1e-6)
        wanted = np.bincount(stops.int().numpy().argmax(axis=0), minlength=exits) / batch
        np.testing.assert_allclose(shares.numpy(), wanted, atol=1e-6)
    assert bool(rule.saved.isfinite().all())


@settings(max_examples=30)
@given(lam=st.floats(0, 2), seed=st.integers(0, 100), changed=st.integers(1, 3))
def test_labels_and_deeper_exits_do_not_enter_a_decision(lam, seed, changed):
    """Neither method takes labels; and exits before the changed one decide as they did."""
    logits, _ = evidence(200)
    rule = taught(logits, lam, batches=5)
    other = [*logits[:changed], *noise(4 - changed, 200, 5, seed)]
    assert torch.equal(rule.stops(other)[:changed], rule.stops(logits)[:changed])
    one, two = rule.shares(logits, even(4)), taught(logits, lam, batches=5).shares(other, even(4))
    assert torch.equal(one[:changed], two[:changed])


def test_no_gradient_and_nothing_to_train():
    logits = [z.requires_grad_() for z in evidence(10)[0]]
    rule = StoppingRule(4, 0.1)
    assert not rule.shares(logits, even(4)).requires_grad
    assert not list(rule.parameters())


@given(seed=st.integers(0, 100), lam=st.floats(0, 2))
def test_the_order_of_inputs_does_not_matter(seed, lam):
    logits, _ = evidence(64, seed=seed)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    one, two = StoppingRule(4, lam), StoppingRule(4, lam)
    for _ in range(3):
        shares = one.shares(logits, even(4))
        assert torch.allclose(shares, two.shares([z[order] for z in logits], even(4)), atol=1e-6)
    assert torch.allclose(one.saved, two.saved, atol=1e-5)
    assert torch.equal(one.seen, two.seen)


def test_a_rule_taken_up_from_its_state_goes_on_alike():
    logits, _ = evidence(500)
    rule = taught(logits, 0.2, batches=20)
    again = StoppingRule(4, 0.2)
    assert not torch.equal(again.stops(logits), rule.stops(logits))
    again.load_state_dict(rule.state_dict())
    for _ in range(3):
        assert torch.equal(again.stops(logits), rule.stops(logits))
        assert torch.equal(again.shares(logits, even(4)), rule.shares(logits, even(4)))


def test_two_classes_and_one():
    two, one = noise(2, 50, 2, 0), noise(2, 50, 1, 0)
    for logits in (two, one):
        rule = taught(logits, 10.0, batches=3)
        assert (exit_taken(rule, logits) == 0).mean() > 0.9
    # A single class is always right: going on saves nothing, so it stops at once, at any price.
    assert (exit_taken(taught(one, 0.0, batches=3), one) == 0).all()


# --- what it learns ---------------------------------------------------------------------------------


def test_nobody_stops_before_something_was_learnt():
    logits, _ = evidence(100)
    assert StoppingRule(4, 5.0).shares(logits, even(4)).tolist() == [0, 0, 0, 1]


def test_it_learns_in_training_only():
    logits, _ = evidence(100)
    rule = taught(logits, 1.0)
    before = {name: value.clone() for name, value in rule.state_dict().items()}
    rule.eval().shares(logits, even(4))
    assert all(torch.equal(value, before[name]) for name, value in rule.state_dict().items())
    rule.train().shares(logits, even(4))
    assert not torch.equal(rule.seen, before["seen"])


def test_at_a_large_price_all_stop_at_the_first_exit():
    logits, _ = evidence(1000)
    assert (exit_taken(taught(logits, 100.0, batches=50), logits) == 0).mean() > 0.99


def test_without_a_price_one_goes_on_where_that_is_expected_to_help():
    """Exit 2 is always sure; exit 1 is so on every other input, and never surer than exit 2."""
    first = torch.tensor([0.4, 0.9999]).repeat(100)
    logits = [sure_of(first), sure_of(torch.full((200,), 0.99))]
    stops = taught(logits, 0.0).stops(logits)[0]
    assert not bool(stops[first < 0.5].any()) and bool(stops[first > 0.5].all())


def test_a_higher_price_stops_earlier():
    logits, _ = evidence(2000)
    costs = [even(4).numpy()[exit_taken(taught(logits, lam), logits)].mean() for lam in (0.02, 0.1, 0.5, 2)]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1] + 0.3


def test_a_rule_that_stops_everybody_learns_that_going_on_pays():
    """Exit 2 learns although nobody reaches it, and exit 1 from it: the trap of learned gates is none."""
    doubtful, sure = sure_of(torch.full((100,), 0.4)), sure_of(torch.full((100,), 0.99))
    rule = StoppingRule(3, 0.1)
    for _ in range(10):
        shares = rule.shares([doubtful, doubtful, doubtful], even(3))
    assert shares.tolist() == [1, 0, 0]
    for _ in range(20):
        shares = rule.shares([doubtful, doubtful, sure], even(3))
    assert shares.tolist() == [0, 0, 1]


def test_exits_that_come_later_are_learnt_and_change_what_is_known_before():
    logits, _ = evidence(1000, seed=3)
    rule, rng = StoppingRule(4, 0.05), np.random.default_rng(0)
    for m in (1, 2, 3, 4):
        for step in range(120):
            rows = torch.tensor(rng.integers(0, 1000, 128))
            shares = rule.shares([z[rows] for z in logits[:m]], even(4)[:m])
            assert len(shares) == m
            if step == 0 and m > 2:
                assert shares[m - 2] == 0  # of the exit that was the last nothing is known yet
    late, fresh = exit_taken(rule, logits), exit_taken(taught(logits, 0.05), logits)
    paid = {who: expected(logits, taken, 0.05) for who, taken in (("late", late), ("fresh", fresh))}
    assert (late == 3).any() and paid["late"] <= 1.02 * paid["fresh"]


def tops(logits: list[Tensor]) -> np.ndarray:
    """Two largest probabilities, (inputs, exits, 2)."""
    return torch.stack([z.softmax(1).topk(2, dim=1).values for z in logits], dim=1).double().numpy()


def expected(logits: list[Tensor], taken: np.ndarray, lam: float) -> float:
    """Mean of 1 - p and price where each input stops."""
    lost = 1 - tops(logits)[np.arange(len(taken)), taken, 0]
    return float((lost + lam * even(len(logits)).numpy()[taken]).mean())


@pytest.mark.parametrize("lam", [0.03, 0.3, 1.0])
def test_nearly_as_good_as_the_library_s_backward_induction(lam):
    """At most 2 % above it on the same expected losses and margins, and better than any one depth."""
    logits, _ = evidence(10_000, exits=5, classes=10)
    paid = expected(logits, exit_taken(taught(logits, lam, batches=300), logits), lam)
    two, costs = tops(logits), even(5).double().numpy()
    best = backward_induction(1 - two[..., 0], two[..., 0] - two[..., 1], costs, price=lam, caution=0.0).value
    assert 0.98 * best < paid <= 1.02 * best
    assert paid < (1 - two[..., 0] + lam * costs).mean(axis=0).min()


def binned_induction(logits: list[Tensor], lam: float) -> tuple[np.ndarray, np.ndarray]:
    """What stopping saves in each bin of each exit, (exits - 1, bins), NaN where nobody is; counts.

    The rule's bins, otherwise on its own: plain means over all inputs, from the last exit back.
    """
    two = tops(logits)
    margin = np.clip(two[..., 0] - two[..., 1], 1e-6, 1 - 1e-6)
    place = (np.log(margin / (1 - margin)) / StoppingRule.RANGE + 1) / 2 * StoppingRule.BINS
    bins = np.clip(place.astype(int), 0, StoppingRule.BINS - 1)
    lost, costs = 1 - two[..., 0], even(len(logits)).double().numpy()
    value, rows, counts = lost[:, -1], [], []
    for k in range(len(logits) - 2, -1, -1):
        going = value + lam * (costs[k + 1] - costs[k])
        count = np.bincount(bins[:, k], minlength=StoppingRule.BINS)
        with np.errstate(invalid="ignore"):
            saved = np.bincount(bins[:, k], going - lost[:, k], minlength=StoppingRule.BINS) / count
        value = np.where(saved[bins[:, k]] >= 0, lost[:, k], going)
        rows.insert(0, saved)
        counts.insert(0, count)
    return np.array(rows), np.array(counts)


@pytest.mark.parametrize("lam", [0.05, 0.5])
def test_the_averages_tend_to_the_binned_backward_induction(lam, monkeypatch):
    """With no bound on the memory they come as near as means do, and decide alike away from ties."""
    monkeypatch.setattr(StoppingRule, "HORIZON", float("inf"))
    logits, _ = evidence(300)
    saved, counts = binned_induction(logits, lam)
    rule = taught(logits, lam, batches=300, batch=300)
    found = rule.saved.double().numpy()
    there = counts >= 8
    assert there.sum() > 25
    assert np.abs(found - saved)[there].max() < 0.02
    clear = there & (np.abs(saved) > 0.02)
    assert clear.sum() > 15 and ((found >= 0) == (saved >= 0))[clear].all()
    assert not rule.seen.numpy()[counts == 0].any()


def test_with_a_memory_the_averages_stay_within_their_bound(monkeypatch):
    """One bin at exit 1; going on loses 0.1 or 0.7, by chance. Mean square around the mean: var / 2H."""
    monkeypatch.setattr(StoppingRule, "HORIZON", 50.0)
    rng, squares = np.random.default_rng(0), []
    first, deeper = sure_of(torch.full((20,), 0.6)), torch.tensor([0.9, 0.3])
    rule = StoppingRule(2, 0.0)
    mean, variance = (0.1 + 0.7) / 2 - 0.4, 0.3**2
    for step in range(1500):
        rule.shares([first, sure_of(deeper[rng.integers(0, 2, 20)])], even(2))
        if step >= 20:
            squares.append((float(rule.saved[rule.seen > 0]) - mean) ** 2)
    bound = variance / (2 * 50)
    assert 0.6 * bound < np.mean(squares) < 1.1 * bound


# --- several processes ------------------------------------------------------------------------------


class Meeting:
    """What the rule uses of torch.distributed, for two threads that stand for processes."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(2, timeout=60), list[Tensor]()

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, mine: Tensor) -> None:
        self.given.append(mine.clone())
        self.barrier.wait()
        mine.copy_(self.given[0] + self.given[1])
        if self.barrier.wait() == 0:
            self.given.clear()
        self.barrier.wait()


@pytest.mark.parametrize("whole", [False, True])
def test_two_processes_agree_with_one(whole, monkeypatch):
    """Whether each sees its own part of a batch (three and seven of ten inputs), or all of it."""
    logits, _ = evidence(300)
    batches = torch.stack(logits).split(10, dim=1)
    alone = StoppingRule(4, 0.1)
    wanted = [alone.shares(list(batch), even(4)) for batch in batches]
    assert len({tuple(shares.tolist()) for shares in wanted}) > 5

    def one(rank: int) -> tuple[StoppingRule, list[Tensor]]:
        rule, found = StoppingRule(4, 0.1), []
        for batch in batches:
            mine = batch if whole else (batch[:, :3], batch[:, 3:])[rank]
            found.append(rule.shares(list(mine), even(4), whole=whole))
        return rule, found

    monkeypatch.setattr(stopping_rule, "dist", Meeting())
    with ThreadPoolExecutor(2) as both:
        answers = list(both.map(one, (0, 1)))
    for rule, found in answers:
        assert torch.allclose(torch.stack(found), torch.stack(wanted), atol=1e-6)
        assert torch.allclose(rule.saved, alone.saved, atol=1e-5) and torch.equal(rule.seen, alone.seen)
    assert torch.equal(answers[0][0].saved, answers[1][0].saved)
