"""Whose a request is, by the definitions of agents and by examples: offline, with probabilities that mean something."""

from __future__ import annotations

from agent_orchestra.core.classifier.arrays import Vector
from agent_orchestra.core.classifier.judgement import Judgement, Scored, Turn
from agent_orchestra.core.classifier.learning import fit, untaught
from agent_orchestra.core.classifier.lines import Example, Kind, texts_of
from agent_orchestra.core.classifier.model import Model, restore
from agent_orchestra.core.classifier.report import Confusion, Overlap, collisions, confusions, overlaps, unreachable

__all__ = [
    "Confusion",
    "Example",
    "Judgement",
    "Kind",
    "Model",
    "Overlap",
    "Scored",
    "Turn",
    "Vector",
    "collisions",
    "confusions",
    "fit",
    "overlaps",
    "restore",
    "texts_of",
    "unreachable",
    "untaught",
]
