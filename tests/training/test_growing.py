"""`expansion.decide: test`: leaving a depth early, stopping early, going back; and how often it errs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from odn_hybrid.config import ChoiceConfig, ExpansionConfig
from odn_hybrid.stopping import look_level
from odn_hybrid.training.procedure.expansion import Expansion
from odn_hybrid.training.procedure.growing import Growing
from odn_hybrid.training.procedure.progress import Look, Progress

IMAGES = 4000


def rules(kind: type[Expansion] = Growing, target: float | None = None, **options: Any) -> Expansion:
    return kind(
        ExpansionConfig(warmup_epochs=0, decide="test", **options),
        ChoiceConfig(target_accuracy=target, tolerance=0.01),
        exits=4,
        steps_per_epoch=100,
        epoch_macs=[10.0 * m for m in range(1, 5)],
    )


def look(accuracies: list[float], n: int = IMAGES) -> Look:
    """Exits with these accuracies on images of rising difficulty: a better one misses nothing."""
    rank = (np.arange(n) + 0.5) / n
    return Look.of(rank[:, None] < np.array(accuracies)[None, :])


def play(
    procedure: Expansion, curve: Callable[[int, int], float], n: int = IMAGES
) -> tuple[Progress, list[tuple[str, int]]]:
    """Run on `curve(exit, epochs it trained)`; the end, and (phase, current) of every epoch."""
    progress, trained, seen = procedure.first(), dict.fromkeys(range(1, 5), 0), []
    while progress.phase != "done":
        assert len(seen) < 500
        active = procedure.active(progress)
        seen.append((progress.phase, progress.current))
        for k in range(1, active + 1):
            trained[k] += 1
        progress = procedure.count(progress, 1.0, 1.0)
        if procedure.looks(progress):
            progress = procedure.observe(
                progress, look([curve(k, trained[k]) for k in range(1, active + 1)], n)
            )
    return progress, seen


def saturating(best: list[float], pace: float = 0.5) -> Callable[[int, int], float]:
    return lambda k, epochs: best[k - 1] * (1 - pace**epochs)


def test_counts_of_a_look_are_of_pairs() -> None:
    right = np.array([[1, 1], [1, 0], [0, 1], [0, 1], [0, 0]], dtype=bool)
    found = Look.of(right)
    assert found.accuracies == (0.4, 0.6) and found.n == 5
    assert found.lost == ((0, 1), (2, 0))


def test_a_depth_that_cannot_reach_the_goal_is_left_before_its_patience() -> None:
    slow = saturating([0.85, 0.99, 0.995, 0.995], 0.4)
    patient, by_patience = play(rules(Expansion, target=0.98, patience=8), slow)
    tested, by_test = play(rules(target=0.98, patience=8), slow)
    assert tested.current == patient.current == 2
    assert by_test.count(("expand", 1)) < by_patience.count(("expand", 1))
    assert tested.train_macs < patient.train_macs


def test_a_depth_that_is_still_gaining_is_not_left() -> None:
    def curve(k: int, epochs: int) -> float:
        return min(0.985, 0.5 + 0.08 * epochs) if k == 1 else 0.99

    progress, _ = play(rules(target=0.98), curve)
    assert progress.current == 1


def test_without_the_images_patience_decides_alone() -> None:
    curve = saturating([0.85, 0.99, 0.995, 0.995])
    procedure, plain = rules(target=0.98), rules(Expansion, target=0.98)
    first, second = procedure.first(), plain.first()
    for epochs in range(1, 40):
        shown = Look.plain([curve(k, epochs) for k in range(1, procedure.active(first) + 1)])
        first = procedure.observe(procedure.count(first, 1.0, 1.0), shown)
        second = plain.observe(plain.count(second, 1.0, 1.0), shown)
        assert (first.phase, first.current) == (second.phase, second.current)
        if first.phase == "done":
            return


def test_it_goes_back_while_the_deeper_exit_settles() -> None:
    """Exit 1 reaches the goal late, when exit 2 has it already: what trains then is exit 1 alone."""

    def curve(k: int, epochs: int) -> float:
        late = 0.9 + 0.09 * min(1.0, max(0, epochs - 5) / 4)
        return late if k == 1 else 0.98 + 0.0002 * min(epochs, 30)

    stays, seen = play(rules(Expansion, target=0.99, patience=3, settle_patience=6), curve)
    assert ("settle", 2) in seen and stays.current == 2
    back, seen = play(rules(target=0.99, patience=3, settle_patience=6), curve)
    assert ("settle", 2) in seen and ("settle", 1) in seen
    assert back.current == 1


def test_growth_without_a_target_stops_where_depth_does_not_help() -> None:
    level = saturating([0.90, 0.95, 0.95, 0.99], 0.3)
    progress, seen = play(rules(), level)
    assert progress.current == 2, "exit 3 is no better; the shallower of equals is the reference"
    assert max(current for _, current in seen) == 2
    better = saturating([0.90, 0.95, 0.953, 0.955], 0.3)
    assert play(rules(), better)[0].current == 3, "within the tolerance, but better: it is the reference"


def test_growth_without_a_target_goes_on_while_depth_helps() -> None:
    progress, _ = play(rules(), saturating([0.90, 0.93, 0.95, 0.97]))
    assert progress.current == 4


def test_what_cannot_be_shown_goes_deeper() -> None:
    progress, _ = play(rules(), saturating([0.90, 0.905, 0.905, 0.905], 0.3), n=100)
    assert progress.current == 4


def test_growth_stops_too_early_no_more_often_than_it_promises() -> None:
    """Exit 2 is better than exit 1 by the tolerance; stopping at the first test is an error."""
    surplus, runs, errors, rng = 0.01, 120, 0, np.random.default_rng(0)
    procedure = rules(patience=1)
    stuck = Progress(phase="expand", current=1, epoch=5, phase_epochs=5, best=1.0, stale=5)
    for _ in range(runs):
        lost, gained, same = rng.multinomial(500, [0.02, 0.02 + surplus, 0.96 - surplus])
        right = np.repeat([[1, 0], [0, 1], [1, 1]], [lost, gained, same], axis=0).astype(bool)
        after = procedure.observe(procedure.count(stuck, 1.0, 0.0), Look.of(right))
        errors += after.phase == "settle"
    level = look_level(0.05, 1) / 2
    assert errors <= runs * level + 3 * np.sqrt(runs * level)
