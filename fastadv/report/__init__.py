"""Figures and the HTML page, from results only (`pip install 'fastadv[report]'`)."""

from fastadv.report.distributions import distribution_plot, levels_plot
from fastadv.report.figures import roc_plot, similarity_plot, ticks_plot
from fastadv.report.page import amplified, data_uri, render_page
from fastadv.report.parts import (
    Card,
    CardGallery,
    Commands,
    Facts,
    LegendEntry,
    Notices,
    Page,
    Part,
    Picture,
    Plot,
    Plots,
    Section,
    Shot,
    Table,
    Tile,
    Tiles,
)
from fastadv.report.roc import Curve, roc_figure, save_figure

__all__ = [
    "Card",
    "CardGallery",
    "Commands",
    "Curve",
    "Facts",
    "LegendEntry",
    "Notices",
    "Page",
    "Part",
    "Picture",
    "Plot",
    "Plots",
    "Section",
    "Shot",
    "Table",
    "Tile",
    "Tiles",
    "amplified",
    "data_uri",
    "distribution_plot",
    "levels_plot",
    "render_page",
    "roc_figure",
    "roc_plot",
    "save_figure",
    "similarity_plot",
    "ticks_plot",
]
