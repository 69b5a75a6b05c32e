"""Risks: what a gradient flow descends. Each maps a network to a scalar."""

from gflow.risks.base import Risk as Risk
from gflow.risks.box import BoxRisk as BoxRisk
from gflow.risks.empirical import EmpiricalRisk as EmpiricalRisk
from gflow.risks.gaussian import GaussianRisk as GaussianRisk
from gflow.risks.population import PopulationRisk as PopulationRisk
