"""The manifest of an exported halting model: what its graphs take and give, and when inputs stop."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from odn_hybrid.errors import ConfigError, ExportError, InputError
from odn_hybrid.runner.files import AGAIN, MANIFEST, MAX_GRAPH_BYTES, graph_name
from odn_hybrid.stopping import HaltingTable
from odn_hybrid.stopping.promises.speaking import policy_digest

__all__ = ["GRAPH", "SCHEMA", "SEGMENTS", "GraphFile", "Manifest", "TensorSpec"]

SCHEMA = 1
#: The formats: a graph per segment, decided on between them; one graph that decides by itself.
SEGMENTS, GRAPH = "onnx-segments", "onnx-if"
TYPES = ("bool", "float16", "float32", "float64", "int32", "int64")
MOST_EXITS, MOST_VALUES, MOST_CLASSES, MOST_ATTEMPTS = 10_000, 1 << 40, 1 << 24, 1_000_000


@dataclass(frozen=True)
class TensorSpec:
    """One tensor (batch, *shape) that goes into or comes out of a graph.

    Every one has a row per input: what all inputs share is a constant in each graph that needs it.

    Attributes:
        name: what the graph calls it.
        shape: of one input's row.
        type: of its numbers, in numpy's words.
    """

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class GraphFile:
    """One graph.

    Attributes:
        file, bytes, sha256: where it is, and what it must be.
        look: the policy's exit that looks at its logits, 1 to P; P for the graph that decides by itself.
        inputs, outputs: in order; the first output of a segment are its logits, the others the state that
            the next one takes.
    """

    file: str
    bytes: int
    sha256: str
    look: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Manifest:
    """See the module; `digest` is of what was exported, for certificates.

    Attributes:
        format: `SEGMENTS` or `GRAPH`.
        policy: its exits 1 to P are the network's exits `exits`, which need `units` units each.
        image_shape, classes: (channels, height, width) of float32 images, and how many classes there are.
        graphs: one per segment, in order, or the one graph.
        preprocess: how images became that, a `Preprocess` as plain data; or None.
        certificate: what was promised, and of which runtime; or None.
        source: digest of the network's weights and the runtime that it was exported from.
        checked: batch sizes at which the graphs were compared with it, and the largest difference.
        versions: of the libraries that wrote it.
        attempts: how often a promise was tried for in the runner, whatever the images.
    """

    format: str
    policy: HaltingTable
    exits: tuple[int, ...]
    units: tuple[int, ...]
    image_shape: tuple[int, int, int]
    classes: int
    graphs: tuple[GraphFile, ...]
    preprocess: dict[str, Any] | None
    certificate: dict[str, Any] | None
    source: dict[str, Any]
    checked: dict[str, Any]
    versions: dict[str, Any]
    attempts: int = 0

    def __post_init__(self) -> None:
        _check_exits(self)
        _check_graphs(self)

    @property
    def digest(self) -> str:
        """sha256 of the graphs' own."""
        return hashlib.sha256("".join(graph.sha256 for graph in self.graphs).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            "schema": SCHEMA,
            **own,
            "exits": list(self.exits),
            "units": list(self.units),
            "image_shape": list(self.image_shape),
            "policy": self.policy.to_dict(),
            "policy_sha256": policy_digest(self.policy),
            "graphs": [asdict(graph) for graph in self.graphs],
        }

    @classmethod
    def from_dict(cls, values: Any) -> Manifest:
        """Read `to_dict`'s data; `ExportError` for anything else."""
        if not isinstance(values, dict) or "schema" not in values:
            raise ExportError(f"{MANIFEST} is not of an export (it has no schema number)")
        schema = values["schema"]
        if type(schema) is not int or schema != SCHEMA:
            raise ExportError(
                f"{MANIFEST} has schema {schema!r}, this release reads {SCHEMA}: use the release that wrote "
                "it"
            )
        fields: dict[str, Any] = {name: values.get(name) for name in cls.__dataclass_fields__}
        missing = sorted({*fields, "policy_sha256"} - set(values))
        if missing:
            raise ExportError(f"{MANIFEST} is damaged: it lacks {missing[0]}: {AGAIN}")
        try:
            policy = HaltingTable.from_dict(fields["policy"])
            fields["policy"] = policy
            for name in ("exits", "units", "image_shape"):
                fields[name] = _wholes(fields[name], name)
            _whole(fields["classes"], "classes", MOST_CLASSES)
            if fields["attempts"] != 0:
                _whole(fields["attempts"], "attempts", MOST_ATTEMPTS)
            for name in ("preprocess", "certificate"):
                _mapping(fields[name] or {}, name)
            for name in ("source", "checked", "versions"):
                _mapping(fields[name], name)
            fields["graphs"] = tuple(map(_graph, _list(fields["graphs"], "graphs")))
            found = cls(**fields)
        except (ConfigError, InputError, KeyError, TypeError, ValueError, OverflowError) as error:
            text = " ".join(str(error).split())[:300]
            raise ExportError(f"{MANIFEST} is damaged: {text}: {AGAIN}") from None
        if values["policy_sha256"] != policy_digest(policy):
            raise ExportError(
                f"{MANIFEST} holds another policy than was exported (its sha256 differs): {AGAIN}"
            )
        return found


def _check_exits(manifest: Manifest) -> None:
    policy, exits, units = manifest.policy, manifest.exits, manifest.units
    if manifest.format not in (SEGMENTS, GRAPH):
        raise ExportError(f"unknown format {manifest.format!r} of an export; known: {SEGMENTS}, {GRAPH}")
    if not len(policy) == len(exits) == len(units):
        raise ExportError(
            f"the policy has {len(policy)} exits, the export {len(exits)} (units: {len(units)}): "
            "made for another model"
        )
    classes = policy.calibration.scales.shape[1]
    if classes not in (1, manifest.classes):
        raise ExportError(
            f"the policy is calibrated for {classes} classes, the export has {manifest.classes}: "
            "made for another model"
        )
    rising = all(a < b for a, b in pairwise((0, *exits))) and all(a < b for a, b in pairwise(units))
    if not rising or len(exits) > MOST_EXITS or len(manifest.image_shape) != 3:
        raise ValueError(f"exits {exits}, units {units}, image_shape {manifest.image_shape}")


def _check_graphs(manifest: Manifest) -> None:
    graphs, last = manifest.graphs, len(manifest.policy)
    looks = tuple(graph.look for graph in graphs)
    needed = manifest.policy.needed if manifest.format == SEGMENTS else (last,)
    if looks != needed:
        raise ExportError(
            f"the policy looks at its exits {list(needed)}, the graphs are for {list(looks)}: "
            "made for another model"
        )
    if len({graph.file for graph in graphs}) < len(graphs):
        raise ValueError("two graphs in one file")
    images = [(tensor.shape, tensor.type) for tensor in graphs[0].inputs]
    if images != [(manifest.image_shape, "float32")]:
        raise ValueError(f"the first graph takes {images}, images are {manifest.image_shape}")
    for graph in graphs:
        logits = graph.outputs[0] if graph.outputs else None
        if logits is None or (logits.shape, logits.type) != ((manifest.classes,), "float32"):
            raise ValueError(f"{graph.file} gives no logits (batch, {manifest.classes})")
    for one, two in pairwise(graphs):
        if one.outputs[1:] != two.inputs:
            raise ValueError(f"{two.file} does not take what {one.file} gives")


def _graph(values: Any) -> GraphFile:
    mapping = _mapping(values, "graph")
    tensors = {name: tuple(map(_tensor, _list(mapping[name], name))) for name in ("inputs", "outputs")}
    sha256 = mapping["sha256"]
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 {sha256!r}")
    size = _whole(mapping["bytes"], "bytes", MAX_GRAPH_BYTES)
    return GraphFile(
        graph_name(mapping["file"]), size, sha256, _whole(mapping["look"], "look", MOST_EXITS), **tensors
    )


def _tensor(values: Any) -> TensorSpec:
    mapping = _mapping(values, "tensor")
    name, kind = mapping["name"], mapping["type"]
    if not isinstance(name, str) or kind not in TYPES:
        raise ValueError(f"tensor {values!r}")
    shape = _wholes(mapping["shape"], "shape")
    size = 1
    for length in shape:
        size *= length
    if size > MOST_VALUES:
        raise ValueError(f"tensor {name!r} of shape {list(shape)}")
    return TensorSpec(name, shape, kind)


def _whole(value: Any, name: str, most: int = MOST_VALUES) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}, expected a whole number up to {most}")
    return value


def _wholes(values: Any, name: str) -> tuple[int, ...]:
    return tuple(_whole(value, name) for value in _list(values, name))


def _list(values: Any, name: str) -> list[Any]:
    if not isinstance(values, list | tuple) or len(values) > MOST_EXITS:
        raise TypeError(f"{name} is {str(values)[:80]!r}, expected a list")
    return list(values)


def _mapping(values: Any, name: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise TypeError(f"{name} is {str(values)[:80]!r}, expected fields by name")
    return values
