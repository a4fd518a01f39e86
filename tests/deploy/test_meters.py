"""Peak memory of a call and energy of an image, where the machine tells them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from odn_hybrid.deploy.comparing import energy, memory
from odn_hybrid.deploy.comparing.energy import joules, meter_of
from odn_hybrid.deploy.comparing.memory import peak_growth

CPU = torch.device("cpu")
MB = 1 << 20


def allocating(size: int) -> Callable[[], object]:
    return lambda: bytearray(size).__setitem__(slice(0, size, 4096), b"x" * len(range(0, size, 4096)))


def test_peak_memory_is_what_a_call_adds_and_gives_back() -> None:
    small, how = peak_growth(lambda: None, CPU)
    if small is None:
        pytest.skip(how)
    grown, _ = peak_growth(allocating(96 * MB), CPU)
    again, _ = peak_growth(allocating(24 * MB), CPU)  # after a larger one
    assert grown is not None and again is not None
    assert small < 8 * MB and 90 * MB < grown < 120 * MB and 20 * MB < again < 48 * MB


def test_peak_memory_is_unknown_where_the_system_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert peak_growth(lambda: None, torch.device("meta")) == (None, "no memory counter for meta")
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "missing")
    found, why = peak_growth(lambda: None, CPU)
    assert found is None and "does not let a process reset" in why


def package(folder: Path, number: int, used: int, most: int = 1_000_000) -> Path:
    place = folder / f"intel-rapl:{number}"
    place.mkdir(parents=True)
    (place / "name").write_text(f"package-{number}\n")
    (place / "energy_uj").write_text(f"{used}\n")
    (place / "max_energy_range_uj").write_text(f"{most}\n")
    return place


def test_rapl_sums_packages_and_wraps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = package(tmp_path, 0, 900_000), package(tmp_path, 1, 100)
    core = tmp_path / "intel-rapl:0:0"  # a part of the first package, which holds it already
    core.mkdir()
    (core / "name").write_text("core\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    meter, how = meter_of(CPU)
    assert meter is not None and how == "RAPL, 2 processor packages"

    def work() -> None:
        (first / "energy_uj").write_text("99999\n")  # beyond its range: 200,000 microjoules on
        (second / "energy_uj").write_text("300100\n")

    assert meter.used(work) == pytest.approx(0.5)


def test_why_there_is_no_energy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    assert meter_of(CPU) == (None, f"no RAPL counters under {tmp_path / 'none'}")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    (package(tmp_path, 0, 1) / "energy_uj").unlink()
    meter, why = meter_of(CPU)
    assert meter is None and "cannot be read" in why and "need root" in why
    meter, why = meter_of(torch.device("mps"))
    assert meter is None and "mps" in why
    if not torch.cuda.is_available():
        meter, why = meter_of(torch.device("cuda"))
        assert meter is None and "NVML" in why


class Counter:
    """A meter that charges what each call says it costs."""

    name, seconds = "test", 0.0

    def __init__(self) -> None:
        self.spent, self.order = 0.0, ""

    def call(self, name: str, cost: float) -> Callable[[], object]:
        def run() -> None:
            self.spent += cost
            self.order += name

        return run

    def used(self, call: Callable[[], object]) -> float:
        before = self.spent
        call()
        return self.spent - before


def test_energy_is_per_image_and_turns_are_taken_there_and_back() -> None:
    meter = Counter()
    found = joules(meter, {"a": (meter.call("a", 8.0), 4), "b": (meter.call("b", 3.0), 1)})
    assert found == {"a": 2.0, "b": 3.0} and meter.order == "abba"
