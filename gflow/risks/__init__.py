"""Risks: what a gradient flow descends. Each maps a network to a scalar."""

from gflow.risks.base import Risk as Risk
from gflow.risks.empirical import EmpiricalRisk as EmpiricalRisk
from gflow.risks.gaussian import GaussianRisk as GaussianRisk
