"""The page "Static or dynamic?", built from the committed records, served and opened in a browser."""

import importlib.util
from pathlib import Path

import pytest
from browsing import Watched, chromium, served

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def maker():
    """The program that builds the page."""
    spec = importlib.util.spec_from_file_location("build_data", ROOT / "docs" / "choose" / "build_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(maker, tmp_path_factory):
    """The page, built below a sub-path."""
    top = tmp_path_factory.mktemp("site")
    maker.build_page(top / "any" / "where" / "choose")
    return top


@pytest.fixture(scope="module")
def origin(folder):
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser, origin):
    """`opened(**context)` opens the page; at the end it has complained of nothing and asked nobody else."""
    all_ = []

    def open_page(**context):
        watched = Watched(browser, **context)
        watched.page.goto(f"{origin}/any/where/choose/index.html")
        all_.append(watched)
        return watched.page

    yield open_page
    for watched in all_:
        assert watched.complaints == []
        assert watched.outside(origin) == []
        watched.context.close()
