"""Scorers: how much the network's trajectory and output move when a unit is removed."""

from .exact import score_exact
from .gauss_newton import score_gauss_newton
from .registry import get_scorer, register_scorer
from .scores import Scores, score
from .stored import SCORES_FOLDER
from .surgeon import score_surgeon

__all__ = [
    "SCORES_FOLDER",
    "Scores",
    "get_scorer",
    "register_scorer",
    "score",
    "score_exact",
    "score_gauss_newton",
    "score_surgeon",
]
