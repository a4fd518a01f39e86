"""Devices and batch sizes on the page "Static or dynamic?": times, pictures and sources are the records'."""

import importlib
import json
import re

import pytest
from browsing import serious_faults
from choosing_page import CIFAR, DEEP, DIGITS, PICTURED, RECORDS, ROOT, answer, choose, record

SPEED, EXPORTED = "halting_speed", "exported_halting"
SIZES = ("1", "16", "64")
TABLE = re.compile(r"<!-- table: timed -->\n(.*?)\n<!-- end: timed -->", re.S)


def gain(one, form="{median:.2f} x [{low:.2f}, {high:.2f}]"):
    return form.format(**one)


def in_words(one):
    return gain(one, "{median:.2f} x (95 % interval {low:.2f} to {high:.2f})")


def cells(page, where):
    """The rows of a table, cell by cell."""
    rows = page.locator(f"{where} tbody tr")
    return [rows.nth(at).locator("th, td").all_inner_texts() for at in range(rows.count())]


def with_device(page):
    choose(page, DEEP)
    assert "Timed on cpu, 2 threads" in page.inner_text("#device")


def test_figures_change_with_the_batch_size_as_the_record_says(opened):
    page, held = opened(), record(SPEED)["passes"]["eager"]
    with_device(page)
    page.fill("#points", "1")
    seen = set()
    for size in SIZES:
        page.select_option("#batch", size)
        as_the_record_says(page, held[size])
        seen.add(answer(page)[1])
    assert len(seen) == 3


def test_the_page_recommends_what_the_table_of_the_documentation_does(opened):
    text = (ROOT / "docs" / "static-or-dynamic.md").read_text(encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in TABLE.search(text)[1].splitlines()[2:]]
    page = opened()
    for network, loss, device, batch, static, dynamic, recommended in rows:
        choose(page, DEEP if "CIFAR-10" in network else DIGITS)
        page.fill("#points", loss.split()[0])
        page.select_option("#batch", batch)
        assert f"Timed on {device}" in page.inner_text("#device")
        assert answer(page)[0] == recommended
        shown = cells(page, "#models > div:first-child table")
        assert shown[1][-1] == static and shown[2][-1] == dynamic.removesuffix(" (not certified)")
        assert ("not promised" in shown[2][0]) == ("not certified" in dynamic)
    assert len(rows) == 2 * len(SIZES)


def as_the_record_says(page, block):
    choice, text = answer(page)
    static, dynamic = block["rows"]["static, exit 7"], block["rows"][block["dynamic"]]
    assert choice == block["recommendation"]["choice"] == "static" and "exit 7" in text
    assert in_words(static["over_full"]["throughput"]) in text
    assert in_words(block["dynamic_over"]["static, exit 7"]["throughput"]) in text and "slower" in text
    shown = cells(page, "#models > div:first-child table")
    assert [row[0] for row in shown] == ["Full", "Static (exit 7)", "Dynamic (certified)"]
    for row, held in zip(shown, (block["rows"]["full"], static, dynamic), strict=True):
        accuracy = held["accuracy"]
        assert row[1].startswith(f"{100 * accuracy['value']:.1f} [{100 * accuracy['low']:.1f}, ")
        assert float(row[-2]) == pytest.approx(held["ms_per_image"]["median"], rel=0.005)
        assert row[-1] == gain(held["over_full"]["throughput"])
    assert block["recommendation"]["reason"] in page.inner_text("#models")


def test_without_a_device_macs_are_counted(opened):
    page = opened()
    with_device(page)
    assert "ms an image" in page.inner_text("#models")
    page.select_option("#device", "")
    assert "ms an image" not in page.inner_text("#models") and page.is_disabled("#batch")
    assert "By MACs, not by time" in answer(page)[1]
    page.select_option("#device", "0")
    assert "By measured time" in answer(page)[1] and page.is_enabled("#batch")


def test_a_promise_speaks_of_its_own_tolerance(opened):
    page = opened()
    with_device(page)
    page.fill("#points", "0.5")
    choice, text = answer(page)
    assert choice == "full" and "Its certificate allows 1 point, more than you do" in text
    assert "Dynamic (not promised)" in page.inner_text("#models")


def test_everything_that_was_timed_is_shown_peers_too(opened):
    page, rows = opened(), record(SPEED)["passes"]["eager"]["64"]["rows"]
    with_device(page)
    page.click("#models details summary")
    shown = {row[0]: row for row in cells(page, "#models details table")}
    assert set(shown) == set(rows) and any(name.startswith("earlyon") for name in shown)
    for name, held in rows.items():
        assert shown[name][3] == f"{held['images_per_second']:.0f}"
        assert float(shown[name][4]) == pytest.approx(held["ms_per_call"]["p50"], rel=0.005)
        assert shown[name][6] == gain(held["over_full"]["throughput"])


def test_exported_models_are_shown_where_they_were_timed(opened):
    page, size, held = opened(), "1", record(EXPORTED)
    with_device(page)
    page.select_option("#batch", size)
    shown = cells(page, "#exported table")
    assert len(shown) == len(held["times"][size]) > 1
    for row, told in zip(shown, held["times"][size].values(), strict=True):
        median, low, high = told["throughput_to_torch"]
        assert row[1] == size and row[3] == gain({"median": median, "low": low, "high": high})
    assert "From the record exported_halting" in page.inner_text("#exported")
    choose(page, CIFAR)
    assert page.is_hidden("#exported-card")


def test_every_record_with_times_is_on_the_page(maker):
    entries = maker.build_data()["entries"]
    named = {source["file"] for one in entries for source in one["sources"]}
    for path in RECORDS.glob("*.json"):
        held = json.loads(path.read_text(encoding="utf-8"))
        if "passes" in held or "torch_runtime" in held:
            assert f"benchmarks/records/{path.name}" in named
    (deep,) = (one for one in entries if one["id"] == DEEP)
    mine, fit = record(DEEP)["report"], record(SPEED)["fit"]
    assert all(mine[key] == fit[key] for key in ("model", "reference", "static"))
    assert [one["record"] for one in deep["timed"]] == [SPEED]


def test_the_page_says_where_times_come_from(opened):
    page = opened()
    with_device(page)
    shown = page.inner_text("#sources")
    for name in (DEEP, SPEED, EXPORTED):
        held = record(name)
        for said in (f"benchmarks/records/{name}.json", held["command"], held["commit"][:12]):
            assert said in shown
        for kind in ("python", "torch", "timm", "odn_hybrid"):
            assert held["environment"][kind] in shown
    assert f"from the record {SPEED}" in page.inner_text("#models")


def test_a_compiled_pass_and_another_device_are_choices_of_their_own(maker):
    timed = importlib.import_module("timed_records")  # the maker has put its folder on the path
    held = record(SPEED)
    held["passes"]["compiled"] = held["passes"]["eager"]
    assert timed.device_of(held) == "cpu, 2 threads"
    assert timed.device_of({**held, "device": "NVIDIA Some"}) == "NVIDIA Some"
    units = {exit: exit for exit in range(1, 16)}
    compiled = timed._comparison(SPEED, held, "compiled", held["passes"]["compiled"], units)
    assert compiled["device"] == "cpu, 2 threads, compiled"
    assert [row["certified"] for row in compiled["rows"] if row["kind"] == "dynamic"] == [False, False]


# --- pictures -----------------------------------------------------------------------------------------


def test_pictures_of_early_and_late_inputs_are_the_records(opened):
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    page, held = opened(), record(PICTURED)
    choose(page, PICTURED)
    stops, labels = held["stops"], load_digits().target
    both = [*stops["early"], *stops["late"]]
    assert all(labels[one["image"]] == one["label"] for one in both)
    assert min(one["exit"] for one in stops["late"]) > max(one["exit"] for one in stops["early"])
    pictures = page.locator("#pictures img")
    assert pictures.count() == len(both)
    for at, one in enumerate(both):
        picture = pictures.nth(at)
        assert picture.get_attribute("alt") == f"test image {one['row']}: {one['label']}"
        assert re.match(r"data:image/png;base64,", picture.get_attribute("src"))
        assert picture.evaluate("(node) => node.complete && node.naturalWidth") == 8


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1400, "light")])
def test_pictures_and_tables_fit_and_are_accessible(opened, width, scheme):
    page = opened(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for name in (DEEP, PICTURED):
        choose(page, name)
        for details in page.query_selector_all("details:not([open]) summary"):
            details.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert serious_faults(page) == []


def test_device_and_batch_size_are_chosen_with_the_keyboard(opened):
    page = opened()
    with_device(page)
    page.focus("#batch")
    before = page.inner_text("#models")
    page.keyboard.press("ArrowUp")
    assert page.input_value("#batch") == "16" and page.inner_text("#models") != before
    page.focus("#device")
    page.keyboard.press("ArrowDown")
    assert "By MACs" in answer(page)[1]
