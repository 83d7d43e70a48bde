"""Attacks: budgets, goals, state machines, and the catalogue of the papers' names."""

from fastadv.attacks.attack import Attack, Evaluation, State
from fastadv.attacks.budget import L2, Budget, Linf
from fastadv.attacks.catalog import (
    CATALOG,
    bim,
    by_name,
    ffm,
    fgsm,
    fim,
    fim_steps,
    ftgsm,
    itgsm,
    m_fim,
    mi_fgsm,
    mi_fgsm_l2,
    pgd,
    pgd_l2,
)
from fastadv.attacks.goal import ClassifyAs, Evade, Goal, Impersonate, Misclassify, Rows
from fastadv.attacks.sign_gradient import SignGradient

__all__ = [
    "CATALOG",
    "L2",
    "Attack",
    "Budget",
    "ClassifyAs",
    "Evade",
    "Evaluation",
    "Goal",
    "Impersonate",
    "Linf",
    "Misclassify",
    "Rows",
    "SignGradient",
    "State",
    "bim",
    "by_name",
    "ffm",
    "fgsm",
    "fim",
    "fim_steps",
    "ftgsm",
    "itgsm",
    "m_fim",
    "mi_fgsm",
    "mi_fgsm_l2",
    "pgd",
    "pgd_l2",
]
