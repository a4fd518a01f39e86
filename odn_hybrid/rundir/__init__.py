"""The run directory: what is written and read, versions, integrity."""

from odn_hybrid.rundir.directory import (
    CHECKPOINT,
    CONFIG,
    EXITS,
    HISTORY,
    MODEL,
    POLICY,
    REPORT,
    RunDir,
)
from odn_hybrid.rundir.files import (
    SCHEMA,
    make_folders,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from odn_hybrid.rundir.nested import flatten_state, unflatten_state
from odn_hybrid.rundir.versions import environment

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "EXITS",
    "HISTORY",
    "MODEL",
    "POLICY",
    "REPORT",
    "SCHEMA",
    "RunDir",
    "environment",
    "flatten_state",
    "make_folders",
    "read_json",
    "read_tensors",
    "unflatten_state",
    "write_bytes",
    "write_json",
    "write_tensors",
]
