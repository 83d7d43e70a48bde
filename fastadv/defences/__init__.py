"""Defences, and what attackers know of them."""

from fastadv.defences.attack_as_defence import AttackAsDefence, AttackedModel
from fastadv.defences.compose import Chain, OneOf
from fastadv.defences.defended import Defence, DefendedModel, InputDefence, WatchedDefendedModel, networks_of
from fastadv.defences.filters import BitDepth, GaussianBlur, MeanFilter, Median
from fastadv.defences.jpeg import Jpeg
from fastadv.defences.key import content_ids, content_key
from fastadv.defences.noise2clean import Noise2Clean
from fastadv.defences.pair_attack import PairAttackAsDefence
from fastadv.defences.resize_pad import RandomResizePad
from fastadv.defences.retrained import Retrained
from fastadv.defences.selective_dropout import DroppedFilters, SelectiveDropout
from fastadv.defences.straight_through import straight_through
from fastadv.defences.suspicion import Flag, Trial, gradient_ratio, suspicions
from fastadv.defences.threat_models import Adaptive, Attacker, PerfectKnowledge, ThreatModel, ZeroKnowledge

__all__ = [
    "Adaptive",
    "AttackAsDefence",
    "AttackedModel",
    "Attacker",
    "BitDepth",
    "Chain",
    "Defence",
    "DefendedModel",
    "DroppedFilters",
    "Flag",
    "GaussianBlur",
    "InputDefence",
    "Jpeg",
    "MeanFilter",
    "Median",
    "Noise2Clean",
    "OneOf",
    "PairAttackAsDefence",
    "PerfectKnowledge",
    "RandomResizePad",
    "Retrained",
    "SelectiveDropout",
    "ThreatModel",
    "Trial",
    "WatchedDefendedModel",
    "ZeroKnowledge",
    "content_ids",
    "content_key",
    "gradient_ratio",
    "networks_of",
    "straight_through",
    "suspicions",
]
