"""Newton's method for the zeros of a gradient, where they need not be isolated."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from gflow.critical.landscapes import AbstractLandscape, Expansion, FirstKink, Kink

# Residuals count as zero below these multiples of ε ‖Hessian‖ ‖θ‖: the first ends the iteration,
# the second is enough where it makes no progress.
_FLOOR, _ENOUGH = 2.0, 500.0
_MAX_STEPS = 200
_MAX_TRIALS = 60
# μ, as a multiple of ‖g‖/‖θ‖.
_DAMPING = 0.1
_MIN_FRACTION, _SHORT = 1 / 64, 1e-3
_CUTS = (0.0, 1e-9, 1e-6, 1e-3)


class SearchLimits(NamedTuple):
    """How far the iteration may go: `radius` from `centre`, and no farther than the first kink if
    `stop_at_kinks`."""

    centre: Float[np.ndarray, " size"]
    radius: float
    stop_at_kinks: bool = True


class NewtonResult(NamedTuple):
    """Where the iteration ended: `converged`, with a gradient that is `small`; at a `kink`, if that
    is not None; or else because steps led beyond the radius (`far`), or made no progress.

    `expansion` is that of the last step's end, `previous` that of its start, `residual` the norm of
    the gradient in the free directions.
    """

    theta: Float[np.ndarray, " size"]
    expansion: Expansion
    previous: Expansion
    residual: float
    steps: int
    converged: bool
    far: bool = False
    kink: Kink | None = None
    small: bool = False


class Eigensystem(NamedTuple):
    """Eigenvalues and eigenvectors (columns) of the Hessian in the free directions, and the
    components of the gradient on them. Eigenvalues within rounding of zero are marked `zero`."""

    values: Float[np.ndarray, " free"]
    vectors: Float[np.ndarray, "size free"]
    gradient: Float[np.ndarray, " free"]
    zero: Bool[np.ndarray, " free"]

    @classmethod
    def of(cls, expansion: Expansion) -> "Eigensystem":
        """That of the Hessian on the span of the basis."""
        basis = expansion.basis
        values, vectors = np.linalg.eigh(basis.T @ expansion.hessian @ basis)
        vectors = basis @ vectors
        eps = np.finfo(expansion.gradient.dtype).eps
        tolerance = 100 * max(len(values), 1) * eps * np.max(np.abs(values), initial=0.0)
        gradient = vectors.T @ expansion.gradient
        return cls(values, vectors, gradient, np.abs(values) <= tolerance)

    @property
    def norm(self) -> float:
        """The norm of the gradient."""
        return float(np.linalg.norm(self.gradient))

    @property
    def largest(self) -> float:
        """The largest absolute eigenvalue."""
        return float(np.max(np.abs(self.values), initial=0.0))

    def damped_inverse(self, damping: float) -> "_DampedInverse":
        """(H² + μ²)⁻¹ H."""
        values = np.where(self.zero, 0.0, self.values)
        divisor = values**2 + damping**2
        factors = np.divide(values, divisor, out=np.zeros_like(values), where=divisor > 0)
        return _DampedInverse(factors, self.vectors)


class _DampedInverse(NamedTuple):
    """(H² + μ²)⁻¹ H on the eigenvectors of H, which is zero where H is zero."""

    factors: np.ndarray
    vectors: np.ndarray

    def __call__(self, gradient: np.ndarray) -> np.ndarray:
        return self.vectors @ (self.factors * gradient)


class NewtonStep(NamedTuple):
    """Where a step ends, with the risk there. `expansion` is None if a `kink` is in the way, with
    `theta` on it, or if no step was accepted; `far` if some of these led beyond the radius."""

    theta: Float[np.ndarray, " size"]
    expansion: Expansion | None = None
    damping: float = _DAMPING
    far: bool = False
    kink: Kink | None = None


def unsettled(result: NewtonResult, now: Eigensystem) -> Bool[np.ndarray, " free"]:
    """The eigenvalues that the last step changed by a tenth: they may be zero at the point that is
    approached, as where L = x⁴, to which Newton's method converges linearly."""
    before = np.sum(now.vectors * (result.previous.hessian @ now.vectors), axis=0)
    return np.abs(before - now.values) > 0.1 * np.abs(now.values)


def newton(
    land: AbstractLandscape, theta: Float[np.ndarray, " size"], limits: SearchLimits
) -> NewtonResult:
    """Follows θ to a zero of the gradient by the Levenberg–Marquardt method: steps
    −(H² + μ²)⁻¹ H g with μ in proportion to ‖g‖.

    They converge to critical points of any kind, quadratically also to a manifold of them if the
    Hessian vanishes along the manifold only (Yamashita and Fukushima, Computing Suppl. 15, 2001).
    """
    eps = np.finfo(theta.dtype).eps
    here, damping, scale, steps = land.expansion(theta), _DAMPING, 0.0, 0
    # At the origin there is nothing else to measure by.
    previous, size = here, float(np.linalg.norm(theta)) or limits.radius
    while True:
        now = Eigensystem.of(here)
        size = max(size, float(np.linalg.norm(theta)))
        scale = max(scale, now.largest * size)
        enough = bool(now.norm <= _ENOUGH * eps * scale)
        result = NewtonResult(theta, here, previous, now.norm, steps, enough, small=enough)
        if now.norm <= _FLOOR * eps * scale or not np.isfinite(now.norm) or steps == _MAX_STEPS:
            return result
        # Without a Hessian there is no step.
        if now.zero.all():
            return result
        if enough:
            step = _polished(land, theta, now, limits.stop_at_kinks)
            if step.expansion is None:
                return result
        else:
            step = _damped_step(land, theta, now, damping, size, limits)
            if step.expansion is None:
                return result._replace(theta=step.theta, far=step.far, kink=step.kink)
            damping = max(step.damping / 4, _DAMPING)
        theta, previous, here, steps = step.theta, here, step.expansion, steps + 1


def _damped_step(
    land: AbstractLandscape,
    theta: np.ndarray,
    now: Eigensystem,
    damping: float,
    size: float,
    limits: SearchLimits,
) -> NewtonStep:
    """The first step that passes the natural monotonicity test, or meets a kink. Steps that fail
    are shortened, and damped more if that does not help.

    A step passes if the next one, by the same Hessian, is shorter by most of what the Hessian
    promises: along a curved valley the gradient itself grows at first (Deuflhard, Newton Methods
    for Nonlinear Problems, 2011, section 3.3).
    """
    fraction, far = 1.0, False
    for _ in range(_MAX_TRIALS):
        inverse = now.damped_inverse(damping * now.norm / size)
        full = -inverse(now.gradient)
        step = fraction * full
        beyond = bool(np.linalg.norm(theta + step - limits.centre) > limits.radius)
        far = far or beyond
        if not beyond:
            first = land.first_kink(theta, step) if limits.stop_at_kinks else FirstKink()
            if first.kink is not None and first.fraction < 1:
                return NewtonStep(land.moved(theta, first.fraction * step), kink=first.kink)
            end = land.moved(theta, step)
            expansion = land.expansion(end)
            remaining, promised, whole = (
                np.linalg.norm(inverse(gradient))
                for gradient in (
                    now.vectors.T @ expansion.gradient,
                    now.gradient + fraction * now.values * (now.vectors.T @ full),
                    now.gradient,
                )
            )
            if remaining < whole and remaining <= promised + 0.6 * (whole - promised):
                return NewtonStep(end, expansion, damping)
        if fraction > _MIN_FRACTION:
            fraction /= 2
        else:
            fraction, damping = 1.0, 10 * damping
    return NewtonStep(theta, far=far)


def _polished(
    land: AbstractLandscape, theta: np.ndarray, now: Eigensystem, stop_at_kinks: bool
) -> NewtonStep:
    """A short step that halves the gradient of a point that is critical to some roundings, with as
    many eigenvectors as possible. Eigenvectors of rounding-size eigenvalues carry no information.
    """
    size = float(np.linalg.norm(theta))
    for cut in _CUTS:
        used = ~now.zero & (np.abs(now.values) > cut * now.largest)
        step = -now._replace(zero=~used).damped_inverse(0.0)(now.gradient)
        if np.linalg.norm(step) > _SHORT * size:
            continue
        if stop_at_kinks and land.first_kink(theta, step).fraction < 1:
            continue
        end = land.moved(theta, step)
        expansion = land.expansion(end)
        if np.linalg.norm(expansion.basis.T @ expansion.gradient) < 0.5 * now.norm:
            return NewtonStep(end, expansion)
    return NewtonStep(theta)
