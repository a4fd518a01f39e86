"""Nested Python state (an optimizer's, a loop's) as tensors plus JSON, and back, without pickle.

`None`, booleans, integers and strings stand in the JSON as themselves, and so do finite floats: Python
writes the shortest text that reads back as the same number. All else is a mapping with one tag:
`{"tensor": name}`, `{"float": "nan"}`, `{"tuple": [...]}`, `{"dict": [[key, value], ...]}`. Dictionaries are
lists of pairs because their keys may be integers (`optimizer.state_dict()`), which JSON would make strings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from odn_hybrid.errors import RunDirError

__all__ = ["flatten_state", "unflatten_state"]


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dict / list / tuple / int / float / str / bool / None / Tensor into (tensors, JSON data).

    The tensors are the very ones of `state`, not copies. Subclasses (OrderedDict, named tuples) come back as
    their plain kind. Raises `TypeError`, with the place, for anything else.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encode(state, tensors, "state")


def unflatten_state(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """The inverse of `flatten_state`. Raises `RunDirError` where tensors and structure do not fit."""
    try:
        return _decode(structure, tensors)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunDirError(f"the stored state is damaged ({type(error).__name__}: {error})") from None


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        number = float(value)  # numpy's float64 is a float too
        return number if math.isfinite(number) else {"float": repr(number)}
    if isinstance(value, Tensor):
        name = f"{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, list | tuple):
        items = [_encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            place = f"{where}[{key!r}]"
            pairs.append([_encode(key, tensors, f"{place} (key)"), _encode(item, tensors, place)])
        return {"dict": pairs}
    raise TypeError(f"{where} is a {type(value).__name__}, which cannot be stored without pickle")


def _decode(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [_decode(item, tensors) for item in data]
    ((tag, content),) = data.items()
    if tag == "tensor":
        return tensors[content]
    if tag == "float":
        return float(content)
    if tag == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if tag == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    raise ValueError(f"unknown tag {tag!r}")
