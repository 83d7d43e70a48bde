"""Massoli et al. 2021, "Detection of face recognition adversarial attacks"."""

from __future__ import annotations

from fastadv.studies.papers.recipe import StudyRecipe

RECIPES: tuple[StudyRecipe, ...] = ()
