"""The modes by which a gap closes near a minimum, and whether a fitted rate is that of one."""

import numpy as np
from jaxtyping import Float

from gflow.critical.candidate import Candidate, Start
from gflow.critical.newton import Eigensystem
from gflow.critical.pattern_landscape import complement
from gflow.critical.point import CARRIED, GapModes
from gflow.rates import Rate, RateStatus

# The start is the point up to this distance, relative to ‖θ‖.
_APART = 1e-7
# How near a state of a trajectory that leads to the point tells along which kinks it came.
_BEFORE, _NEAR = 1e-6, 0.03
# A trajectory has come to rest if its distance from the point, below a fraction of ‖θ‖, has not
# halved over so many of its last times; what is left is the error of the solver, and changes.
_AT_REST, _LAST, _ABOVE = 1e-4, 6, 100.0
# A start is on a kink up to this, relative to ‖θ‖ or to its distance from the point.
_ON_KINK, _ALONG = 1e-9, 1e-5
# Rates that differ by a hundredth agree.
_SAME = 0.01


def came_from(
    end: Candidate, start: Start, states: Float[np.ndarray, "times size"] | None
) -> Float[np.ndarray, " size"]:
    """Where the modes are looked at from: the start, or, where that is the point up to the error of
    a solver, the last of the states before it that is apart from the point, and near; the point
    itself if there is none."""
    away = float(np.linalg.norm(start.theta - end.theta))
    if states is None:
        return start.theta
    off = np.linalg.norm(states - end.theta, axis=1)
    at_rest = away < _AT_REST * end.size and away > 0.5 * off[-_LAST:][0]
    if away > _APART * end.size and not at_rest:
        return start.theta
    error = _ABOVE * float(np.max(off[-_LAST:])) if at_rest else 0.0
    apart = np.flatnonzero(off > max(_BEFORE * end.size, error))
    if not len(apart) or off[apart[-1]] > _NEAR * end.size:
        return end.theta if at_rest else start.theta
    return states[apart[-1]]


def modes_of(end: Candidate, origin: Float[np.ndarray, " size"]) -> GapModes:
    """Those of the Hessian along the kinks on which the origin and the point lie: a flow that
    slides along them comes from there to the point along them."""
    off = origin - end.theta
    apart = bool(np.linalg.norm(off) > _APART * end.size)
    along = _slid_along(end, off) if apart else end.beyond[:0]
    now = end.eigen
    if len(along):
        expansion = end.search.newton.expansion
        frame = complement(along @ expansion.basis)
        now = Eigensystem.of(expansion._replace(basis=expansion.basis @ frame))
    chosen = ~now.zero & (now.values > 0)
    rates = 2 * now.values[chosen]
    if not apart:
        return GapModes(rates, np.full(len(rates), np.nan), len(along))
    gaps = now.values[chosen] * (now.vectors[:, chosen].T @ off) ** 2
    return GapModes(rates, gaps / max(float(np.sum(gaps)), np.finfo(float).tiny), len(along))


def _slid_along(end: Candidate, off: np.ndarray) -> Float[np.ndarray, "kinks size"]:
    """The normals of the kinks that are not held on which the start lies, too: of those on data."""
    on_data = end.weak.normals[: len(end.weak.kinks)]
    normals = np.concatenate([on_data, end.without_jump])
    lengths = np.linalg.norm(normals, axis=1)
    near = _ON_KINK * end.size + _ALONG * np.linalg.norm(off)
    on = (lengths > 0) & (np.abs(normals @ off) <= near * lengths)
    return normals[on]


def agreement(rate: Rate, modes: GapModes) -> str:
    """Whether a fitted rate agrees with that of the spectrum, and if not, why: a sentence."""
    if modes.rate is None:
        return "The spectrum predicts no rate."
    if why := disagreement(rate, modes):
        return why
    return f"{_says(modes)}, which agrees with the fitted {rate.value:.5g}."


def _says(modes: GapModes) -> str:
    """What the spectrum predicts, and that of which operator it is."""
    along = modes.num_kinks_along
    further = f"{along} further kink{'s' * (along != 1)}"
    slid = f" along {further} on which the flow slides" if along else ""
    return f"The spectrum{slid} predicts {modes.rate:.5g}"


def disagreement(rate: Rate, modes: GapModes) -> str:
    """Why a fitted rate is not that of the spectrum, as a sentence; "" if it is, in its interval or
    to a hundredth."""
    predicted = modes.rate
    if predicted is None:
        return ""
    says = _says(modes)
    if rate.status is not RateStatus.CALLED:
        return f"{says}; the fit calls no rate to compare with: {rate.reason}."
    if rate.law != "exponential":
        return f"{says}, but the gap does not fall exponentially over the tail: {rate.formula()}."
    low, high = rate.interval
    if low <= predicted <= high or abs(predicted / rate.value - 1) <= _SAME:
        return ""
    return f"{says}, not the fitted {rate.value:.5g}: {_why_not(rate, predicted, modes)}."


def _why_not(rate: Rate, predicted: float, modes: GapModes) -> str:
    begin, end = rate.window
    if predicted * (end - begin) < 2:
        return (
            f"the tail from t = {begin:.4g} to {end:.4g} is short, {predicted * (end - begin):.2g} "
            "of the predicted time 1/rate"
        )
    nearest = int(np.argmin(np.abs(np.log(modes.rates / rate.value))))
    fraction = modes.fractions[nearest]
    if abs(modes.rates[nearest] / rate.value - 1) <= 0.05 and np.isfinite(fraction):
        return (
            f"a mode of rate {modes.rates[nearest]:.5g}, which carries {fraction:.2g} of the gap "
            "at the end, was faster or slower than the others on this tail"
        )
    if rate.value < modes.rates[0]:
        return (
            f"the gap falls more slowly than by the slowest mode, of rate {modes.rates[0]:.5g}: "
            "the tail lies before the region where the risk is a quadratic, or across other kinks"
        )
    below = int(np.sum((modes.rates < rate.value) & (modes.fractions < CARRIED)))
    slower = f", and {below} slower ones carry less than a tenth of the gap" if below else ""
    return f"several modes with rates near one another carry the gap on this tail{slower}"
