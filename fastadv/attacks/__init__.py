"""Attacks: budgets, goals, state machines, and the catalogue of the papers' names."""

from fastadv.attacks.apgd import APGD
from fastadv.attacks.attack import Attack, Evaluation, SlotAttack, seeks_smallest
from fastadv.attacks.budget import L2, Box, Budget, Linf
from fastadv.attacks.carlini_wagner import CarliniWagner
from fastadv.attacks.carlini_wagner_ball import CarliniWagnerBall
from fastadv.attacks.carlini_wagner_l0 import CarliniWagnerL0
from fastadv.attacks.carlini_wagner_linf import CarliniWagnerLinf
from fastadv.attacks.catalog import CATALOG, by_name
from fastadv.attacks.catalog import listed as list
from fastadv.attacks.classifier_goals import ClassifyAs, Misclassify
from fastadv.attacks.conjunction import Conjunction
from fastadv.attacks.deepfool import DeepFool
from fastadv.attacks.feature_goals import GalleryClass, MatchFeatures
from fastadv.attacks.gallery import Gallery
from fastadv.attacks.goal import Goal, Rows
from fastadv.attacks.lbfgs_penalty import LBFGS
from fastadv.attacks.lbfgsb import LBFGSB
from fastadv.attacks.minimal_catalog import (
    apgd,
    apgd_dlr,
    apgd_l2,
    cw_l0,
    cw_l2,
    cw_linf,
    deepfool,
    deepfool_linf,
    minimal_bim,
    minimal_fgsm,
    minimal_fim,
    minimal_m_fim,
    minimal_mi_fgsm,
    minimal_mi_fgsm_l2,
    minimal_pgd,
    minimal_pgd_l2,
    noise_gaussian,
    noise_uniform,
)
from fastadv.attacks.minimal_eps import MinimalEps
from fastadv.attacks.minimal_fgsm import MinimalFGSM
from fastadv.attacks.noise import Noise
from fastadv.attacks.objective import Objective
from fastadv.attacks.optimisation_catalog import df, knn_df, lbfgs
from fastadv.attacks.pair_classifier import PairClassifier, anonymisation, impersonation
from fastadv.attacks.recipe import Recipe, check_recipe
from fastadv.attacks.sign_catalog import (
    bim,
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
    pgd_cw,
    pgd_l2,
)
from fastadv.attacks.sign_gradient import SignGradient
from fastadv.attacks.state import SlotState
from fastadv.attacks.transferable import (
    dfanet_di_m_fim,
    dfanet_e_di_m_fim,
    dfanet_fim,
    dfanet_m_fim,
    di_fim,
    di_m_fim,
    e_di_m_fim,
    e_fim,
    s_fim,
    ti_di_m_fim,
    ti_fim,
)
from fastadv.attacks.verification_goals import Evade, Impersonate

__all__ = [
    "APGD",
    "CATALOG",
    "L2",
    "LBFGS",
    "LBFGSB",
    "Attack",
    "Box",
    "Budget",
    "CarliniWagner",
    "CarliniWagnerBall",
    "CarliniWagnerL0",
    "CarliniWagnerLinf",
    "ClassifyAs",
    "Conjunction",
    "DeepFool",
    "Evade",
    "Evaluation",
    "Gallery",
    "GalleryClass",
    "Goal",
    "Impersonate",
    "Linf",
    "MatchFeatures",
    "MinimalEps",
    "MinimalFGSM",
    "Misclassify",
    "Noise",
    "Objective",
    "PairClassifier",
    "Recipe",
    "Rows",
    "SignGradient",
    "SlotAttack",
    "SlotState",
    "anonymisation",
    "apgd",
    "apgd_dlr",
    "apgd_l2",
    "bim",
    "by_name",
    "check_recipe",
    "cw_l0",
    "cw_l2",
    "cw_linf",
    "deepfool",
    "deepfool_linf",
    "df",
    "dfanet_di_m_fim",
    "dfanet_e_di_m_fim",
    "dfanet_fim",
    "dfanet_m_fim",
    "di_fim",
    "di_m_fim",
    "e_di_m_fim",
    "e_fim",
    "ffm",
    "fgsm",
    "fim",
    "fim_steps",
    "ftgsm",
    "impersonation",
    "itgsm",
    "knn_df",
    "lbfgs",
    "list",
    "m_fim",
    "mi_fgsm",
    "mi_fgsm_l2",
    "minimal_bim",
    "minimal_fgsm",
    "minimal_fim",
    "minimal_m_fim",
    "minimal_mi_fgsm",
    "minimal_mi_fgsm_l2",
    "minimal_pgd",
    "minimal_pgd_l2",
    "noise_gaussian",
    "noise_uniform",
    "pgd",
    "pgd_cw",
    "pgd_l2",
    "s_fim",
    "seeks_smallest",
    "ti_di_m_fim",
    "ti_fim",
]
