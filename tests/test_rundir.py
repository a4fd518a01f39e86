"""What the run directory promises: whole files, matched checkpoints, and errors that say what to do."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odn_hybrid.errors import RunDirError, StorageError
from odn_hybrid.rundir import (
    RunDir,
    environment,
    files,
    flatten_state,
    unflatten_state,
)

RECIPE: dict[str, Any] = {"seed": 0, "optim": {"lr": 0.1, "betas": (0.9, 0.95)}, "model": {"name": None}}
FOUND = {
    "data": {"digests": {"test": "abc"}},
    "preprocess": {"mean": (0.5,)},
    "environment": {"cpu_count": 2},
}


def begun(path: Path, recipe: dict[str, Any] = RECIPE) -> RunDir:
    run = RunDir.create(path, recipe, resume=False)
    run.begin(FOUND)
    return run


def finished(path: Path) -> RunDir:
    run = begun(path)
    run.save_tensors("model.safetensors", {"weight": torch.arange(6.0)})
    run.write_json("report.json", {"exits": []})
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- who may use a place --------------------------------------------------------------------------


def test_nothing_is_written_before_begin(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "a" / "b", RECIPE, resume=False)
    assert not (tmp_path / "a").exists()
    run.begin(FOUND)
    stored = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert stored["schema"] == 1 and stored["recipe"]["optim"]["lr"] == 0.1
    assert stored["preprocess"] == {"mean": [0.5]} and not run.resumed


def test_an_empty_folder_or_a_killed_start_is_free(tmp_path: Path) -> None:
    (tmp_path / ".odn-0123.tmp").write_text("half")
    begun(tmp_path)
    assert sorted(content(tmp_path)) == ["config.json"]


@pytest.mark.parametrize("resume", [False, True])
def test_foreign_files_are_refused_and_untouched(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("dear to me")
    with pytest.raises(RunDirError, match=r"thesis\.tex.*--out"):
        RunDir.create(tmp_path, RECIPE, resume=resume)
    assert content(tmp_path) == {"thesis.tex": b"dear to me"}


def test_places_that_cannot_be_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "dangling", "dangling/below", "nul\0byte", "x" * 300):
        with pytest.raises((RunDirError, StorageError)):
            RunDir.create(tmp_path / name, RECIPE, resume=False).begin()
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


def test_another_run_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "interrupted")
    finished(tmp_path / "finished")
    for kind in ("interrupted", "finished"):
        with pytest.raises(RunDirError, match=rf"{kind} run.*--out.*--resume"):
            RunDir.create(tmp_path / kind, RECIPE, resume=False)


def test_resume_takes_the_same_recipe_only(tmp_path: Path) -> None:
    begun(tmp_path)
    again = RunDir.create(tmp_path, {**RECIPE, "environment": {"cpu_count": 64}}, resume=True)
    assert again.resumed and again.config["data"] == FOUND["data"]
    for changed, name in (
        ({**RECIPE, "seed": 1}, r"seed was 0, is now 1"),
        ({**RECIPE, "optim": {"lr": 0.2, "betas": [0.9, 0.95]}}, r"optim\.lr was 0\.1, is now 0\.2"),
        ({**RECIPE, "optim": {"lr": 0.1, "betas": [0.9, 0.99]}}, r"optim\.betas\[1\]"),
        ({"seed": 0, "optim": RECIPE["optim"], "extra": 1}, "extra"),
        ({"optim": RECIPE["optim"]}, "seed"),
    ):
        with pytest.raises(RunDirError, match=name):
            RunDir.create(tmp_path, changed, resume=True)


def test_a_run_goes_on_where_paths_and_devices_are_others(tmp_path: Path) -> None:
    def asked(**data: Any) -> dict[str, Any]:
        place = {"workers": 8, "root": "/scratch/a", "augment": "shift", **data}
        return {"data": place, "device": "cuda", "frozen": {"folder": "/scratch", "passes": 1}}

    RunDir.create(tmp_path / "run", asked(), resume=False).begin({"recipe": asked()})
    there = {**asked(workers=0, root=None), "device": "cpu", "frozen": {"folder": None, "passes": 1}}
    run = RunDir.create(tmp_path / "run", there, resume=True)
    assert run.resumed
    run.begin({"recipe": there})
    for other in (asked(augment="none"), {**asked(), "frozen": {"folder": None, "passes": 2}}):
        with pytest.raises(RunDirError, match="another recipe"):
            RunDir.create(tmp_path / "run", other, resume=True)


def test_resume_where_nothing_is_starts(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "new", RECIPE, resume=True)
    run.begin(FOUND)
    assert not run.resumed and run.load_checkpoint() is None


def test_resume_notices_changed_data(tmp_path: Path) -> None:
    before = content(begun(tmp_path).path)
    RunDir.create(tmp_path, RECIPE, resume=True).begin({**FOUND, "environment": {"cpu_count": 1}})
    with pytest.raises(RunDirError, match=r"data\.digests\.test was \"abc\", is now \"abd\""):
        RunDir.create(tmp_path, RECIPE, resume=True).begin({**FOUND, "data": {"digests": {"test": "abd"}}})
    assert content(tmp_path) == before


def test_two_fits_cannot_begin_in_one_place(tmp_path: Path) -> None:
    first, second = (RunDir.create(tmp_path / "run", RECIPE, resume=False) for _ in range(2))
    first.begin()
    with pytest.raises(RunDirError, match="another process"):
        second.begin()


# --- opening --------------------------------------------------------------------------------------


def test_open_reads_what_was_written(tmp_path: Path) -> None:
    finished(tmp_path)
    run = RunDir.open(tmp_path)
    assert run.finished and run.config["recipe"]["seed"] == 0 and run.read_json("report.json")["exits"] == []
    assert torch.equal(run.load_tensors("model.safetensors")["weight"], torch.arange(6.0))


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    begun(tmp_path / "half")
    for name, reason in (
        ("absent", "no run directory"),
        ("file", "not a directory"),
        ("other", "no config.json"),
        ("half", "interrupted run.*--resume"),
    ):
        with pytest.raises(RunDirError, match=reason) as caught:
            RunDir.open(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "report.json"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"schema": 7}', "schema 7, this release reads 1"),
        (b'{"schema": true}', "schema True"),
        (b'{"schema": "1"}', "schema '1'"),
        (b'{"model_type": "bert"}', "not written by odn_hybrid"),
        (b"[]", "not written by odn_hybrid"),
        (b'{"schema": 1', "damaged"),
        (b"", "damaged"),
        (b'{"schema": 1, "x": NaN}', "damaged.*NaN"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 200_000, "damaged"),
        (b'{"schema": 1, "x": ' + b"9" * 5000 + b"}", "damaged"),
    ],
)
def test_open_refuses_damaged_json(tmp_path: Path, name: str, text: bytes, reason: str) -> None:
    finished(tmp_path)
    (tmp_path / name).write_bytes(text)
    with pytest.raises(RunDirError, match=reason) as caught:
        RunDir.open(tmp_path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@given(share=st.floats(0, 0.999))
def test_open_notices_tensors_cut_short(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    run = finished(tmp_path_factory.mktemp("run"))
    place = run.path / "model.safetensors"
    whole = place.read_bytes()
    place.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RunDirError, match=r"model\.safetensors is damaged or cut short"):
        RunDir.open(run.path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    run = finished(tmp_path)
    with pytest.raises(RunDirError, match=r"exits\.safetensors is missing"):
        run.load_tensors("exits.safetensors")
    with pytest.raises(RunDirError, match=r"policy\.json is missing"):
        run.read_json("policy.json")


# --- files ----------------------------------------------------------------------------------------


def test_json_is_standard(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.write_json(
        "policy.json",
        {
            "loss": math.nan,
            "best": -math.inf,
            "n": np.int64(3),
            "x": np.float32(0.5),
            2: (1, np.array([1, 2])),
        },
    )
    assert run.read_json("policy.json") == {
        "schema": 1, "loss": None, "best": None, "n": 3, "x": 0.5, "2": [1, [1, 2]],
    }  # fmt: skip
    with pytest.raises(TypeError, match="not JSON data"):
        run.write_json("policy.json", {"x": object()})
    assert run.read_json("policy.json")["n"] == 3


def test_large_json_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path)
    run.write_json("report.json", {"text": "x" * 2000})
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 1000)
    with pytest.raises(RunDirError, match="more than"):
        run.read_json("report.json")
    with pytest.raises(StorageError, match="more than"):
        run.write_json("report.json", {"text": "y" * 2000})


def test_tied_strided_and_empty_tensors(tmp_path: Path) -> None:
    run = begun(tmp_path)
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "a": base, "tied": base, "turned": base.T, "part": base[:, 1:3], "none": torch.empty(0, 3),
        "one": torch.tensor(7), "mask": base > 3, "half": base.bfloat16(), "weight": torch.nn.Parameter(base),
    }  # fmt: skip
    run.save_tensors("model.safetensors", tensors)
    loaded = run.load_tensors("model.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor.detach())


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name) for name in "ab"]
    for run in runs:
        run.save_checkpoint({"w": torch.ones(3)}, {"epoch": 1, "best": 0.5})
    first, second = (content(run.path) for run in runs)
    assert first == second


@pytest.mark.parametrize("name", ["../out.json", "a/b.json", "/abs.json", "..", ".", ""])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        begun(tmp_path / "run").write_json(name, {})


def test_symlinks_are_not_followed_for_writing(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("dear")
    run = begun(tmp_path / "run")
    for name in ("report.json", "history.jsonl"):
        (run.path / name).symlink_to(outside / "precious")
    (run.path / "checkpoint").symlink_to(outside)
    run.write_json("report.json", {})
    with pytest.raises(RunDirError, match="symbolic link"):
        run.append_history({"epoch": 1})
    with pytest.raises(RunDirError, match="symbolic link"):
        run.save_checkpoint({}, {})
    with pytest.raises(RunDirError, match="symbolic link"):
        run.clear_checkpoint()
    assert content(outside) == {"precious": b"dear"}
    assert not (run.path / "report.json").is_symlink()


# --- a disk that refuses --------------------------------------------------------------------------

WRITES = {
    "json": lambda run: run.write_json("report.json", {"new": True}),
    "tensors": lambda run: run.save_tensors("model.safetensors", {"weight": torch.zeros(2)}),
    "checkpoint": lambda run: run.save_checkpoint({"w": torch.zeros(2)}, {"epoch": 2}),
    "history": lambda run: run.append_history({"epoch": 2}),
}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EIO, "output error"),
    ],
)
@pytest.mark.parametrize("kind", WRITES)
def test_a_refusing_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int, words: str
) -> None:
    run = finished(tmp_path)
    run.save_checkpoint({"w": torch.ones(2)}, {"epoch": 1})
    run.append_history({"epoch": 1})
    before = content(tmp_path)

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match=rf"{words}.*intact.*--resume"):
            WRITES[kind](run)
    assert content(tmp_path) == before
    WRITES[kind](run)


def test_ctrl_c_while_writing_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(tmp_path)
    before = content(tmp_path)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        for write in WRITES.values():
            with pytest.raises(KeyboardInterrupt):
                write(run)
    after = content(tmp_path)
    assert after.pop("history.jsonl") == b"" and after == before


def test_a_start_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create(tmp_path / "a" / "b", RECIPE, resume=False)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError):
        run.begin(FOUND)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere"
)
def test_a_closed_parent_is_refused_early(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission"):
        RunDir.create(tmp_path / "run", RECIPE, resume=False)


# --- history --------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_needs_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.create(tmp_path / "run", {}, resume=False)
    run.begin()
    monkeypatch.setattr(os, "access", lambda *_: False)
    before = sorted(tmp_path.rglob("*"))
    with run.locked():
        assert sorted(tmp_path.rglob("*")) == before


def test_what_goes_wrong_under_the_lock_is_told_as_it_is(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {}, resume=False)
    run.begin()
    with pytest.raises(FileNotFoundError, match="somebody's own"), run.locked():
        raise FileNotFoundError("somebody's own")
    with run.locked():  # and the lock is free again
        pass


def test_history_keeps_rows_in_order(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert run.read_history() == [] and run.trim_history(3) == 0
    for epoch in range(5):
        run.append_history({"epoch": epoch, "loss": math.nan if epoch == 2 else 0.1 * epoch})
    rows = run.read_history()
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[2]["loss"] is None and rows[3]["loss"] == 0.1 * 3
    assert run.trim_history(3) == 3 and run.read_history() == rows[:3]


@pytest.mark.parametrize("torn", [b'{"epoch": 2', b'{"epoch": 2}', b"\0\0\0", b'{"text": "' + b"x" * 10_000])
def test_a_torn_last_line_does_not_count(tmp_path: Path, torn: bytes) -> None:
    run = begun(tmp_path)
    run.append_history({"epoch": 1})
    with open(tmp_path / "history.jsonl", "ab") as file:
        file.write(torn)
    assert run.read_history() == [{"epoch": 1}]
    run.append_history({"epoch": 2})
    assert run.read_history() == [{"epoch": 1}, {"epoch": 2}]


def test_damage_inside_the_history_is_named(tmp_path: Path) -> None:
    run = begun(tmp_path)
    (tmp_path / "history.jsonl").write_text('{"epoch": 1}\nrubbish\n{"epoch": 3}\n')
    with pytest.raises(RunDirError, match=r"line 2 of .*history\.jsonl"):
        run.read_history()


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    begun(tmp_path).append_history({"epoch": 1})
    again = RunDir.create(tmp_path, RECIPE, resume=True)
    again.begin(FOUND)
    assert again.load_checkpoint() is None and again.read_history() == []


# --- checkpoints ----------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert run.load_checkpoint() is None
    state = {"epoch": 3, "best": math.nan, 5: (1, None), "generator": torch.get_rng_state()}
    run.save_checkpoint({"state.w": torch.ones(2), "": torch.zeros(1)}, state)
    loaded = run.load_checkpoint()
    assert loaded is not None
    tensors, back = loaded
    assert tensors.keys() == {"state.w", ""} and torch.equal(tensors["state.w"], torch.ones(2))
    assert back["epoch"] == 3 and math.isnan(back["best"]) and back[5] == (1, None)
    assert torch.equal(back["generator"], state["generator"])
    run.clear_checkpoint()
    run.clear_checkpoint()
    assert run.load_checkpoint() is None and not (tmp_path / "checkpoint").exists()


def test_clearing_spares_foreign_files(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.save_checkpoint({}, {})
    (tmp_path / "checkpoint" / "notes.txt").write_text("mine")
    run.clear_checkpoint()
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["notes.txt"]


def test_a_damaged_checkpoint_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.save_checkpoint({"w": torch.ones(1000)}, {"epoch": 1})
    place = tmp_path / "checkpoint" / "state.safetensors"
    whole = place.read_bytes()
    for broken in (whole[:-1], whole[:50], b"", whole.replace(b"dict", b"dick")):
        place.write_bytes(broken)
        with pytest.raises(
            RunDirError, match=r"checkpoint of .* cannot be used.*delete .*--resume"
        ) as caught:
            run.load_checkpoint()
        assert "\n" not in str(caught.value)


WRITER = """
    import sys, torch
    from odn_hybrid.rundir import RunDir
    run = RunDir.create(sys.argv[1], {"seed": 0}, resume=False)
    run.begin()
    for step in range(1_000_000):
        run.append_history({"epoch": step})
        run.save_checkpoint({"w": torch.full((20_000,), float(step))}, {"step": step})
        print(step, flush=True)
"""


def test_kill_leaves_a_matched_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for attempt in range(2):
        path = tmp_path / f"run{attempt}"
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        last = -1
        for _ in range(int(rng.integers(1, 60))):
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        run = RunDir.create(path, {"seed": 0}, resume=True)
        run.begin()
        loaded = run.load_checkpoint()
        assert loaded is not None
        tensors, state = loaded
        assert state["step"] >= last and torch.equal(
            tensors["w"], torch.full((20_000,), float(state["step"]))
        )
        assert run.trim_history(state["step"] + 1) == state["step"] + 1
        assert [p.name for p in (path / "checkpoint").iterdir()] == ["state.safetensors"]


# --- nested state ---------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.integers() | st.text() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
STATES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return math.isnan(a) == math.isnan(b) and (math.isnan(a) or a.hex() == b.hex())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    return bool(a == b)


@given(state=STATES)
def test_nested_state_comes_back_exactly(state: Any) -> None:
    tensors, structure = flatten_state(state)
    assert same(unflatten_state(tensors, json.loads(json.dumps(structure, allow_nan=False))), state)


def test_optimizer_state_goes_on_identically(tmp_path: Path) -> None:
    def training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Linear(4, 2)
        torch.nn.init.constant_(model.weight, 0.1)
        torch.nn.init.zeros_(model.bias)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1 / 3)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 12).reshape(3, 4)).square().sum().backward()
        optimizer.step()

    run = begun(tmp_path)
    model, optimizer = training()
    step(model, optimizer)
    run.save_checkpoint(model.state_dict(), {"optimizer": optimizer.state_dict()})
    other, other_optimizer = training()
    loaded = run.load_checkpoint()
    assert loaded is not None
    other.load_state_dict(loaded[0])
    other_optimizer.load_state_dict(loaded[1]["optimizer"])
    for pair in ((model, optimizer), (other, other_optimizer)):
        step(*pair)
    assert torch.equal(model.weight, other.weight)


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is a set"):
        flatten_state({"a": [0, {1}]})


@pytest.mark.parametrize(
    "structure",
    [
        {"tensor": "9"},
        {"code": "x"},
        {"tuple": 3},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {},
        {"a": 1, "b": 2},
    ],
)
def test_a_structure_that_does_not_fit_is_refused(structure: Any) -> None:
    with pytest.raises(RunDirError, match="damaged"):
        unflatten_state({}, structure)


def test_environment_names_versions_and_no_one() -> None:
    found = environment()
    assert found["torch"] and found["numpy"] and found["python"] and found["cpu_count"] >= 1
    text = json.dumps(found)
    assert os.uname().nodename not in found.values() and "/" not in text and "@" not in text
