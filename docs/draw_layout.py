"""Draws docs/layout.svg: the packages of fastadv, floor by floor, with their code lines.

python docs/draw_layout.py          # writes docs/layout.svg beside this file
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

from matplotlib.patches import FancyBboxPatch

from fastadv.report.roc import save_figure
from fastadv.report.svg import COLOURS, INK, MUTED, drawing, new_figure

ROOT = Path(__file__).resolve().parents[1]
# from the top to the bottom, as in tests/layering; what lives there in few words
FLOORS = (
    (("cli",), "one file per command: parse, call one function, print"),
    (("report",), "figures and pages, from results only"),
    (("studies",), "plan, measure, results"),
    (("distributed",), "a run on Ray: cluster, workers, output"),
    (("runs",), "one resumable run: identity, folder, goals by name, production"),
    (("compat", "defences", "training"), "interfaces of others; defended models; losses, loops"),
    (("engine",), "the one loop of all attacks"),
    (("attacks", "detection"), "state machines and goals; detectors, guard, service"),
    (("surrogates", "recognition"), "what is differentiated; verification, identification"),
    (("models", "data"), "networks and weights; images, readers, run folders"),
    (("ops",), "the fused operations with their checks"),
    (("ops/reference", "kernels"), "PyTorch; Triton, CUDA, C++: the same bits"),
    (("core",), "errors, files, lock, provenance, statistics"),
)
LEFT, WIDTH, HEIGHT, GAP = 0.5, 4.2, 0.62, 0.2
SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(file: Path) -> int:
    """Lines with code: no blanks, comments and docstrings."""
    text = file.read_text(encoding="utf-8")
    strings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIPPED:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - strings)


def size(package: str) -> str:
    """The code lines of a package in words; those of the Triton kernels for `kernels`."""
    folder = ROOT / "kernels" / "triton" if package == "kernels" else ROOT / "fastadv" / package
    nested = [ROOT / "fastadv" / "ops" / "reference"] if package == "ops" else []
    files = [p for p in sorted(folder.rglob("*.py")) if not any(part in p.parents for part in nested)]
    return f"{round(sum(map(code_lines, files)), -2):,} lines{' of Triton' if package == 'kernels' else ''}"


def main() -> None:
    with drawing():
        figure, axes = new_figure(9.6, 0.5 + (HEIGHT + GAP) * len(FLOORS) * 0.62)
        axes.set_axis_off()
        axes.set_xlim(0, 11)
        axes.set_ylim((HEIGHT + GAP) * len(FLOORS), -0.25)
        for k, (packages, told) in enumerate(FLOORS):
            top, each = k * (HEIGHT + GAP), (WIDTH - GAP * (len(packages) - 1)) / len(packages)
            for i, package in enumerate(packages):
                left = LEFT + i * (each + GAP)
                colour = COLOURS[0 if k < 4 else 2 if k < 9 else 1]
                shape = FancyBboxPatch(
                    (left, top), each, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", facecolor=colour + "22"
                )
                shape.set_edgecolor(colour)
                axes.add_patch(shape)
                middle = left + each / 2
                axes.text(middle, top + 0.24, package, ha="center", va="center", color=INK, weight="bold")
                axes.text(middle, top + 0.46, size(package), ha="center", va="center", color=MUTED, fontsize=7.5)
            axes.text(LEFT + WIDTH + 0.25, top + HEIGHT / 2, told, va="center", color=INK)
        arrow = {"arrowstyle": "->", "color": MUTED, "linewidth": 1.4}
        bottom = (HEIGHT + GAP) * len(FLOORS) - GAP
        axes.annotate("", (0.22, bottom), (0.22, 0.0), arrowprops=arrow)
        axes.text(0.06, bottom / 2, "imports", rotation=90, ha="center", va="center", color=MUTED)
        figure.set_facecolor("white")
        save_figure(figure, Path(__file__).with_name("layout.svg"))


if __name__ == "__main__":
    main()
