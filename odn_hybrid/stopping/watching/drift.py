"""Drift: tells when a stream stops looking like the data the certificate was earned on.

A certificate speaks of inputs exchangeable with its certification split. Labels are missing in service, but
each answer leaves a confidence and a halting exit. `DriftMonitor` bets on their ranks among the reference and
the stream so far (`rank_bets.py`); without drift its capital seldom grows. Proofs: theory/drift.md.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.stopping.checks import check_probability, is_whole
from odn_hybrid.stopping.watching.rank_bets import Hit, RankBets, uniforms

__all__ = ["UNSEEN", "DriftMonitor", "DriftState"]

#: What no monitor of unlabelled statistics can say.
UNSEEN = (
    "a change that leaves confidences and exits as they are (of labels, or of their meaning)"
    " cannot be seen without labels"
)
ORDERS = ("confidence", "exit")
ROUNDING = 1e-6  # a float32 softmax may sum to a little more than 1
LARGEST_LOG = 690.0  # a capital beyond e^690 is shown as that: JSON knows no infinity


@dataclass(frozen=True, kw_only=True)
class DriftState:
    """What a monitor says after `seen` inputs.

    Attributes:
        alarm: whether there was an alarm so far; it stays.
        statistic: the evidence now; an alarm is due when it reaches `limit` = 1 / alpha.
        at: inputs seen at the (latest) alarm, or None.
        since: estimate of the first input of another kind (numbered from 1) at that alarm, or None.
        order: what gave the alarm: "confidence", or "exit" (the exit and, within an exit, confidence).
        alarms: how many there were; at most one with a promise for all time.
        sentence: the same in words, with what cannot be seen.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import DriftMonitor
        >>> monitor = DriftMonitor(np.linspace(0.5, 1.0, 100), np.ones(100, dtype=int), exits=2)
        >>> state = monitor.update([0.7, 0.9], [1, 1])
        >>> state.seen, state.alarm
        (2, False)
    """

    alarm: bool
    statistic: float
    limit: float
    seen: int
    at: int | None
    since: int | None
    order: str | None
    alarms: int
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class DriftMonitor:
    """Watches confidences and halting exits; false alarms are controlled exactly, for every sample size.

    If reference and stream are exchangeable (independent draws from one source are), then with `per=None`
    P(ever an alarm) <= alpha, however long the stream; with `per=10_000` there are on average at most alpha
    alarms in every 10,000 inputs, for ever, and P(an alarm among the first n) <= alpha n / per. The first
    is for one deployment; the second for servers that run for years, where it notices late changes sooner
    and goes on after an alarm. Both count the luck of drawing the reference.

    What it cannot see: a change that leaves confidences and exits as they are. New labels for the same
    images, a concept that changed its meaning, or errors made as confidently as before go unnoticed; no
    alarm is no promise of accuracy. An alarm in turn does not say that accuracy fell, but that the
    certificate's assumption looks broken. Inputs that resemble their neighbours (frames of one video) break
    exchangeability and give alarms, rightly. In the long run the stream becomes part of what is compared
    with: a small change present from the first input on must be found in about as many inputs as the
    reference has, or never.

    Args:
        reference_confidence: (m,) calibrated confidence, in [0, 1], at the exit taken by each image of a
            split that decided neither weights nor thresholds: the certification split.
        reference_exit: (m,) that exit, from 1 to `exits`.
        exits: K.
        alpha: probability or rate of false alarms.
        per: None, or the number of inputs that the rate is per.
        seed: of the ranks among equal values; default: from the digest of the reference.

    The state is about 30 kB as JSON, whatever was seen; b inputs take O(b log m), a call about a
    millisecond and an input some 10 microseconds.
    Raises `InputError` for unusable statistics and `ConfigError` for unusable choices.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid.stopping import DriftMonitor
        >>> random = np.random.default_rng(0)
        >>> monitor = DriftMonitor(random.uniform(0.5, 1.0, 500), random.integers(1, 5, 500), exits=4)
        >>> monitor.update(random.uniform(0.5, 1.0, 200), random.integers(1, 5, 200)).alarm
        False
        >>> monitor.update(random.uniform(0.5, 0.6, 200), np.full(200, 4)).alarm
        True
    """

    def __init__(
        self,
        reference_confidence: ArrayLike,
        reference_exit: ArrayLike,
        *,
        exits: int,
        alpha: float = 0.05,
        per: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.exits, self.alpha, self.per = _choices(exits, alpha, per)
        confidence, taken = _statistics(reference_confidence, reference_exit, self.exits, "reference_")
        if not len(confidence):
            raise InputError("the reference is empty; give the confidences and exits of at least one image")
        self.digest = _digest(confidence, taken)
        if seed is not None and (not is_whole(seed) or seed < 0):
            raise ConfigError(f"seed is {seed!r}; it must be a whole number from 0 on")
        self.seed = int(self.digest[:15], 16) if seed is None else int(seed)
        limit = self._scale - math.log(self.alpha)
        m = len(confidence)
        self._bets = [
            RankBets(key, uniforms(self.seed + 1 + i, 0, m), limit=limit, forever=self.per is None)
            for i, key in enumerate(_keys(confidence, taken))
        ]
        self._last: tuple[Hit, str] | None = None

    def update(self, confidence: ArrayLike, exit: ArrayLike) -> DriftState:
        """Take the answers of one batch, (b,) each, in stream order; b may be 0. The same however batched.

        Raises `InputError`, having taken nothing, for NaN, a confidence outside [0, 1] (beyond rounding),
        an exit outside 1..K, and arrays that do not fit each other.
        """
        values, taken = _statistics(confidence, exit, self.exits, "")
        ties = uniforms(self.seed, self.seen, len(values))
        hits: list[tuple[Hit, str]] = []
        for bets, order, key in zip(self._bets, ORDERS, _keys(values, taken), strict=True):
            hits += [(hit, order) for hit in bets.feed(key, ties)]
        hits.sort(key=lambda pair: pair[0].at)
        if hits and (self.per is not None or self._last is None):
            self._last = hits[0] if self.per is None else hits[-1]
        return self.state

    @property
    def seen(self) -> int:
        """Inputs taken so far."""
        return self._bets[0].seen

    @property
    def _scale(self) -> float:
        """Log of the capital that counts as a statistic of 1: orders and, at a rate, stakes share alpha."""
        return math.log(len(ORDERS) * (self.per or 1))

    @property
    def state(self) -> DriftState:
        """What there is to say now."""
        capital = max(bets.wealth for bets in self._bets) - self._scale
        alarms = sum(bets.alarms for bets in self._bets)
        hit, order = self._last or (None, None)
        found: dict[str, Any] = {
            "alarm": hit is not None,
            "statistic": math.exp(min(capital, LARGEST_LOG)),
            "limit": 1 / max(self.alpha, 1e-300),
            "seen": self.seen,
            "at": hit.at if hit else None,
            "since": hit.since if hit else None,
            "order": order,
            "alarms": min(alarms, 1) if self.per is None else alarms,
        }
        return DriftState(**found, sentence=self._sentence(found))

    def _sentence(self, found: dict[str, Any]) -> str:
        chance = f"{100 * self.alpha:g} %"
        if self.per is None:
            promise = f"without drift, the probability of ever an alarm is at most {chance}"
        else:
            promise = (
                f"without drift, there are on average at most {self.alpha:g} alarms per {self.per:,} inputs"
            )
        if not found["alarm"]:
            evidence = f"evidence {found['statistic']:.2g}, an alarm at {found['limit']:g}"
            return f"no drift seen in {found['seen']:,} inputs ({evidence}; {promise}); {UNSEEN}"
        what = "confidences" if found["order"] == "confidence" else "exits and the confidences at them"
        return (
            f"drift: {what} have not been like the reference's since about input {found['since']:,} "
            f"(alarm at input {found['at']:,} of {found['seen']:,}): the certificate's assumption looks "
            f"broken; certify again on new labelled data ({promise}); {UNSEEN}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: a monitor read from it goes on as if nothing had happened."""
        last = None if self._last is None else {**asdict(self._last[0]), "order": self._last[1]}
        choices = {name: getattr(self, name) for name in ("exits", "alpha", "per", "seed", "digest")}
        return {"kind": "drift 1", **choices, "last": last, "orders": [bets.to_dict() for bets in self._bets]}

    @classmethod
    def from_dict(cls, values: Any) -> DriftMonitor:
        """Read `to_dict`'s data; `ConfigError` for anything else."""
        fields = {"kind", "exits", "alpha", "per", "seed", "digest", "last", "orders"}
        if not isinstance(values, dict) or set(values) != fields or values["kind"] != "drift 1":
            raise ConfigError(
                f"not a drift monitor of this release: expected 'drift 1' with {sorted(fields)}"
            )
        monitor = cls([1.0], [1], **{name: values[name] for name in ("exits", "alpha", "per", "seed")})
        limit, orders, last = monitor._bets[0].limit, values["orders"], values["last"]
        if (
            not isinstance(orders, list)
            or len(orders) != len(ORDERS)
            or not isinstance(values["digest"], str)
        ):
            raise ConfigError("the state of a drift monitor is damaged: it lacks an order or its digest")
        monitor.digest = values["digest"]
        monitor._bets = [RankBets.from_dict(v, limit=limit, forever=monitor.per is None) for v in orders]
        if len({bets.seen for bets in monitor._bets}) > 1:
            raise ConfigError("the state of a drift monitor is damaged: its orders have not seen the same")
        if last is not None:
            try:
                hit, order = Hit(at=int(last["at"]), since=int(last["since"])), str(last["order"])
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ConfigError(f"the state of a drift monitor is damaged: last is {last!r}") from None
            monitor._last = (hit, order)
        return monitor


def _choices(exits: Any, alpha: Any, per: Any) -> tuple[int, float, int | None]:
    if not is_whole(exits) or exits < 1:
        raise ConfigError(f"exits is {exits!r}; it must be the number of exits, 1 or more")
    if per is not None and (not is_whole(per) or per < 1):
        raise ConfigError(f"per is {per!r}; it must be a number of inputs, 1 or more, or None for all time")
    return int(exits), check_probability(alpha, "alpha"), None if per is None else int(per)


def _statistics(
    confidence: ArrayLike, exit: ArrayLike, exits: int, prefix: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Checked confidences (b,) in [0, 1] and exits (b,)."""
    try:
        values, taken = np.asarray(confidence, dtype=np.float64), np.asarray(exit)
    except (TypeError, ValueError):
        raise InputError(f"{prefix}confidence is not an array of numbers") from None
    if values.ndim != 1 or taken.shape != values.shape:
        raise InputError(
            f"{prefix}confidence has shape {values.shape} and {prefix}exit {taken.shape}; "
            "expected one number each per input"
        )
    if not values.size:
        return values, np.zeros(0, dtype=np.int64)
    bad = ~((values >= -ROUNDING) & (values <= 1 + ROUNDING))
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {values.size} confidences are not in [0, 1], the first {values[bad][0]}"
        )
    if not np.issubdtype(taken.dtype, np.integer):
        raise InputError(f"{prefix}exit has type {taken.dtype}; expected whole numbers from 1 to {exits}")
    if taken.min() < 1 or taken.max() > exits:
        raise InputError(
            f"{prefix}exit runs from {taken.min()} to {taken.max()}; expected numbers from 1 to {exits}"
        )
    return np.clip(values, 0.0, 1.0), taken.astype(np.int64)


def _keys(confidence: NDArray[np.float64], taken: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    """One number per input and order: confidence; the exit, and within an exit from sure to unsure."""
    return [confidence, 2.0 * taken - confidence]


def _digest(confidence: NDArray[np.float64], taken: NDArray[np.int64]) -> str:
    """sha256 of the reference as a set: its order says nothing."""
    order = np.lexsort((confidence, taken))
    total = hashlib.sha256(confidence[order].astype("<f8").tobytes())
    total.update(taken[order].astype("<i8").tobytes())
    return total.hexdigest()
