"""What Sphinx reads: copies of docs/ and theory/ in the build folder, and the pages that programs write.

Nothing of it is committed. Links between files of the repository are kept as they are written there and made
to fit the site here: to a page of the site as such, to any other file as `repo:PATH`, see `repository.py`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from making.commands import commands_page
from making.errors import errors_page
from making.places import DOCS, ROOT, SOURCE, THEORY
from making.recipes import recipes_page
from making.records import records_page
from making.reference import reference_pages

FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ \t]*$", re.M | re.S)
LINK = re.compile(r"(?P<before>(?<!!)\[[^\[\]]*(?:\[\][^\[\]]*)?\]\()(?P<target>[^()\s]+)(?=\))")
THEORY_PAGES = "\n```{{toctree}}\n:hidden:\n\n{pages}\nformal/README\n```\n"
NOT_PAGES = ("making", "choose", "_static", "_templates", "__pycache__")


def assemble(folder: Path = SOURCE) -> None:
    """Write everything that Sphinx is to read into `folder`; files that would not change are left alone."""
    wanted = {folder / name: text for name, text in written_pages().items()}
    for page, name in site_pages().items():
        wanted[folder / name] = fitted(page.read_text(encoding="utf-8"), page)
    wanted[folder / "theory" / "README.md"] += THEORY_PAGES.format(
        pages="\n".join([*sorted(page.stem for page in THEORY.glob("*.md") if page.stem != "README")])
    )
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        if path.is_file() and path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for page in DOCS.rglob("*.png"):
        shutil.copy2(page, folder / page.relative_to(DOCS))


def site_pages() -> dict[Path, str]:
    """Every Markdown file that is a page of the site, and its name there."""
    own = {path: str(path.relative_to(DOCS)) for path in sorted(DOCS.rglob("*.md")) if _is_page(path)}
    theory = {path: str(path.relative_to(ROOT)) for path in sorted(THEORY.rglob("*.md"))}
    changes = {ROOT / "CHANGELOG.md": "changelog.md", ROOT / "CONTRIBUTING.md": "contributing.md"}
    return own | theory | changes


def _is_page(path: Path) -> bool:
    return not path.name.endswith(".part.md") and not set(path.relative_to(DOCS).parts) & set(NOT_PAGES)


def written_pages() -> dict[str, str]:
    """The pages that programs write, by their names on the site."""
    return {
        **reference_pages(),
        "reference/commands.md": commands_page(),
        "reference/recipes.md": recipes_page(),
        "reference/errors.md": errors_page(),
        "reference/records.md": records_page(),
    }


def fitted(text: str, page: Path) -> str:
    """`text` of the repository's file `page`, with its links made to fit the site."""
    pages = site_pages()

    def place(match: re.Match[str]) -> str:
        return match["before"] + _target(match["target"], page, pages)

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(place, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(place, text[end:])])


def _target(target: str, page: Path, pages: dict[Path, str]) -> str:
    if target.startswith(("#", "/")) or re.match(r"[a-z]+:", target):
        return target
    path, hash_, anchor = target.partition("#")
    file = (page.parent / path).resolve()
    if file in pages:
        return f"/{pages[file]}{hash_}{anchor}"
    if file.is_relative_to(ROOT) and file.exists():
        return f"repo:{file.relative_to(ROOT)}"
    return target  # a page that a program writes, or a mistake, about which Sphinx complains
