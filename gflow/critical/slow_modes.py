"""The last steps of a search: along eigenvectors whose eigenvalues are so small that the gradient
is below its bound of rounding, ε ‖Hessian‖ ‖θ‖, long before the risk is at its minimum."""

import numpy as np

from gflow.critical.landscapes import AbstractLandscape
from gflow.critical.newton import Eigensystem, NewtonResult, NewtonStep, SearchLimits
from gflow.critical.pattern_landscape import AbstractPatternLandscape
from gflow.critical.valleys import ROUNDINGS, known_components

# Newton steps up to this, relative to ‖θ‖, are not worth one; and longer ones lead elsewhere.
_SHORT, _LONG = 1e-8, 0.1
# Steps end where one reduces the slope by less than this.
_REDUCES, _MAX_STEPS = 0.9, 200
_FRACTIONS = (1.0, 0.5, 0.25)


def to_rest(
    land: AbstractLandscape, found: NewtonResult, size: float, limits: SearchLimits
) -> NewtonResult:
    r"""Where Newton steps lead along the components $g_i$ of the gradient that are not roundings.

    A gradient that is small beside the largest eigenvalue may be large beside the others: that of
    $1 + ((x - 10^6)/10^5)^4 + y^2$ at $x = 1.001 \cdot 10^6$ is. A point is not accepted while the
    quadratic model promises a change of the risk, $g_i^2/(2|\lambda_i|)$, above its roundings. The
    steps end at the nearest kink, or where the gradient gets no smaller. `size` is that of θ.
    """
    if not found.converged:
        return found
    for _ in range(_MAX_STEPS):
        now = Eigensystem.of(found.expansion)
        slopes = _improvable(land, found, now, size)
        if not slopes.any():
            break
        step = _step(land, found, now, slopes, limits)
        if step.expansion is None:
            break
        after = Eigensystem.of(step.expansion)
        found = NewtonResult(
            theta=step.theta,
            expansion=step.expansion,
            previous=found.expansion,
            residual=after.norm,
            steps=found.steps + 1,
            converged=True,
            small=True,
        )
    return found


def _improvable(
    land: AbstractLandscape, found: NewtonResult, now: Eigensystem, size: float
) -> np.ndarray:
    """The components of the gradient that are known, promise a change of the risk, and have Newton
    steps that are neither short nor long; 0 for the others."""
    sizes, eps = np.abs(now.values), np.finfo(found.theta.dtype).eps
    slopes = np.abs(now.gradient)
    chosen = (slopes > _SHORT * size * sizes) & (slopes <= _LONG * size * sizes)
    # g²/(2λ) > ε |L|, without squares that underflow.
    falls = slopes * np.divide(slopes, 2 * sizes, out=np.zeros_like(slopes), where=sizes > 0)
    chosen &= falls > eps * abs(found.expansion.value)
    if not chosen.any():
        return np.zeros_like(slopes)
    if isinstance(land, AbstractPatternLandscape):
        terms = land.size_of_terms(found.theta, found.expansion.value)
        chosen &= slopes * size > ROUNDINGS * eps * terms
        if not chosen.any():
            return np.zeros_like(slopes)
    return np.where(chosen, known_components(land, found, now), 0.0)


def _step(
    land: AbstractLandscape,
    found: NewtonResult,
    now: Eigensystem,
    slopes: np.ndarray,
    limits: SearchLimits,
) -> NewtonStep:
    """A Newton step that makes the slopes smaller, with the components of the gradient that have
    shorter steps put to rest; none if there is no such step."""
    divided = np.divide(slopes, now.values, out=np.zeros_like(slopes), where=slopes != 0)
    longest = float(np.max(np.abs(divided)))
    near = (slopes == 0) & (np.abs(now.gradient) <= 0.1 * longest * np.abs(now.values)) & ~now.zero
    divided += np.divide(now.gradient, now.values, out=np.zeros_like(slopes), where=near)
    for fraction in _FRACTIONS:
        step = -fraction * (now.vectors @ divided)
        end = land.moved(found.theta, step)
        if np.linalg.norm(end - limits.centre) > limits.radius:
            continue
        if limits.stop_at_kinks and land.first_kink(found.theta, step).fraction < 1:
            continue
        expansion = land.expansion(end)
        left = now.vectors.T @ expansion.gradient
        smaller = np.linalg.norm(left[slopes != 0]) <= _REDUCES * np.linalg.norm(slopes)
        if smaller:
            return NewtonStep(end, expansion)
    return NewtonStep(found.theta)
