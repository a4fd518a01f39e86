"""Inputs decided in groups that change from exit to exit get the decisions that they get together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from odn_hybrid.stopping import Calibration, HaltingTable, Looker, Seen

EXITS, INPUTS = 5, 14
SCORES = ["confidence", "margin", "entropy", "streak"]


def table_of(random: np.random.Generator, score: str, recall: bool, classes: int) -> HaltingTable:
    """Any rules, with as many edges as they like."""
    rows = []
    for _ in range(EXITS):
        pair = []
        for _ in range(2):
            edges = sorted(
                random.uniform(0, EXITS if score == "streak" else 1, random.integers(0, 4)).tolist()
            )
            pair.append((tuple(edges), tuple(bool(b) for b in random.integers(0, 2, len(edges) + 1))))
        rows.append(tuple(pair))
    if random.random() < 0.5:  # as most tables are: no rule asks whether exits agree, and each is a threshold
        limits = random.uniform(0, EXITS if score == "streak" else 1, EXITS).tolist()
        rows = [(((limit,), (False, True)),) * 2 for limit in limits]
    scales, shifts = random.uniform(0.5, 2, (EXITS, classes)), random.normal(0, 0.5, (EXITS, classes))
    scale = Calibration("vector", scales, shifts)
    handicaps = tuple(random.normal(0, 0.1, EXITS).tolist()) if recall else None
    return HaltingTable(score, scale, tuple(rows), handicaps)


def same(one: Seen, other: Seen) -> None:
    """Every digit that is remembered."""
    for name in Seen._fields:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        assert mine is None or (mine.dtype == theirs.dtype and np.array_equal(mine, theirs)), name


@pytest.mark.parametrize("recall", [False, True])
@pytest.mark.parametrize("score", SCORES)
@given(st.integers(0, 10_000), st.data())
@settings(max_examples=40)
def test_groups_that_change_decide_as_all_at_once(
    score: str, recall: bool, seed: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    classes = int(random.choice([1, 2, 5, 17]))
    looker = Looker(table_of(random, score, recall, classes))
    logits = random.normal(0, 3, (INPUTS, EXITS, classes)).astype(np.float32)
    for exit in range(1, EXITS):  # many agree with the exit before, as exits do
        stay = random.random(INPUTS) < 0.5
        logits[stay, exit] = logits[stay, exit - 1] + random.normal(0, 0.1, classes)
    whole: Seen | None = None
    groups: list[tuple[Seen | None, NDArray[np.intp]]] = [(None, np.arange(INPUTS))]
    for number in range(1, EXITS + 1):
        stops, whole = looker.look(number, logits[:, number - 1], whole)
        # Each input to a group of its own choice, in any order.
        of = data.draw(st.lists(st.integers(0, 2), min_size=INPUTS, max_size=INPUTS))
        members = [random.permutation([i for i in range(INPUTS) if of[i] == group]) for group in range(3)]
        groups = [regrouped(groups, rows.astype(np.intp)) for rows in members if len(rows)]
        for at, (memory, rows) in enumerate(groups):
            memory = memory if looker.remembers else None
            decided, seen = looker.look(number, logits[rows, number - 1], memory)
            assert np.array_equal(decided, stops[rows])
            same(seen, whole.select(rows))
            groups[at] = (seen, rows)


def regrouped(groups: Any, rows: NDArray[np.intp]) -> tuple[Seen | None, NDArray[np.intp]]:
    """The memories of inputs `rows` from wherever they are, joined run by run in this order."""
    if groups[0][0] is None:
        return None, rows
    place = {int(i): (group, at) for group, (_, known) in enumerate(groups) for at, i in enumerate(known)}
    parts: list[tuple[int, list[int]]] = []
    for row in rows.tolist():
        group, at = place[row]
        if parts and parts[-1][0] == group:
            parts[-1][1].append(at)
        else:
            parts.append((group, [at]))
    return Seen.join([(groups[group][0], np.array(found)) for group, found in parts]), rows


def test_memories_that_do_not_fit_are_refused() -> None:
    random = np.random.default_rng(0)
    answers = random.normal(size=(3, 4)).astype(np.float32)
    plain, recalling = (
        Looker(table_of(random, "confidence", recall, 4)).look(1, answers, None)[1]
        for recall in (False, True)
    )
    rows = np.arange(3)
    with pytest.raises(ValueError, match="different tables"):
        Seen.join([(plain, rows), (recalling, rows)])
    with pytest.raises(ValueError, match="no memories"):
        Seen.join([])
    same(Seen.join([(plain, rows[:1]), (plain, rows[1:])]), plain)
