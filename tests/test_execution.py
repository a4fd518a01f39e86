"""How a network is run: checked, named as certificates name it, and cast as it says."""

from collections.abc import Callable, Iterator

import pytest
import torch

from odn_hybrid.errors import ConfigError
from odn_hybrid.execution import Execution
from odn_hybrid.outputs import runtime_on

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "eager fp32 cpu"),
        ({"precision": "bf16", "fold": True}, "eager bf16 folded cpu"),
        ({"compile": True}, "compiled fp32 cpu"),
        ({"precision": "fp16", "fold": True, "compile": True}, "compiled fp16 folded cpu"),
    ],
)
def test_names(options: dict[str, object], name: str) -> None:
    assert Execution.from_dict(options).name(CPU) == name
    assert Execution.from_dict(Execution.from_dict(options).to_dict()).name(CPU) == name


def test_the_default_is_what_outputs_are_recorded_with() -> None:
    for device in (CPU, torch.device("cuda")):  # a name needs no device
        assert Execution().name(device) == runtime_on(device)


@pytest.fixture
def tf32() -> Iterator[Callable[[bool], None]]:
    """Sets whether convolutions are rounded to TF32; matrix products are not."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    products.allow_tf32 = False
    yield lambda allowed: setattr(convolutions, "allow_tf32", allowed)
    convolutions.allow_tf32, products.allow_tf32 = before


def test_tf32_is_part_of_the_name(tf32: Callable[[bool], None]) -> None:
    cuda = torch.device("cuda")
    tf32(True)
    assert Execution(compile=True, fold=True).name(cuda) == "compiled fp32 folded cuda tf32"
    assert Execution().name(CPU) == "eager fp32 cpu"
    tf32(False)
    assert Execution().name(cuda) == "eager fp32 cuda"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision is 'int8'; choose one of fp32, bf16, fp16"),
        ({"precision": ["fp32"]}, "precision is"),
        ({"fold": 1}, "fold is 1; it must be True or False"),
        ({"compile": "yes"}, "compile is 'yes'"),
        ({"folded": True}, "no option 'folded'; its options: precision, fold, compile"),
        ([], "it must be a mapping"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Execution.from_dict(options)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
@pytest.mark.parametrize("around", [False, True])
def test_casting(precision: str, dtype: torch.dtype, around: bool) -> None:
    layer, images = torch.nn.Linear(4, 4), torch.rand(2, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=around), torch.no_grad():
        with Execution(precision=precision).casting(CPU):
            assert layer(images).dtype == dtype
        assert layer(images).dtype == (torch.bfloat16 if around else torch.float32)
