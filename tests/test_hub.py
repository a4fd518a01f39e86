"""Folders and repositories in Hugging Face's convention: what goes up comes down, and nothing else does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects
from torch import Tensor, nn

import odn_hybrid as odn
from odn_hybrid import HaltingModel, Run
from odn_hybrid.errors import ConfigError, OdnError, RunDirError, StorageError
from odn_hybrid.fitting import fit

KINDS = ("run", "static", "halting")
SAME: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def run(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = {**tiny["overrides"], "expansion.max_looks": 12}
    return fit(**{**tiny, "overrides": overrides}, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def things(run: Run) -> dict[str, Any]:
    return {"run": run, "static": run.truncate(depth=2), "halting": run.dynamic(certify=False)}


@pytest.fixture(scope="module")
def images(run: Run) -> Tensor:
    return run.transform(np.random.default_rng(0).integers(0, 256, (9, 12, 12), dtype=np.uint8))


def logits(thing: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        if isinstance(thing, Run):
            return torch.stack(thing.network.eval()(images))
        found = thing(images)
    return found.logits if isinstance(thing, HaltingModel) else found


class Hub:
    """The hub as huggingface_hub's calls show it: repositories are folders, downloads are links into them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: dict[str, Any] = {}
        self.error: Exception | None = None

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
        if self.error is not None:
            raise self.error
        self.asked["private"] = private
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str], **more: Any) -> str:
        self.asked |= more
        here = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        for name in filter_repo_objects(here, allow_patterns=allow_patterns):
            shutil.copy(Path(folder_path) / name, self.folder / repo_id / name)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot_download(self, repo_id: str, allow_patterns: list[str], **more: Any) -> str:
        self.asked |= more
        if self.error is not None:
            raise self.error
        cache = self.folder / "cache" / repo_id
        cache.mkdir(parents=True)
        names = [path.name for path in (self.folder / repo_id).iterdir()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (cache / name).symlink_to(self.folder / repo_id / name)
        return str(cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: found)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


# --- there and back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_comes_back(kind: str, things: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    folder = odn.save_pretrained(things[kind], tmp_path / "model")
    found = odn.from_pretrained(folder)
    assert type(found).__name__ == type(things[kind]).__name__
    assert torch.allclose(logits(found, images), logits(things[kind], images), **SAME)
    assert torch.allclose(logits(odn.load(folder), images), logits(found, images), **SAME)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pushed_is_what_is_pulled(
    kind: str, things: dict[str, Any], images: Tensor, hub: Hub
) -> None:
    url = odn.push_to_hub(things[kind], "me/model", private=True, branch="b", commit_message="First")
    assert url == "https://huggingface.co/me/model/commit/1"
    assert hub.asked == {
        "private": True, "revision": "b", "commit_message": "First", "repo_type": "model", "create_pr": None
    }  # fmt: skip
    kept = {path.suffix for path in (hub.folder / "me/model").iterdir()}
    assert kept <= {".json", ".jsonl", ".safetensors", ".md"} and ".safetensors" in kept
    found = odn.from_pretrained("me/model", revision="b")
    assert hub.asked["revision"] == "b"
    assert torch.allclose(logits(found, images), logits(things[kind], images), **SAME)


def test_nothing_but_our_own_files_is_asked_for(run: Run, hub: Hub) -> None:
    odn.push_to_hub(run.truncate(depth=1), "me/model")
    for name in ("pytorch_model.bin", "model.pkl", "evil.py", "other.safetensors"):
        (hub.folder / "me/model" / name).write_bytes(b"\x80\x04.")
    odn.from_pretrained("me/model")
    assert {path.name for path in (hub.folder / "cache/me/model").iterdir()} == {
        "model.json",
        "model.safetensors",
    }


def test_no_path_of_this_machine_leaves_it(run: Run, tiny_npz: Path, hub: Hub) -> None:
    assert str(tiny_npz) == run.parts.config["recipe"]["data"]["source"]
    odn.push_to_hub(run, "me/model")
    for path in (hub.folder / "me/model").iterdir():
        assert str(tiny_npz.parent).encode() not in path.read_bytes(), path.name
    found = odn.from_pretrained("me/model")
    found.use_data(str(tiny_npz))  # which is checked to be the same
    assert str(tiny_npz) == run.parts.config["recipe"]["data"]["source"]


def test_a_run_from_the_hub_writes_nothing_into_the_cache(run: Run, tiny_npz: Path, hub: Hub) -> None:
    odn.push_to_hub(run, "me/model")
    found = odn.from_pretrained("me/model")
    cache = hub.folder / "cache/me/model"
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    assert found.path is None and found.ledger == run.ledger
    found.certify(drop=0.5)
    assert len(found.ledger) >= len(run.ledger)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


# --- the card ---------------------------------------------------------------------------------------


def test_the_card_of_a_run(run: Run, tmp_path: Path) -> None:
    odn.save_pretrained(run, tmp_path / "model", repo_id="me/model", license="mit")
    card = huggingface_hub.ModelCard.load(tmp_path / "model" / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "odn-hybrid" and data["license"] == "mit"
    assert data["pipeline_tag"] == "image-classification" and data["metrics"] == ["accuracy"]
    assert {"odn-hybrid", "timm", "early-exit"} <= set(data["tags"])
    assert "datasets" not in data and "base_model" not in data  # a file of one's own; nothing pretrained
    (result,) = card.data.eval_results
    static = run.exits_[run.depth_["exit"] - 1]
    assert result.metric_value == pytest.approx(static["accuracy"]["test"]["value"])
    rows = [line for line in card.text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [row.split("|")[2].strip() for row in rows] == [str(row["units"]) for row in run.exits_]
    assert run.depth_["reason"] in card.text
    assert 'odn.from_pretrained("me/model")' in card.text


def test_the_card_of_a_promise_says_what_it_does_not_cover(run: Run, tmp_path: Path) -> None:
    model = run.dynamic(drop=0.5, delta=0.2)
    assert model.certificate is not None
    odn.save_pretrained(model, tmp_path / "certified", run=run)
    text = (tmp_path / "certified" / "README.md").read_text()
    assert model.certificate["statement"] in text and "It does not cover:" in text
    for name in ("model", "policy", "data"):
        assert model.certificate["digests"][name] in text
    assert model.certificate["digests"]["runtime"] in text
    odn.save_pretrained(run.dynamic(certify=False), tmp_path / "free", run=run)
    assert "nothing is promised" in (tmp_path / "free" / "README.md").read_text()


def test_the_card_of_a_static_model_promises_nothing(run: Run, tmp_path: Path) -> None:
    odn.save_pretrained(run.truncate(depth=2), tmp_path / "model", run=run)
    text = (tmp_path / "model" / "README.md").read_text()
    assert "cut to 2 units" in text and "This model is exit 2." in text
    assert "ertificate" not in text


# --- what goes wrong --------------------------------------------------------------------------------


def one_line(error: OdnError) -> None:
    assert "\n" not in str(error)


def test_a_hub_that_refuses(run: Run, hub: Hub) -> None:
    hub.error = HfHubHTTPError(
        "403 Forbidden:\nnot yours", response=type("R", (), {"headers": {}, "request": None})()
    )
    with pytest.raises(StorageError, match=r"cannot push to 'me/model'.*403 Forbidden") as pushed:
        odn.push_to_hub(run.truncate(depth=1), "me/model")
    one_line(pushed.value)
    with pytest.raises(RunDirError, match=r"no folder 'me/model'.*403 Forbidden") as pulled:
        odn.from_pretrained("me/model")
    one_line(pulled.value)


def test_a_repository_that_cannot_be_reached() -> None:
    with pytest.raises(RunDirError, match="no folder 'me/absent', and the Hugging Face hub") as caught:
        odn.from_pretrained("me/absent")
    one_line(caught.value)


def test_a_repository_without_a_model_of_ours(hub: Hub) -> None:
    (hub.folder / "me/model").mkdir(parents=True)
    (hub.folder / "me/model" / "config.json").write_text(json.dumps({"architectures": ["Bert"]}))
    with pytest.raises(RunDirError, match="not written by odn_hybrid"):
        odn.from_pretrained("me/model")


def test_bad_names_and_things(run: Run, tmp_path: Path, hub: Hub) -> None:
    model = run.truncate(depth=1)
    for name in ("a/b/c", "", "me/mo del", "../me"):
        with pytest.raises(ConfigError, match="neither a folder nor the name of a repository"):
            odn.push_to_hub(model, name)
        with pytest.raises(OdnError):
            odn.from_pretrained(name)
    with pytest.raises(ConfigError, match="has no revision 'v1'"):
        odn.from_pretrained(odn.save_pretrained(model, tmp_path / "model"), revision="v1")
    with pytest.raises(ConfigError, match="cannot save a Linear"):
        odn.push_to_hub(nn.Linear(2, 2), "me/model")
    with pytest.raises(RunDirError, match="not empty"):
        odn.save_pretrained(model, tmp_path / "model")
    assert not hub.folder.exists()
