"""Formulas as MathML, which browsers draw themselves: no script, no font, no other host."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml


def mathml(formula: str, *, block: bool) -> str:
    """The ``<math>`` element of a LaTeX formula."""
    tree = latex2mathml.tex2mathml(formula, as_block=block)
    return tree if isinstance(tree, str) else tree.toxml()


def _inline(visitor: Any, node: nodes.math) -> None:
    visitor.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(visitor: Any, node: nodes.math_block) -> None:
    label = f' id="equation-{escape(node["label"])}"' if node.get("label") else ""
    visitor.body.append(f'<div class="math"{label}>{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
