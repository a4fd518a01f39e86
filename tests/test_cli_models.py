"""`odn models`: rows on stdout as they come, the rest on stderr, and statuses that scripts can use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from odn_hybrid.catalog import Entry

Call = Callable[..., tuple[int, str, str]]


def test_the_table_has_a_row_for_each_model_that_matches(odn: Call) -> None:
    status, out, err = odn("models", "test_vit*")
    assert status == 0
    header, *rows = out.splitlines()
    assert " ".join(header.split()) == "name units exits stages removable GMACs MParams split"
    assert [row.split()[0] for row in rows] == [
        "test_vit",
        "test_vit2",
        "test_vit3",
        "test_vit4",
        "test_vit_relpos",
    ]
    assert all(row.split()[-1] == "yes" and row.split()[1] == row.split()[2] for row in rows)
    assert err == "5 of 5 are split\n"


def test_a_refused_model_has_its_reason_below_it(odn: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    status, out, err = odn("models", "vgg11")
    _, row, *reason = out.splitlines()
    assert status == 0 and row.split()[-1] == "no" and row.split()[1:5] == ["-"] * 4
    assert "VGG" in " ".join(reason)
    assert all(line.startswith("    ") and len(line) <= 60 for line in reason)
    assert err == "0 of 1 are split\n"


def test_json_is_a_list_of_entries(odn: Call) -> None:
    status, out, err = odn("models", "*v*gg11", "--json")
    assert status == 0 and err == ""
    entries = json.loads(out)
    assert [entry["name"] for entry in entries] == ["vgg11", "torchvision/vgg11"]
    assert not entries[0]["supported"] and "VGG" in entries[0]["reason"]


def test_check_says_that_it_was_checked(odn: Call) -> None:
    status, out, _ = odn("models", "test_resnet", "--check")
    assert status == 0 and out.splitlines()[1].split()[-1] == "checked"
    status, out, _ = odn("models", "test_resnet", "--check", "--json")
    (entry,) = json.loads(out)
    assert status == 0 and entry["checked"] is True and entry["evidence"]["unreached"] == []


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_failed_check_is_status_1(odn: Call, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    import odn_hybrid.catalog as catalog

    real = catalog.describe

    def broken(name: str, *, check: bool) -> Entry:
        entry = real(name, macs=False)
        return replace(entry, checked=False, reason="it fails here") if name == "test_vit2" else entry

    monkeypatch.setattr(catalog, "describe", broken)
    status, out, err = odn("models", "test_vit[23]", "--check", *flags)
    assert status == 1
    assert err.splitlines()[-1] == "odn: 1 of 2 models failed the check: test_vit2"
    assert "it fails here" in out and "test_vit3" in out


@pytest.mark.parametrize(
    ("pattern", "near"), [("resnett*", "resnet"), ("torchvison/resnet18", "torchvision/resnet18")]
)
def test_a_pattern_that_matches_nothing_is_status_2(odn: Call, pattern: str, near: str) -> None:
    status, out, err = odn("models", pattern)
    assert status == 2 and out == ""
    assert err.startswith(f"odn: no model of timm or torchvision matches {pattern!r}; names like it: ")
    assert near in err and err.count("\n") == 1


def test_without_a_pattern_all_of_timm_is_listed(odn: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    import odn_hybrid.catalog as catalog

    monkeypatch.setattr(catalog, "describe", lambda name, *, check: Entry(name=name, family=""))
    _, out, _ = odn("models", "--json")
    assert [entry["name"] for entry in json.loads(out)] == timm.list_models()
