"""Formulas as MathML, which browsers draw themselves: no script, no font, no other host."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
_SAME = {r"\dots": r"\ldots", r"\big": "", r"\Big": ""}  # what docutils does not know, and what stands for it


def mathml(formula: str, *, block: bool) -> str:
    """The ``<math>`` element of a LaTeX formula.

    Raises:
        MathError: A command that docutils does not know.
    """
    for command, known in _SAME.items():
        formula = re.sub(re.escape(command) + r"(?![a-zA-Z])", lambda _, known=known: known, formula)
    return str(latex2mathml.tex2mathml(formula, as_block=block))


def _told(node: Any, *, block: bool) -> str:
    try:
        return mathml(node.astext(), block=block)
    except MathError as error:
        _LOG.warning("formula: %s in %s", error, node.astext(), location=node)
        return f"<code>{escape(node.astext())}</code>"


def _inline(visitor: Any, node: nodes.math) -> None:
    visitor.body.append(_told(node, block=False))
    raise nodes.SkipNode


def _block(visitor: Any, node: nodes.math_block) -> None:
    label = f' id="equation-{escape(node["label"])}"' if node.get("label") else ""
    visitor.body.append(f'<div class="math"{label}>{_told(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
