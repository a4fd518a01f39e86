"""What tests of the page "Static or dynamic?" have in common."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
CIFAR, DIGITS = "choosing_cifar10_small", "quickstart"
DEEP, PICTURED = "choosing_cifar10_deep", "choosing_digits"


def record(name):
    """A record by name."""
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def choose(page, name):
    """Choose a network by the name of its entry."""
    entries = page.evaluate("odnRecords.entries.map((one) => one.id)")
    page.select_option("#entry", str(entries.index(name)))


def answer(page):
    """The choice and all that is said of it."""
    return page.get_attribute("#verdict", "data-choice"), page.inner_text("#answer")
