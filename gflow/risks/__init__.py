"""Risks: what a gradient flow descends. Each maps a network to a scalar."""

from gflow.risks.base import Risk
from gflow.risks.box import BoxRisk
from gflow.risks.empirical import EmpiricalRisk
from gflow.risks.gaussian import GaussianRisk
from gflow.risks.penalised import PenalisedRisk, Penalty, penalty_of, without_penalty
from gflow.risks.population import PopulationRisk

__all__ = [
    "BoxRisk",
    "EmpiricalRisk",
    "GaussianRisk",
    "PenalisedRisk",
    "Penalty",
    "PopulationRisk",
    "Risk",
    "penalty_of",
    "without_penalty",
]
