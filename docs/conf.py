"""The documentation site: Sphinx reads the Markdown pages through MyST, and the docstrings through autodoc."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402

import fastadv  # noqa: E402

project = "fastadv"
author = "The fastadv developers"
copyright = author
version = release = fastadv.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_math"]
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"fastadv {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"

smartquotes = False
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# a reference must lead somewhere, but for those to other packages and to names of ours that are not public
nitpick_ignore_regex = [("py:(class|exc)", r"(?!fastadv\.).*"), ("py:(class|func)", r"fastadv(\.\w+){3,}")]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]


def setup(app: Any) -> dict[str, Any]:
    """Write the generated pages before Sphinx looks for pages."""
    app.connect("builder-inited", lambda _: generate.write_all(HERE / "generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
