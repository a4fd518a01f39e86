"""Every figure in README.md and theory/ comes from a committed record: the tables agree with them."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("*.json"))


def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_say_what_the_records_say():
    module = tables()
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in module.PAGES]
    for name in module.TABLES:
        assert sum(f"<!-- table: {name} -->" in text for text in texts) == 1
    for text in texts:
        assert module.filled(text) == text, "run: python benchmarks/tables.py"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_what_it_is(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["claim"]
    assert record["command"].startswith("python benchmarks/")
    assert (ROOT / record["command"].split()[1]).is_file()
    assert record["environment"]["python"]
    assert "/" not in record["command"].removeprefix("python benchmarks/")
