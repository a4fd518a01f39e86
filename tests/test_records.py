"""Every figure in README.md and docs/ comes from a committed record: the pages agree with them.

The pages of theory/ read their records when they are executed.
"""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("*.json"))


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_say_what_the_records_say(tables):
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    for name in tables.TABLES:
        assert sum(f"<!-- table: {name} -->" in text for text in texts) == 1
    for page, (there, right) in tables.pages().items():
        assert there == right, f"{page}: run python benchmarks/tables.py"


COVERAGE = {
    "summary": {
        "names": 12, "split": 9, "split_share": 0.75, "counted": 6, "counted_share": 0.5,
        "families_not_passed": ["bent"], "minutes": 4.2, "processes": 2,
    },
    "families": {
        "bent": {"names": 3, "split": 3, "rest": []},
        "resnet": {"names": 6, "split": 6, "rest": []},
        "vgg": {
            "names": 3, "split": 0,
            "rest": [{"reason": "'stages_0' is_not <one>", "count": 3, "examples": ["vgg11", "vgg13"]}],
        },
    },
    "traced_by": None,
    "environment": {"timm": "1.2.3"},
}  # fmt: skip
CHECK = {
    "passed": True, "model": "resnet10t", "image_size": [176, 176], "units": 4, "macs": 700_000_000,
    "reason": "", "resumed_difference": 0.0, "part_difference": 2.4e-7,
}  # fmt: skip
SWEEP = {
    "summary": {
        "families": 3, "claimed": 2, "passed": 1, "minutes": 6.0, "processes": 2,
        "allowed": {"resumed_difference": 1e-5, "part_difference": 1e-4},
    },
    "families": {
        "bent": {**CHECK, "passed": False, "model": "bent_s", "reason": "the resumed run differs"},
        "resnet": CHECK,
        "vgg": {"passed": False, "model": None, "reason": "no blocks"},
    },
}  # fmt: skip


def test_the_page_of_models_tells_figures_and_reasons(tables):
    text = tables.models_page(COVERAGE, SWEEP)
    assert "| names in timm 1.2.3 | 12 |" in text
    assert "9 (75.0 %)" in text and "6 (50.0 %)" in text
    assert "| resnet | 6 | 6 | resnet10t | 176 x 176 | 4 | 700 | 0 | 2e-07 |" in text
    assert "| vgg | 3 | 0 | - |" in text and "| bent | 3 | 3 | bent_s: failed |" in text
    assert "- **vgg** (3 of 3: `vgg11`, `vgg13`, ...): 'stages\\_0' is\\_not \\<one\\>" in text
    assert "- **bent** (not counted; `bent_s` failed): the resumed run differs" in text
    assert all(not line.endswith(" ") for line in text.splitlines()) and text.endswith("\n")


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_what_it_is(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["claim"]
    assert record["command"].startswith("python benchmarks/")
    assert (ROOT / record["command"].split()[1]).is_file()
    assert record["environment"]["python"]
    assert "/" not in record["command"].removeprefix("python benchmarks/")


def test_a_record_that_takes_days_grows_and_is_mended_entry_by_entry(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("record", ROOT / "benchmarks" / "record.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    monkeypatch.setattr(record, "RECORDS", tmp_path)

    def add(*new):
        return record.gathered("slow", "runs", list(new), lambda one: one["seed"])

    assert add({"seed": 1, "value": 5}) == [{"seed": 1, "value": 5}]
    (tmp_path / "slow.json").write_text(json.dumps({"runs": add({"seed": 1, "value": 5})}))
    assert add({"seed": 0, "value": 3}) == [{"seed": 0, "value": 3}, {"seed": 1, "value": 5}]
    assert add({"seed": 1, "value": 6}) == [{"seed": 1, "value": 6}]
