"""A Sphinx extension: what the theme leaves out for people who use a keyboard or a screen reader."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Enter the extension, after the theme has made its own parts of a page."""
    app.connect("html-page-context", mended, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def mended(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Code that scrolls can be reached by the keyboard; captions in the side bar say their level; no icon."""
    # Without one, browsers ask the server's root for it.
    context["metatags"] = context.get("metatags", "") + '<link rel="icon" href="data:,">'
    if "body" in context:
        context["body"] = context["body"].replace("<pre>", '<pre tabindex="0">')
    tree = context.get("furo_navigation_tree")
    if isinstance(tree, str):
        context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
