"""One ONNX graph that halts by itself, for batch 1: nested `If`, whose else-branch holds the next segment.

Scores and thresholds are the policy's, in double precision as in the runtimes. What lies in a branch that is
not taken does not run. onnxruntime computes as told; OpenVINO may compute the scores in single precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from odn_hybrid.deploy.export.graphs import extra
from odn_hybrid.deploy.export.halting_folder import graph_file
from odn_hybrid.runner.manifest import GraphFile, TensorSpec
from odn_hybrid.stopping import HaltingTable

__all__ = ["GRAPH_FILE", "join_segments"]

GRAPH_FILE = "halting.onnx"


def join_segments(
    folder: Path, graphs: Sequence[GraphFile], policy: HaltingTable, exits: Sequence[int]
) -> GraphFile:
    """Make one graph of the segments' in `folder`, whose files are removed.

    Its input is "images" (1, channels, height, width). Its outputs: "logits" (1, classes), "exit" (1,) where
    it halted and "answered" (1,) whose answer it is, by their numbers in the network (`exits`: those of the
    policy's), and "confidence" (1,).
    """
    onnx = extra("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    images, classes = graphs[0].inputs[0], graphs[0].outputs[0].shape[0]
    models = [onnx.load(str(folder / graph.file)) for graph in graphs]
    told = {
        "logits": (kinds.FLOAT, [1, classes]),
        "exit": (kinds.INT64, [1]),
        "confidence": (kinds.FLOAT, [1]),
        "answered": (kinds.INT64, [1]),
    }
    parts = [_inlined(onnx, model, place) for place, model in enumerate(models)]
    nest = _Nest(onnx, policy, [graph.look for graph in graphs], exits, parts, told)
    nodes, weights = nest.level(0, None, list(told))
    shape = [1, *images.shape]
    outer = helper.make_graph(
        nodes, "halting",
        [helper.make_tensor_value_info("images", kinds.FLOAT, shape)],
        [helper.make_tensor_value_info(name, *kind) for name, kind in told.items()],
        weights,
    )  # fmt: skip
    model = helper.make_model(outer, opset_imports=models[0].opset_import, producer_name="odn_hybrid")
    model.ir_version = models[0].ir_version
    onnx.checker.check_model(model)
    path = folder / GRAPH_FILE
    onnx.save(model, str(path))
    for graph in graphs:
        (folder / graph.file).unlink()
    outputs = (
        TensorSpec("logits", (classes,), "float32"),
        TensorSpec("exit", (), "int64"),
        TensorSpec("confidence", (), "float32"),
        TensorSpec("answered", (), "int64"),
    )
    return graph_file(path, len(policy), (images,), outputs)


def _inlined(onnx: Any, model: Any, place: int) -> Any:
    """A segment's graph without functions, its inner names no other segment's."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    model = onnx.compose.add_prefix(
        model, f"segment{place}/", rename_inputs=False, rename_outputs=False, rename_functions=False
    )
    return model.graph


@dataclass(frozen=True)
class _Values:
    """Names of what is remembered at a level: (1,) each but `logits` (1, classes)."""

    logits: str
    said: str
    streak: str
    sure: str
    score: str
    answered: str


class _Nest:
    """Writes levels: a segment, its decision, and the `If` whose else-branch is the next level.

    Args:
        onnx: the library.
        policy, looks, exits: what decides; per segment, its number in the policy; the network's exits.
        parts: per segment, its graph.
        told: types and shapes of the outputs.
    """

    def __init__(
        self, onnx: Any, policy: HaltingTable, looks: Sequence[int], exits: Sequence[int],
        parts: Sequence[Any], told: dict[str, tuple[int, list[int]]],
    ) -> None:  # fmt: skip
        self.onnx, self.policy, self.looks, self.exits = onnx, policy, looks, exits
        self.parts, self.told = parts, told
        self._numbers = count()

    def level(
        self, place: int, before: _Values | None, outputs: Sequence[str]
    ) -> tuple[list[Any], list[Any]]:
        """Nodes and initialisers from segment `place` on; what they give is called `outputs`."""
        part, look = self.parts[place], self.looks[place]
        scope = _Scope(self.onnx, list(part.node), list(part.initializer), self._numbers)
        now = self._look(scope, look, part.output[0].name, before)
        if place + 1 == len(self.parts):
            self._answer(scope, look, now, outputs)
            return scope.nodes, scope.weights
        stop = self._stop(scope, look, now, before)
        taken, other = self._names(), self._names()
        then = _Scope(self.onnx, [], [], self._numbers)
        self._answer(then, look, now, taken)
        scope.add(
            "If", [stop], outputs,
            then_branch=self._branch(then.nodes, then.weights, taken),
            else_branch=self._branch(*self.level(place + 1, now, other), other),
        )  # fmt: skip
        return scope.nodes, scope.weights

    def _names(self) -> list[str]:
        number = next(self._numbers)
        return [f"{name}_{number}" for name in self.told]

    def _branch(self, nodes: list[Any], weights: list[Any], outputs: Sequence[str]) -> Any:
        helper = self.onnx.helper
        infos = [
            helper.make_tensor_value_info(name, *kind)
            for name, kind in zip(outputs, self.told.values(), strict=True)
        ]
        return helper.make_graph(nodes, f"branch_{next(self._numbers)}", [], infos, weights)

    def _answer(self, scope: _Scope, look: int, now: _Values, outputs: Sequence[str]) -> None:
        """What is given to those who stop at `look`."""
        exit = scope.constant(np.array([self.exits[look - 1]], dtype=np.int64))
        scope.add("Identity", [now.logits], outputs[:1])
        scope.add("Identity", [exit], outputs[1:2])
        scope.add("Cast", [now.sure], outputs[2:3], to=self.onnx.TensorProto.FLOAT)
        scope.add("Identity", [now.answered], outputs[3:4])

    def _look(self, scope: _Scope, look: int, logits: str, before: _Values | None) -> _Values:
        """As `stopping.Looker.look` does, for one input."""
        said = scope.add("ArgMax", [logits], axis=1, keepdims=0)
        one = scope.constant(np.array([1], dtype=np.int64))
        streak = one
        if self.policy.score == "streak" and before is not None:
            same = scope.add("Equal", [said, before.said])
            streak = scope.add("Where", [same, scope.add("Add", [before.streak, one]), one])
        sure, score = self._scored(scope, look, logits, said)
        if self.policy.score == "streak":
            score = scope.add("Cast", [streak], to=self.onnx.TensorProto.DOUBLE)
        answered = scope.constant(np.array([self.exits[look - 1]], dtype=np.int64))
        now = _Values(logits, said, streak, sure, score, answered)
        if self.policy.recall is None or before is None:
            return now
        handicap = scope.constant(np.array([self.policy.recall[look - 1]]))
        keeps = scope.add("GreaterOrEqual", [scope.add("Sub", [before.sure, now.sure]), handicap])
        kept = {
            name: scope.add("Where", [keeps, getattr(before, name), getattr(now, name)])
            for name in ("logits", "sure", "score", "answered")
        }
        return replace(now, **kept)

    def _scored(self, scope: _Scope, look: int, logits: str, said: str) -> tuple[str, str]:
        """Calibrated probability of the answer, and the score."""
        kind, scale = self.policy.score, self.policy.calibration
        exact = scope.add("Cast", [logits], to=self.onnx.TensorProto.DOUBLE)
        exact = scope.add("Mul", [exact, scope.constant(scale.scales[look - 1][None])])
        exact = scope.add("Add", [exact, scope.constant(scale.shifts[look - 1][None])])
        shifted = scope.add("Sub", [exact, scope.over("ReduceMax", exact, keepdims=1)])
        weights = scope.add("Exp", [shifted])
        total = scope.over("ReduceSum", weights)
        classes = self.classes
        numbers = scope.constant(np.arange(classes, dtype=np.int64)[None])
        mine = scope.add("Equal", [numbers, scope.add("Unsqueeze", [said, scope.axis])])
        zero = scope.constant(np.zeros((1, 1)))
        own = scope.over("ReduceSum", scope.add("Where", [mine, weights, zero]))
        sure = scope.add("Div", [own, total])
        if kind == "margin":
            rest = scope.over("ReduceMax", scope.add("Where", [mine, zero, weights]))
            return sure, scope.add("Div", [scope.add("Sub", [own, rest]), total])
        if kind == "entropy" and classes > 1:
            mean = scope.add("Div", [scope.over("ReduceSum", scope.add("Mul", [weights, shifted])), total])
            entropy = scope.add("Sub", [scope.add("Log", [total]), mean])
            share = scope.add("Div", [entropy, scope.constant(np.array([math.log(classes)]))])
            return sure, scope.add("Sub", [scope.constant(np.ones(1)), share])
        return sure, scope.constant(np.ones(1)) if kind == "entropy" else sure

    def _stop(self, scope: _Scope, look: int, now: _Values, before: _Values | None) -> str:
        """Whether the input stops at `look`: a scalar."""
        differs, same = self.policy.rows[look - 1]
        stop = self._ruled(scope, differs, now.score)
        if before is not None and same != differs:
            alike = scope.add("Equal", [now.said, before.said])
            stop = scope.add("Where", [alike, self._ruled(scope, same, now.score), stop])
        stop = scope.add("Cast", [stop], to=self.onnx.TensorProto.BOOL)
        return scope.add("Squeeze", [stop, scope.constant(np.array([0], dtype=np.int64))])

    def _ruled(self, scope: _Scope, rule: tuple[Sequence[float], Sequence[bool]], score: str) -> str:
        """1 where the rule says stop, (1,) int64: how many edges are reached says which decision holds."""
        edges, stops = rule
        decisions = scope.constant(np.array(stops, dtype=np.int64))
        if not edges:
            return decisions
        column = scope.add("Unsqueeze", [score, scope.axis])
        reached = scope.add("GreaterOrEqual", [column, scope.constant(np.array(edges)[None])])
        interval = scope.over("ReduceSum", scope.add("Cast", [reached], to=self.onnx.TensorProto.INT64))
        return scope.add("Gather", [decisions, interval], axis=0)

    @property
    def classes(self) -> int:
        """How many classes the logits have."""
        return self.told["logits"][1][1]


class _Scope:
    """Nodes and initialisers of one level, with names that no other level uses."""

    def __init__(self, onnx: Any, nodes: list[Any], weights: list[Any], numbers: Any) -> None:
        self.onnx, self.nodes, self.weights, self._numbers = onnx, nodes, weights, numbers
        self._axis: str | None = None

    @property
    def axis(self) -> str:
        """The axis of classes, as a tensor."""
        self._axis = self._axis or self.constant(np.array([1], dtype=np.int64))
        return self._axis

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] = (), **settings: Any) -> str:
        """One more node; its first output."""
        given = list(outputs) or [f"look/{kind}_{next(self._numbers)}"]
        name = f"look/{kind}_{next(self._numbers)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), given, name=name, **settings))
        return given[0]

    def over(self, kind: str, values: str, keepdims: int = 0) -> str:
        """A reduction over the classes."""
        return self.add(kind, [values, self.axis], keepdims=keepdims)

    def constant(self, values: ArrayLike) -> str:
        """A constant of this level."""
        name = f"look/constant_{next(self._numbers)}"
        self.weights.append(self.onnx.numpy_helper.from_array(np.asarray(values), name))
        return name
