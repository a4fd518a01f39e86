"""The device of a fit, as an `Accelerator`; and whether weights are sharded over the processes."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, parse_flag_from_env

from odn_hybrid.config import FitConfig
from odn_hybrid.errors import ConfigError

__all__ = ["accelerator_on", "shards_weights"]

NO, MULTI_CPU, MULTI_GPU, FSDP = (DistributedType[name] for name in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"))


def accelerator_on(device: str | None) -> Accelerator:
    """An accelerator on "cpu" or "cuda"; None is the best device there is.

    In one of several processes, started by `accelerate launch` or `torchrun`, it is this one's device, and
    the processes know each other afterwards. Raises `ConfigError` for another name, or for "cuda" where there
    is none.
    """
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; choose cpu or cuda, or leave it out for the best there is")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' cannot be used: torch finds no CUDA device here; choose cpu")
    # accelerate keeps one device per process; an earlier fit, on another, must not decide for this one.
    held = PartialState._shared_state.get("device")
    wanted = "cpu" if device == "cpu" else ("cuda" if torch.cuda.is_available() else None)
    if held is not None and wanted is not None and held.type != wanted:
        AcceleratorState._reset_state(reset_partial_state=True)
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if launched and wanted == "cuda" and torch.cuda.device_count() < here:
        raise ConfigError(
            f"{here} processes were started on a machine with {torch.cuda.device_count()} CUDA devices: "
            "start as many as there are, or choose device cpu"
        )
    # Of several processes without a GPU accelerate would make as many fits of one process each.
    accelerator = Accelerator(cpu=device == "cpu" or (launched and wanted != "cuda"))
    _check_settings(accelerator)
    return accelerator


def _check_settings(accelerator: Accelerator) -> None:
    """Raise `ConfigError` where the launcher settled what the recipe settles, or what is not supported."""
    if accelerator.scaler is not None:
        raise ConfigError("the launcher asks for mixed precision fp16: leave it out and set precision=bf16")
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            "the launcher asks for gradient accumulation: leave it out there and set optim.accumulate="
            f"{accelerator.gradient_accumulation_steps}"
        )
    if accelerator.distributed_type not in (NO, MULTI_CPU, MULTI_GPU, FSDP):
        name = str(accelerator.distributed_type.value).lower()
        raise ConfigError(f"the launcher asks for {name}; supported are DDP and FSDP, on CPUs and CUDA")


def shards_weights(config: FitConfig, count: int) -> bool:
    """Whether the launcher asked for FSDP, as `accelerate launch --use_fsdp` does by ACCELERATE_USE_FSDP.

    Raises `ConfigError` for what cannot be trained so.
    """
    if count == 1 or not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    refused = {
        "compile": config.compile,
        "expansion.procedure reload": config.expansion.procedure == "reload",
    }
    for name, asked in refused.items():
        if asked:
            raise ConfigError(f"{name} does not go together with FSDP: leave it out, or launch without FSDP")
    return True
