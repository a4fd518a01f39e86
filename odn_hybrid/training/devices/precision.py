"""In which precision a network trains; it is evaluated in fp32 always."""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import evaluating
from odn_hybrid.errors import ConfigError
from odn_hybrid.exits import MultiExit

__all__ = ["misread_convolutions", "resolve_precision"]


def resolve_precision(wanted: str, device: torch.device, network: MultiExit | None = None) -> torch.dtype:
    """The dtype of autocast for `wanted` "auto", "fp32" or "bf16".

    "auto" is bf16 where the device computes in it natively and rightly, fp32 otherwise. There is no fp16: its
    range is too narrow for gradients without a scaler, and devices that have it but not bf16 are old. Raises
    `ConfigError` where "bf16" would train `network` on gradients that are wrong.
    """
    if wanted == "fp32":
        return torch.float32
    if wanted == "auto" and not _native_bf16(device):
        return torch.float32
    bad = misread_convolutions(network) if network is not None and device.type == "cpu" else []
    if bad and wanted == "bf16":
        raise ConfigError(
            f"precision bf16 gives wrong gradients for {bad[0]} on a CPU: images are so small there that its "
            "stride exceeds them; choose precision fp32 or a larger image_size"
        )
    return torch.float32 if bad else torch.bfloat16


def _native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; emulated, it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):  # oneDNN emulates it wherever there is AVX-512
        return torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def misread_convolutions(network: MultiExit) -> list[str]:
    """Names of convolutions whose stride exceeds the height or width of what they see.

    For these, torch's CPU kernels (seen in 2.15) leave parts of the bf16 weight gradient unwritten: it holds
    what was in memory before, now and then NaN.
    """
    found: list[str] = []
    hooks = []

    def watch(name: str, module: nn.Conv2d) -> None:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sides = zip(inputs[0].shape[-2:], module.kernel_size, module.stride, strict=True)
            if any(side < stride and kernel > 1 for side, kernel, stride in sides):
                found.append(name)

        hooks.append(module.register_forward_pre_hook(look))

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            watch(name, module)
    like = next(network.parameters())
    try:
        with evaluating(network):
            network(torch.zeros(1, *network.trunk.image_shape, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return found
