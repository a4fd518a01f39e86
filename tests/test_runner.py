"""The runner of exported halting models: right answers in any company, one clear error for anything else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import exporting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odn_hybrid.deploy.export.halting import export_halting
from odn_hybrid.deploy.export.halting_folder import write_manifest
from odn_hybrid.errors import ConfigError, ExportError, InputError, OdnError
from odn_hybrid.runner import HaltingRunner, certify, load
from odn_hybrid.runner.manifest import Manifest
from odn_hybrid.stopping import Calibration, HaltingTable, certify_sequence
from odn_hybrid.stopping.promises.speaking import policy_digest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, a graph per segment."""
    return export_halting(exporting.model(), tmp_path_factory.mktemp("export") / "segments")


@pytest.fixture(scope="module")
def runner(exported: Path) -> HaltingRunner:
    return load(exported, threads=1)


@pytest.fixture
def spoiled(exported: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return exporting.copied(exported, tmp_path / "spoiled")


@cache
def alone() -> Any:
    """What the model says to each image by itself, as (exit, logits)."""
    model = exporting.model()
    found = [model(image[None]) for image in exporting.images()]
    return np.array([one.exit.item() for one in found]), np.concatenate([one.logits for one in found])


# --- answers ------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(rows=st.lists(st.integers(0, 63), min_size=1, max_size=70))
def test_every_answer_is_that_of_running_alone(runner: HaltingRunner, rows: list[int]) -> None:
    out = runner(exporting.images()[rows].numpy())
    exits, logits = alone()
    assert out.exit.tolist() == exits[rows].tolist() == out.answered.tolist() == out.units_run.tolist()
    np.testing.assert_allclose(out.logits, logits[rows], rtol=0, atol=1e-5)
    assert out.logits.dtype == out.confidence.dtype == np.float32 and out.exit.dtype == np.int64


def test_images_are_not_written_to_and_may_lie_anyhow(runner: HaltingRunner) -> None:
    wanted = runner(exporting.images().numpy())
    given = np.ascontiguousarray(exporting.images().numpy().transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    given.flags.writeable = False
    before = given.copy()
    found = runner(given)
    np.testing.assert_array_equal(found.exit, wanted.exit)
    np.testing.assert_array_equal(found.logits, wanted.logits)
    np.testing.assert_array_equal(given, before)


def test_pixels_whose_sum_overflows_are_no_infinite_pixels(runner: HaltingRunner) -> None:
    runner(np.full((2, *exporting.SHAPE), 1e37, dtype=np.float32))


def test_two_threads_agree_with_one(exported: Path) -> None:
    shared = load(exported, threads=2)
    random = np.random.default_rng(0)
    batches = [random.permutation(64)[: random.integers(1, 64)] for _ in range(60)]
    images = exporting.images().numpy()
    one = [shared(images[rows]) for rows in batches]
    with ThreadPoolExecutor(2) as pool:
        two = list(pool.map(lambda rows: shared(images[rows]), batches))
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.exit, second.exit)
        np.testing.assert_array_equal(first.logits, second.logits)


def test_no_network_library_is_loaded_where_an_export_runs(exported: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from odn_hybrid.runner import load\n"
        f"runner = load({str(exported)!r}, threads=1)\n"
        f"out = runner(np.ones((3, *{exporting.SHAPE!r}), dtype=np.float32))\n"
        "assert out.logits.shape == (3, 5)\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'onnx', 'safetensors'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


# --- what its certificate speaks of -------------------------------------------------------------------


def earned(manifest: Manifest, runtime: str) -> dict[str, Any]:
    """A certificate of evidence in which nothing changed."""
    right = np.ones(400, dtype=bool)
    found = certify_sequence(right, right[None], drop=0.05, delta=0.05)
    digests = {"model": manifest.digest, "policy": policy_digest(manifest.policy), "runtime": runtime}
    told = {"drop": found.drop, "delta": found.delta, "certified": found.certified}
    return {"kind": "sequence", **told, "digests": digests, "evidence": found.to_dict()}


def test_certified_is_said_only_of_this_runtime_and_these_graphs(spoiled: Path) -> None:
    images = exporting.images().numpy()
    manifest = load(spoiled).manifest
    assert load(spoiled).void == "there is no certificate" and not load(spoiled)(images).certified
    own = earned(manifest, HaltingRunner.runtime)
    write_manifest(spoiled, replace(manifest, certificate=own))
    assert load(spoiled).void is None and load(spoiled)(images).certified
    for other, says in (
        (earned(manifest, "eager fp32 cpu"), "onnxruntime fp32 cpu, earned with eager fp32 cpu"),
        ({**own, "digests": {**own["digests"], "model": "0" * 64}}, "the model is another"),
        ({**own, "drop": 0.001}, "it claims more than its evidence gives"),
        ({"certified": True}, "it does not say what it speaks of"),
    ):
        write_manifest(spoiled, replace(manifest, certificate=other))
        assert says in str(load(spoiled).void) and not load(spoiled)(images).certified


def test_a_promise_is_earned_where_the_export_runs(spoiled: Path) -> None:
    images = np.tile(exporting.images().numpy(), (40, 1, 1, 1))
    deepest = np.tile(exporting.logits()[:, -1].argmax(1), 40)  # the deepest exit is always right
    answers = load(spoiled)(images).logits.argmax(1)
    worse = float((answers != deepest).mean())
    assert 0 < worse < 0.5
    refused = certify(spoiled, images, deepest, drop=worse / 2)
    assert not refused["certified"] and load(spoiled).void == "it was refused"
    again = certify(spoiled, images, deepest, drop=min(2 * worse, 0.9))
    assert again["certified"] and (again["attempt"], again["n"]) == (2, len(images))
    assert again["delta"] < refused["delta"] <= 0.05
    assert "against exit 3" in again["statement"] and "the images given" in again["statement"]
    assert load(spoiled)(images[:2]).certified
    assert [path.name for path in spoiled.iterdir() if path.name.startswith(".")] == []


def test_a_promise_needs_labels_that_fit_and_images(spoiled: Path) -> None:
    images = exporting.images().numpy()
    for bad in (lambda: certify(spoiled, images, np.zeros(3, int)), lambda: certify(spoiled, images[:0], [])):
        with pytest.raises(InputError):
            bad()
    with pytest.raises(ConfigError, match="batch is 0"):
        certify(spoiled, images, np.zeros(64, int), batch=0)
    assert load(spoiled).void == "there is no certificate"


# --- images it cannot take ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (exporting.images(), "must be a numpy array, not Tensor"),
        ([[1.0]], "must be a numpy array, not list"),
        (np.zeros((3, 8, 8), np.float32), r"shape \(3, 8, 8\); expected \(batch, 3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.float32), r"shape \(2, 8, 8, 3\); expected"),
        (np.zeros((0, 3, 8, 8), np.float32), "the batch is empty"),
        (np.zeros((2, 3, 8, 8)), "images are float64; the model is float32"),
        (np.zeros((2, 3, 8, 8), np.uint8), "images are uint8"),
        (np.full((2, 3, 8, 8), np.nan, np.float32), "hold NaN or infinite values"),
        (np.full((2, 3, 8, 8), -np.inf, np.float32), "hold NaN or infinite values"),
    ],
)
def test_images_it_cannot_take(runner: HaltingRunner, images: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        runner(images)
    assert "\n" not in str(caught.value)
    assert runner(exporting.images()[:9].numpy()).exit.tolist() == alone()[0][:9].tolist()


def test_one_bad_pixel_is_found(runner: HaltingRunner) -> None:
    images = exporting.images().numpy().copy()
    images[63, 2, 7, 7] = np.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        runner(images)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_threads_that_are_no_number(exported: Path, threads: Any) -> None:
    with pytest.raises(ConfigError, match="threads is"):
        load(exported, threads=threads)


# --- folders it cannot take ---------------------------------------------------------------------------


def refused(folder: Path) -> str:
    """The one line that loading says."""
    with pytest.raises(ExportError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(folder: Path, **fields: Any) -> Path:
    """The folder with other fields in its manifest, as an editor would write them."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def test_no_folder(tmp_path: Path) -> None:
    assert "there is no such folder" in refused(tmp_path / "none")
    assert "there is no such folder" in refused(tmp_path / "a\0b")
    (tmp_path / "file").write_text("x")
    assert "not a folder" in refused(tmp_path / "file")
    assert "manifest.json is missing" in refused(tmp_path)


def test_graphs_cut_short_changed_or_gone(spoiled: Path) -> None:
    path = spoiled / "segment_2.onnx"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    assert f"it has {len(data) - 100} bytes, manifest.json says {len(data)}" in refused(spoiled)
    path.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    assert "another sha256" in refused(spoiled)
    path.unlink()
    assert "segment_2.onnx is missing" in refused(spoiled)
    path.write_bytes(data)
    assert load(spoiled).manifest.exits == (1, 2, 3)


def test_bytes_that_are_no_graph(spoiled: Path) -> None:
    (spoiled / "segment_1.onnx").write_bytes(b"nonsense")
    graphs = json.loads((spoiled / "manifest.json").read_text())["graphs"]
    graphs[0].update(bytes=8, sha256=hashlib.sha256(b"nonsense").hexdigest())
    assert "onnxruntime cannot run segment_1.onnx" in refused(changed(spoiled, graphs=graphs))


def test_graphs_in_each_others_place(spoiled: Path) -> None:
    graphs = json.loads((spoiled / "manifest.json").read_text())["graphs"]
    for name in ("file", "bytes", "sha256"):
        graphs[0][name], graphs[1][name] = graphs[1][name], graphs[0][name]
    assert "the manifest names others" in refused(changed(spoiled, graphs=graphs))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'{"schema": NaN}', "NaN is not standard JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "no schema number"),
        (b'{"schema": 2}', "schema 2, this release reads 1: use the release that wrote it"),
        (b'{"schema": "1"}', "schema '1'"),
        (b'{"schema": true}', "schema True"),
        (b'{"schema": 1}', "it lacks attempts"),
    ],
)
def test_manifests_that_are_none(spoiled: Path, text: bytes, says: str) -> None:
    (spoiled / "manifest.json").write_bytes(text)
    assert says in refused(spoiled)


def test_a_manifest_too_large_to_be_one(spoiled: Path) -> None:
    with open(spoiled / "manifest.json", "r+b") as file:
        file.truncate(17 << 20)
    assert "more than the 16777216 allowed" in refused(spoiled)


def test_a_policy_for_another_model(spoiled: Path) -> None:
    table = HaltingTable.of_thresholds([0.5, 0.5], Calibration.of_temperatures([1.0, 1.0]))
    said = {"policy": table.to_dict(), "policy_sha256": policy_digest(table)}
    assert "the policy has 2 exits, the export 3" in refused(changed(spoiled, **said))
    scale = Calibration("vector", np.ones((3, 7)), np.zeros((3, 7)))
    table = HaltingTable.of_thresholds([0.5] * 3, scale)
    said = {"policy": table.to_dict(), "policy_sha256": policy_digest(table)}
    assert "calibrated for 7 classes, the export has 5" in refused(changed(spoiled, **said))
    table = HaltingTable.of_thresholds([2.0, 0.5, 0.5], Calibration.of_temperatures([1.0] * 3))
    said = {"policy": table.to_dict(), "policy_sha256": policy_digest(table)}
    assert "looks at its exits [2, 3], the graphs are for [1, 2, 3]" in refused(changed(spoiled, **said))
    table = exporting.policy("margin")
    assert "another policy than was exported" in refused(changed(spoiled, policy=table.to_dict()))


@pytest.mark.parametrize(
    "name",
    ["../segment_1.onnx", "/etc/passwd", "sub/segment_1.onnx", "..", "", "segment_1", ".x.onnx", 7, None],
)
def test_files_by_other_names_than_plain_ones(spoiled: Path, name: Any) -> None:
    graphs = json.loads((spoiled / "manifest.json").read_text())["graphs"]
    graphs[0]["file"] = name
    assert "expected a plain name that ends in .onnx" in refused(changed(spoiled, graphs=graphs))


def test_links_out_of_the_folder_and_pipes(spoiled: Path, tmp_path: Path) -> None:
    inside = spoiled / "segment_1.onnx"
    outside = inside.rename(tmp_path / "outside.onnx")
    inside.symlink_to(outside)
    assert "a link out of the folder" in refused(spoiled)
    inside.unlink()
    os.mkfifo(inside)
    assert "not a file" in refused(spoiled)  # and does not wait for somebody to write into it
    inside.unlink()
    inside.symlink_to(inside)
    assert "segment_1.onnx" in refused(spoiled)
    (tmp_path / "elsewhere").symlink_to(spoiled)
    inside.unlink()
    inside.write_bytes(outside.read_bytes())
    assert load(tmp_path / "elsewhere").manifest.classes == 5  # the folder itself may be found by a link


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value of JSON data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(way for key, item in inner for way in leaves(item, (*path, key)))]


@settings(max_examples=300)
@given(data=st.data())
def test_any_value_of_a_manifest_may_be_garbage(exported: Path, data: st.DataObject) -> None:
    told = json.loads((exported / "manifest.json").read_text())
    way = data.draw(st.sampled_from(leaves(told)[1:]))
    garbage = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
        st.just(10**400), st.just([[]] * 3),
    )  # fmt: skip
    place = told
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = data.draw(garbage)
    try:
        Manifest.from_dict(told)
    except OdnError as error:
        assert isinstance(error, ExportError) and "\n" not in str(error)
