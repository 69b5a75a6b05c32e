"""How fast a gap closes: the law, its rate with an interval, and Lojasiewicz exponents."""

from gflow.rates.fit import fit_rate
from gflow.rates.lojasiewicz import Lojasiewicz, lojasiewicz
from gflow.rates.rate import AsymptoticRate, Fit, Prediction, Rate, RateStatus

__all__ = [
    "AsymptoticRate",
    "Fit",
    "Lojasiewicz",
    "Prediction",
    "Rate",
    "RateStatus",
    "fit_rate",
    "lojasiewicz",
]
