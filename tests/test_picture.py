"""README.md's picture is what benchmarks/picture.py draws from the records."""

import copy
import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("picture", ROOT / "benchmarks" / "picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_what_the_records_say(drawing):
    there = (ROOT / "docs" / "picture.svg").read_text(encoding="utf-8")
    assert there == drawing.picture(), "run python benchmarks/picture.py"


def test_the_readme_shows_it_with_words_for_those_who_do_not_see_it():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    words = re.search(r"!\[([^]]+)\]\(docs/picture\.svg\)", text)
    assert words and len(words[1]) > 100


def test_it_is_one_small_file_that_loads_nothing(drawing):
    drawn = drawing.picture()
    root = ElementTree.fromstring(drawn)
    assert len(drawn) < 20_000
    assert root.get("aria-label")
    assert not re.search(r"href|@import|url\(|<script", drawn)


def test_it_follows_the_records(drawing):
    changed = {name: copy.deepcopy(drawing.load(name)) for name in ("halting_speed", "choosing_cifar10_deep")}
    row = changed["halting_speed"]["passes"]["eager"]["64"]["rows"]["static, exit 7"]
    row["over_full"]["throughput"]["median"] = 1.23
    assert "1.23 x" in drawing.picture(changed.__getitem__)
    changed["halting_speed"]["fit"]["seconds"] += 1
    with pytest.raises(ValueError, match="different fits"):
        drawing.picture(changed.__getitem__)
