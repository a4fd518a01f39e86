"""`odn report --html`: one page that opens anywhere, says what the report says, and asks nobody."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browsing import Watched, chromium, serious_faults
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.functional import one_hot

from odn_hybrid.errors import ConfigError, RunDirError, StorageError
from odn_hybrid.fitting import fit
from odn_hybrid.report import explain
from odn_hybrid.report.html import write_page
from odn_hybrid.report.html.stopping_images import early_and_late
from odn_hybrid.rundir import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
MOST = 3_000_000
HOSTILE = "</title><script>alert(1)</script><img src='https://example.org/x.png' onerror=alert(2)>"
THIN = {"model.args": {"layers": [1, 2, 1, 2], "channels": [8, 8, 16, 16]}, "exits.plan": "thin"}


class Read(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "poster")]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Three run directories: a tiny fit, a thin plan, the shared small network."""
    top = tmp_path_factory.mktemp("runs")
    all_exits = {**tiny["overrides"], "expansion.start": 4, "dynamic.drop": 0.001}
    fit(**{**tiny, "overrides": all_exits}, out=top / "tiny")
    fit(**{**tiny, "overrides": {**tiny["overrides"], **THIN}}, out=top / "thin")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from cifar10_small import unpack
    finally:
        sys.path.pop(0)
    unpack(top / "small")
    return top


@pytest.fixture(scope="module")
def pages(runs):
    return {name: write_page(runs / name) for name in ("tiny", "thin", "small")}


NAMES = ("tiny", "thin", "small")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_report_says(pages, runs, name):
    page, report = Read(pages[name].read_text(encoding="utf-8")), read_json(runs / name / "report.json")
    for line in explain(report).splitlines():
        assert " ".join(line.split()) in page.text
    for row in report["exits"]:
        if row["trained"]:
            assert f"{100 * row['accuracy']['test']['value']:.1f}" in page.text
    for share in (report["dynamic"] or {}).get("halting", ()):
        assert f"{100 * share:.2f} %" in page.text
    assert "No times were measured" in page.text


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_small_file_that_asks_nobody(pages, name):
    page = Read(pages[name].read_text(encoding="utf-8"))
    assert pages[name].stat().st_size < MOST
    assert "script" not in page.tags and "link" in page.tags
    assert all(address.startswith("data:") for address in page.addresses)
    assert "default-src 'none'" in pages[name].read_text()


def test_the_verdict_and_the_promise(pages):
    small = Read(pages["small"].read_text()).text
    assert "The answer Dynamic By MACs" in small and "67 % of the MACs" in small
    assert "loses at most 1 point against exit 8" in small and "eager fp32 cpu" in small
    assert "There is no halting model" in Read(pages["thin"].read_text()).text
    tiny = Read(pages["tiny"].read_text()).text  # too few images for a promise
    assert "There is no certificate: " in tiny and "nothing is promised of it" in tiny


def _halting_at_two_exits(run, folder):
    """A copy of a run in which every other test image stops at exit 1 and the others at exit 2."""
    report = read_json(_copy(run, folder) / "report.json")
    for row in report["dynamic"]["policy"]["table"]["rows"][:-1]:
        for one in row:
            one.update(edges=[0.5], stops=[False, True])
    write_json(folder / "report.json", report)
    outputs = load_file(folder / "outputs.safetensors")
    logits, labels = outputs["test.logits"], outputs["test.labels"]
    logits[:] = 50 * one_hot(labels.long(), logits.shape[-1])[:, None]  # sure and right
    logits[1::2, 0] = 0  # not sure at all
    save_file(outputs, folder / "outputs.safetensors")
    return folder


def test_pictures_or_why_there_are_none(runs, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))  # nothing is downloaded
    assert "not looked for in" in Read(write_page(runs / "small", tmp_path / "small.html").read_text()).text
    run = _halting_at_two_exits(runs / "tiny", tmp_path / "halting")
    page = Read(write_page(run).read_text())
    assert page.tags.count("img") == 16 and page.text.count("exit 1: ") == page.text.count("exit 2: ") == 8
    other = tmp_path / "other.npz"
    held = dict(np.load(tiny["data"]))
    np.savez(other, **{**held, "x_test": held["x_test"][::-1]})
    moved = Read(write_page(run, tmp_path / "moved.html", data=str(other)).read_text())
    assert "another digest" in moved.text and moved.tags.count("img") == 0


def test_measured_times_are_shown(runs, tmp_path):
    folder = _copy(runs / "small", tmp_path / "timed")
    report = read_json(folder / "report.json")
    quick = json.loads((ROOT / "benchmarks" / "records" / "quickstart.json").read_text())["report"]
    advice = {"choice": "static", "model": "static", "reason": "static runs 1.56 x as fast", "notes": []}
    write_json(
        folder / "report.json", {**report, "comparison": {**quick["comparison"], "recommendation": advice}}
    )
    page = Read(write_page(folder).read_text())
    assert "The answer Static By time, measured on cpu, 2 threads" in page.text
    for row in quick["comparison"]["rows"]:
        for size in ("1", "16", "64"):
            assert f"{row['speedup'][size]['median']:.2f} x" in page.text


def _copy(run, folder):
    folder.mkdir()
    for path in run.iterdir():
        if path.is_file() and path.suffix != ".html":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _hostile(runs, folder):
    report = read_json(_copy(runs / "small", folder) / "report.json")
    report["model"] = report["data"]["name"] = report["static"]["reason"] = HOSTILE
    report["data"]["classes"] = [HOSTILE] * 10
    report["dynamic"]["certificate"]["statement"] = HOSTILE
    report["environment"] = {HOSTILE: HOSTILE}
    write_json(folder / "report.json", report)
    return write_page(folder)


def test_names_from_outside_are_escaped(runs, tmp_path):
    text = _hostile(runs, tmp_path / "hostile").read_text(encoding="utf-8")
    page = Read(text)
    assert "script" not in page.tags and "img" not in page.tags and HOSTILE in page.text
    assert not re.search(r"<script|onerror=alert\(2\)>", text.replace("&lt;script", ""))


def test_a_damaged_report_is_refused_and_the_old_page_stays(runs, tmp_path, monkeypatch):
    folder = _copy(runs / "small", tmp_path / "run")
    page = write_page(folder)
    before = page.read_bytes()
    report = read_json(folder / "report.json")
    write_json(folder / "report.json", {**report, "exits": [{"exit": 1}]})
    with pytest.raises(RunDirError, match=r"report.json is damaged"):
        write_page(folder)
    write_json(folder / "report.json", report)

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("odn_hybrid.rundir.files.os.replace", full)
    with pytest.raises(StorageError, match="disk is full"):
        write_page(folder)
    assert page.read_bytes() == before
    with pytest.raises(ConfigError, match="is a folder"):
        write_page(folder, tmp_path)


def test_the_command_line(odn, runs, tmp_path):
    out = tmp_path / "new" / "page.html"
    assert odn("report", "--html", runs / "thin")[0] == 0
    status, said, told = odn("report", runs / "thin", "--html", "--out", out)
    assert (status, said) == (0, "") and str(out) in told and out.is_file()
    status, _, told = odn("report", runs / "thin", "--html", "--json")
    assert status == 2 and "leave out --json" in told
    status, _, told = odn("report", runs / "thin", "--out", out)
    assert status == 2 and "belong to --html" in told
    assert odn("report", runs / "thin")[0] == 0


def test_it_opens_from_disk_in_a_browser(pages, runs, tmp_path):
    hostile = _hostile(runs, tmp_path / "hostile")
    with chromium() as browser:
        for path in (*pages.values(), hostile):
            for scheme, width in (("light", 1200), ("dark", 360)):
                view = {"width": width, "height": 800}
                watched = Watched(browser, color_scheme=scheme, viewport=view)
                watched.page.goto(path.as_uri())
                assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
                assert watched.page.locator("svg").count() >= 2
                assert serious_faults(watched.page) == []
                assert watched.complaints == []
                assert watched.outside(path.as_uri()) == []
                watched.context.close()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 6))
def test_each_late_picture_stops_deeper_than_each_early_one(exits: list[int], most: int) -> None:
    taken = np.array(exits)
    early, late = early_and_late(taken, most)
    assert len(early) <= most and len(late) <= most
    assert all(taken[one] < taken[other] for one in early for other in late)
    if len(set(exits)) > 1:
        assert len(early) and taken[early].min() == min(exits)
        assert all(taken[early].max() <= taken[row] for row in set(range(len(exits))) - set(early.tolist()))
    else:
        assert not len(early) and not len(late)
