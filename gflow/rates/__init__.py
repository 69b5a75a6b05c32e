"""How fast a gap closes: the law, its rate with an interval, and Lojasiewicz exponents."""

from gflow.rates.fit import Fit as Fit, Rate as Rate, fit_rate as fit_rate
from gflow.rates.lojasiewicz import Lojasiewicz as Lojasiewicz, lojasiewicz as lojasiewicz
