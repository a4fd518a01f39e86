"""The expansion rules on made-up accuracy curves: when to go deeper, stop, cool down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odn_hybrid.config import ChoiceConfig, ExpansionConfig
from odn_hybrid.training.procedure.expansion import MIN_COOLDOWN_LOOKS, MIN_LOOK_STEPS, Expansion
from odn_hybrid.training.procedure.progress import Look


def rules(target=None, tolerance=0.005, exits=4, steps=100, plain=False, **options):
    choice = ChoiceConfig(target_accuracy=target, tolerance=tolerance)
    macs = [10.0 * m for m in range(1, exits + 1)]
    return Expansion(
        ExpansionConfig(**options), choice, exits=exits, steps_per_epoch=steps, epoch_macs=macs, plain=plain
    )


def play(expansion, curve, limit=2000):
    """Run the rules on `curve(exit, epochs trained)`; returns the final progress and the phases seen."""
    progress, trained, seen = expansion.first(), {}, []
    for _ in range(limit):
        if progress.phase == "done":
            return progress, seen
        active = expansion.active(progress)
        for k in range(1, active + 1):
            trained[k] = trained.get(k, 0) + expansion.share(progress)
        seen.append((progress.phase, progress.current, active))
        done = expansion.count(progress, expansion.share(progress), 1.0)
        accuracies = [curve(k, trained.get(k, 0)) for k in range(1, active + 1)]
        progress = expansion.observe(done, Look.plain(accuracies)) if expansion.looks(done) else done
    pytest.fail("the procedure did not end")


def saturating(best):
    return lambda k, epochs: best[k - 1] * (1 - 0.5 ** (epochs + 1))


def test_target_reached_at_the_first_depth_never_trains_deeper():
    progress, seen = play(rules(target=0.98), saturating([0.99, 0.992, 0.993, 0.994]))
    assert progress.current == 1
    assert progress.phase == "done"
    grown = [active for phase, _, active in seen if phase == "expand"]
    assert max(grown) == 2, "the current exit and one look-ahead"
    assert all(active == 1 for phase, _, active in seen if phase in ("settle", "cooldown"))


def test_target_missed_at_shallow_depths_expands_one_by_one():
    progress, seen = play(rules(target=0.98), saturating([0.90, 0.95, 0.985, 0.99]))
    assert progress.current == 3
    order = [current for phase, current, _ in seen if phase == "expand"]
    assert order == sorted(order)
    assert set(order) == {1, 2, 3}


def test_a_shallower_exit_that_catches_up_is_taken():
    """It can go back: exit 1 reaches the goal while exit 2 is being grown."""

    def curve(k, epochs):
        return 0.99 if k == 1 and epochs > 8 else 0.9

    progress, _ = play(rules(target=0.98), curve)
    assert progress.current == 1


def test_unreachable_target_ends_with_the_whole_network():
    progress, _ = play(rules(target=0.999), saturating([0.9, 0.91, 0.92, 0.93]))
    assert progress.current == 4


def test_without_a_target_the_reference_is_trained_to_the_end():
    progress, seen = play(rules(), saturating([0.9, 0.93, 0.95, 0.96]))
    assert progress.current == 4
    assert next(phase for phase, _, _ in seen) == "warmup"
    assert {active for phase, _, active in seen if phase in ("settle", "cooldown")} == {4}


def test_plain_objective_trains_the_whole_network_from_the_start():
    progress, seen = play(rules(plain=True), saturating([0.9, 0.9, 0.9, 0.9]))
    assert all(active == 4 for _, _, active in seen)
    assert progress.current == 4


def test_costs_are_counted_by_what_was_active():
    progress, seen = play(rules(target=0.98, warmup_epochs=0.25), saturating([0.99] * 4))
    shares = [0.25 if phase == "warmup" else 1.0 for phase, _, _ in seen]
    assert progress.train_macs == pytest.approx(
        sum(10.0 * active * share for (_, _, active), share in zip(seen, shares, strict=True))
    )
    assert sum(progress.by_depth.values()) == pytest.approx(sum(shares))


def test_warmup_longer_than_an_epoch_ends_with_a_fraction():
    _, seen = play(rules(target=0.9, warmup_epochs=2.5), saturating([0.99] * 4))
    assert [phase for phase, _, _ in seen].count("warmup") == 3


def test_rate_rises_stays_and_falls_to_zero():
    expansion = rules(target=0.98, warmup_epochs=2.0)
    progress = expansion.first()
    assert expansion.rate(progress, 0.5) == pytest.approx(0.25)
    settled, _ = play(expansion, saturating([0.99] * 4))
    cooling = expansion._cool(settled)
    assert expansion.rate(cooling, 0.0) == 1.0
    last = expansion.count(cooling, 1.0, 0.0)
    rates = [expansion.rate(cooling, x) for x in (0.0, 0.5, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert expansion.rate(last, cooling.cooldown_epochs) == 0.0


def test_small_data_sets_are_looked_at_every_fifty_steps():
    expansion = rules(steps=7)
    assert expansion.look_every * 7 >= MIN_LOOK_STEPS
    assert expansion.cooldown_length(expansion.first()) >= MIN_COOLDOWN_LOOKS * expansion.look_every


@given(
    best=st.lists(st.floats(0.1, 1.0), min_size=4, max_size=4),
    target=st.one_of(st.none(), st.floats(0.2, 1.0)),
    limit=st.floats(200, 3000),
    looks=st.integers(6, 60),
)
def test_budgets_hold_for_every_curve(best, target, limit, looks):
    """`max_train_macs` is never exceeded by more than the phase that was due, and the fit always ends."""
    expansion = rules(target=target, tolerance=0.0, max_train_macs=limit, max_looks=looks)
    progress, seen = play(expansion, saturating(best))
    least = 10.0 + 10.0 * 4 * (1 + MIN_COOLDOWN_LOOKS)  # warm-up, one look and the shortest cooldown
    assert progress.train_macs <= max(limit, least) + 1e-6
    assert len(seen) <= looks + MIN_COOLDOWN_LOOKS + 1


@pytest.mark.parametrize("late", range(31, 34))
def test_a_budget_holds_where_the_search_goes_back(late: int) -> None:
    """The cooldown of a shallower exit, which more epochs have trained, is no longer than what is left."""
    expansion = rules(target=0.8, tolerance=0.0, start=3, look_ahead=0, max_epochs=40, max_looks=1000)
    progress = expansion.first()
    while progress.phase != "done":
        progress = expansion.count(progress, expansion.share(progress), 0.0)
        if expansion.looks(progress):
            first = 0.8 if progress.epoch >= late else 0.5  # reaches the goal when exit 4 is being grown
            third = 0.5 + 0.001 * min(progress.epoch, 26)
            seen = [first, 0.5, third, 0.6][: expansion.active(progress)]
            progress = expansion.observe(progress, Look.plain(seen))
    assert progress.current == 1 and progress.by_depth["4"] > 1
    assert progress.epoch <= 40


def test_the_plain_objective_trains_the_whole_network_without_a_warm_up_too() -> None:
    expansion = rules(target=0.2, plain=True, warmup_epochs=0.0)
    progress, seen = play(expansion, saturating([0.5] * 4))
    assert {phase for phase, _, _ in seen} == {"settle", "cooldown"}
    assert progress.current == 4
