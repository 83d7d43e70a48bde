"""What is differentiated in place of the bare model, so that what is found holds for other models too."""

from fastadv.surrogates.feature_dropout import FeatureDropout, MaskedModel
from fastadv.surrogates.input_diversity import InputDiversity
from fastadv.surrogates.key import StepKey
from fastadv.surrogates.skip_gradient import SkipGradient
from fastadv.surrogates.surrogate import BoundSurrogate, Ensemble, Member, Surrogate
from fastadv.surrogates.translation_invariant import TranslationInvariant

__all__ = [
    "BoundSurrogate",
    "Ensemble",
    "FeatureDropout",
    "InputDiversity",
    "MaskedModel",
    "Member",
    "SkipGradient",
    "StepKey",
    "Surrogate",
    "TranslationInvariant",
]
