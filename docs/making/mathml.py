"""A Sphinx extension: formulas become MathML, which browsers show by themselves; no script, no fonts."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

TAG = re.compile(r"\\tag\{([^{}]*)\}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Enter the extension."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def mathml(formula: str, display: str) -> str:
    """MathML of a LaTeX formula; one that cannot be translated is a `ValueError` that names it."""
    formula = formula.replace(r"\arg", r"\operatorname{arg}")
    try:
        made = convert(formula.strip(), display=display)
    except Exception as error:
        raise ValueError(f"formula {formula!r}: {error}") from None
    if re.search(r"<m[a-z]+>\\", made):
        raise ValueError(f"formula {formula!r} has a command that is not known")
    return made


def inline(translator: Any, node: nodes.math) -> None:
    """A formula within a line."""
    translator.body.append(f'<span class="math">{mathml(node.astext(), "inline")}</span>')
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """A formula on lines of its own, its tag at the right."""
    formula = node.astext()
    tags = TAG.findall(formula)
    tag = f'<span class="eqno">({", ".join(tags)})</span>' if tags else ""
    made = mathml(TAG.sub("", formula), "block")
    identity = "".join(f' id="{name}"' for name in node.get("ids", [])[:1])
    translator.body.append(
        f'<div class="math"{identity}><div class="formula" tabindex="0">{made}</div>{tag}</div>\n'
    )
    raise nodes.SkipNode
