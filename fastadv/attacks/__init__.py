"""Attacks: budgets, goals, state machines, and the catalogue of the papers' names."""

from fastadv.attacks import catalog
from fastadv.attacks.apgd import APGD
from fastadv.attacks.attack import Attack, Evaluation, seeks_smallest
from fastadv.attacks.budget import L2, Box, Budget, Linf
from fastadv.attacks.carlini_wagner import CarliniWagner
from fastadv.attacks.carlini_wagner_l0 import CarliniWagnerL0
from fastadv.attacks.carlini_wagner_linf import CarliniWagnerLinf
from fastadv.attacks.catalog import *  # noqa: F403
from fastadv.attacks.deepfool import DeepFool
from fastadv.attacks.feature_goals import GalleryClass, MatchFeatures
from fastadv.attacks.gallery import Gallery
from fastadv.attacks.goal import ClassifyAs, Evade, Goal, Impersonate, Misclassify, Rows
from fastadv.attacks.lbfgs_penalty import LBFGS
from fastadv.attacks.lbfgsb import LBFGSB
from fastadv.attacks.minimal_eps import MinimalEps
from fastadv.attacks.minimal_fgsm import MinimalFGSM
from fastadv.attacks.noise import Noise
from fastadv.attacks.pair_classifier import PairClassifier, anonymisation, impersonation
from fastadv.attacks.recipe import Recipe, as_recipe
from fastadv.attacks.sign_gradient import SignGradient
from fastadv.attacks.state import SlotState

__all__ = [
    "APGD",
    "L2",
    "LBFGS",
    "LBFGSB",
    "Attack",
    "Box",
    "Budget",
    "CarliniWagner",
    "CarliniWagnerL0",
    "CarliniWagnerLinf",
    "ClassifyAs",
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
    "PairClassifier",
    "Recipe",
    "Rows",
    "SignGradient",
    "SlotState",
    "anonymisation",
    "as_recipe",
    "impersonation",
    "seeks_smallest",
]
__all__ += catalog.__all__
