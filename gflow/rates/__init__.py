"""How fast a gap closes: the law, its rate with an interval, and Lojasiewicz exponents."""

from gflow.rates.fit import fit_rate
from gflow.rates.lojasiewicz import Lojasiewicz, lojasiewicz
from gflow.rates.rate import Fit, Rate, RateStatus

__all__ = ["Fit", "Lojasiewicz", "Rate", "RateStatus", "fit_rate", "lojasiewicz"]
