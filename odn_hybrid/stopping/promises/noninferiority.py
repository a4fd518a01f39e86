"""The choice of the static depth: the shallowest exit shown not to be worse than the reference.

One hypothesis per exit, H0_k: accuracy(reference) - accuracy(exit k) exceeds the tolerance, tested with the
certificate's exact paired test. Depths: fixed sequence from the reference towards the stem, each at the
full level of the look, up to the first that is not rejected. Looks: the same images are looked at again and
again, so look t = 1, 2, ... may spend delta * 6 / (pi^2 t^2), which sums to delta under any dependence.
Proof: theory/target_to_depth.md.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import as_correct, check_fraction, check_probability, is_whole
from odn_hybrid.stopping.promises.certificate import in_points, smallest_drop
from odn_hybrid.stopping.promises.paired import PairedTest

__all__ = ["Choice", "choose_depth", "look_level"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The exit chosen at one look, and why.

    `exit`, `reference`: numbered 1..K. `reason`: in words. `look`: which this was, from 1. `level`: what it
    may spend. `p_values`, `bounds`: per exit, the p-value of "the drop exceeds the tolerance" and the exact
    upper 1 - level confidence bound on the drop (a fraction); None for exits not reached by the sequence,
    untrained, or the reference itself.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import choose_depth
        >>> choice = choose_depth(np.ones((500, 2), dtype=bool), 2, [True, True], tolerance=0.02, delta=0.05)
        >>> type(choice).__name__, choice.exit
        ('Choice', 1)
    """

    exit: int
    reason: str
    reference: int
    look: int
    level: float
    p_values: tuple[float | None, ...]
    bounds: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "p_values": list(self.p_values), "bounds": list(self.bounds)}


def look_level(delta: float, look: int) -> float:
    """What look number `look` (from 1) may spend of `delta`: delta * 6 / (pi^2 look^2).

    Over all looks that comes to `delta` (sum of 1 / k^2 is pi^2 / 6). Raises `ConfigError` for another `look`
    or a `delta` outside (0, 1).

    Example:
        >>> from odn_hybrid.stopping import look_level
        >>> [round(look_level(0.05, look), 4) for look in (1, 2, 3)]
        [0.0304, 0.0076, 0.0034]
    """
    delta = check_probability(delta, "delta")
    if not is_whole(look) or look < 1:
        raise ConfigError(f"look is {look!r}; looks are numbered 1, 2, 3, ...")
    return delta * 6 / (math.pi * look) ** 2


def choose_depth(
    correct: ArrayLike, reference: int, trained: ArrayLike, tolerance: float, delta: float, look: int = 1
) -> Choice:
    """The shallowest exit that is non-inferior to `reference` within `tolerance`, at look number `look`.

    `correct` (n, K) bool: right answers of every exit on the selection split; `reference` from 1 to K;
    `trained` (K,) bool: untrained exits and exits deeper than the reference are passed over. With `delta`
    in all, the chance that any look chooses an exit whose drop exceeds `tolerance` is at most `delta`,
    provided that the weights at each look do not depend on the selection split (theory/target_to_depth.md
    says what remains when they do). Raises `InputError` for arrays that do not fit and `ConfigError` for
    numbers out of range.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import choose_depth
        >>> right = np.ones((1000, 3), dtype=bool)
        >>> right[:300, 0] = False  # exit 1 is wrong on 300 of 1,000 images
        >>> choose_depth(right, 3, [True] * 3, tolerance=0.01, delta=0.05).exit
        2
    """
    answers = as_correct(correct, 2, "correct")
    ready = as_correct(trained, 1, "trained")
    n, exits = answers.shape
    if ready.shape != (exits,):
        raise InputError(f"trained has {len(ready)} entries for {exits} exits; give one per exit")
    if not is_whole(reference) or not 1 <= reference <= exits or not ready[reference - 1]:
        raise InputError(f"reference is exit {reference}; it must be a trained exit from 1 to {exits}")
    tolerance, level = check_fraction(tolerance, "tolerance"), look_level(delta, look)
    p_values: list[float | None] = [None] * exits
    bounds: list[float | None] = [None] * exits
    chosen, failed = reference, None
    for exit in range(reference - 1, 0, -1):
        if not ready[exit - 1]:
            continue
        test = _compare(answers, reference, exit, tolerance, level)
        p_value = test.p_value()
        p_values[exit - 1], bounds[exit - 1] = p_value, test.upper_bound()
        if p_value > level:
            failed = exit
            break
        chosen = exit
    reason = _reason(n, reference, chosen, failed, bounds, tolerance, level, look)
    return Choice(
        exit=chosen, reason=reason, reference=int(reference), look=int(look), level=level,
        p_values=tuple(p_values), bounds=tuple(bounds),
    )  # fmt: skip


def _compare(
    answers: NDArray[np.bool_], reference: int, exit: int, tolerance: float, level: float
) -> PairedTest:
    before, after = answers[:, reference - 1], answers[:, exit - 1]
    return PairedTest(
        len(answers), int((before & ~after).sum()), int((~before & after).sum()), tolerance, level
    )


def _reason(
    n: int,
    reference: int,
    chosen: int,
    failed: int | None,
    bounds: list[float | None],
    tolerance: float,
    level: float,
    look: int,
) -> str:
    """Why, in a sentence or two a reader of the table understands."""

    def points(exit: int) -> str:
        return f"{math.ceil(1e4 * (bounds[exit - 1] or 0.0) - 1e-9) / 100:.2f}"

    allowed = f"{in_points(tolerance)} of exit {reference}"
    evidence = f"{n} selection images, level {level:.2g} at look {look}"
    if failed is None and chosen == reference:
        return f"exit {reference} is the reference and no shallower exit is trained"
    if chosen != reference:
        text = f"exit {chosen} is the shallowest shown to lie within {allowed}: "
        text += f"it loses at most {points(chosen)} points ({evidence})"
        return text if failed is None else f"{text}; exit {failed} may lose up to {points(failed)}"
    assert failed is not None
    floor = smallest_drop(n, level)
    if floor > tolerance:
        return (
            f"exit {reference}, the reference, stays: the selection split is too small to show "
            f"{in_points(tolerance)}; with no answer changed it could show "
            f"{math.ceil(1e4 * floor) / 100:.2f} points ({evidence})"
        )
    return (
        f"exit {reference}, the reference, stays: no shallower exit is shown to lie within {allowed}; "
        f"exit {failed} may lose up to {points(failed)} points ({evidence})"
    )
