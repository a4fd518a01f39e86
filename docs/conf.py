"""Sphinx's settings. The pages it reads are assembled by docs/making/build.py; run `make docs`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from making.executing import without_results
from making.places import BUILD

from odn_hybrid._version import __version__

project = "odn_hybrid"
author = "The odn_hybrid authors"
copyright = "the odn_hybrid authors, Apache-2.0"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "making.accessible",
    "making.docstrings",
    "making.mathml",
    "making.repository",
]

# Nothing is fetched, neither now nor by a reader's browser: formulas are MathML, fonts the system's own.
html_theme = "furo"
html_title = f"odn_hybrid {__version__}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": False, "footer_icons": []}
templates_path: list[str] = []

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_dmath_double_inline = True  # formulas on lines of their own within a paragraph
myst_heading_anchors = 3
myst_url_schemes = ["http", "https", "mailto", "repo"]
nb_render_markdown_format = "gfm"  # tables that cells show
nb_execution_cache_path = str(BUILD / "jupyter_cache")
nb_execution_mode = "cache"  # docs/making/executing.py has put everything there
nb_execution_raise_on_error = True
nb_output_stderr = "warn"  # and warnings are errors
if os.environ.get("ODN_DOCS_QUICK"):
    nb_execution_excludepatterns = [f"{name}.md" for name in without_results()]
    suppress_warnings = ["myst-nb.lexer"]

# Single backticks in docstrings are code, which becomes a link where it names something of the reference.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # code in backticks need not name anything of ours
    (
        "py:(class|exc)",
        r"(?!odn_hybrid\.).*",
    ),  # names of other libraries: nothing is looked up on the network
    ("py:class", r"odn_hybrid\.\w+\..*"),  # types in signatures that live inside a room and are not public
]
