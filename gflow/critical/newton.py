"""Newton's method for the zeros of a gradient, where they need not be isolated."""

from typing import NamedTuple

import numpy as np

from gflow.critical.landscapes import Landscape, Local

# Residuals count as zero below these shares of ‖Hessian‖ ‖θ‖, in roundings: the first ends the
# iteration, the second is asked for where it makes no progress.
_FLOOR, _ENOUGH = 2.0, 500.0
_MOST = 200
_MOST_TRIALS = 60
# μ, as a multiple of ‖g‖/‖θ‖.
_DAMPING = 0.1
_LEAST_SHARE, _SHORT = 1 / 64, 1e-3
_CUTS = (0.0, 1e-9, 1e-6, 1e-3)
_TINY = np.finfo(float).tiny


class Found(NamedTuple):
    """Where the iteration ended, and `before` the last step: `converged`, or, if `kink` is not
    None, at a kink of that unit and row; otherwise it came too far, or made no progress."""

    theta: np.ndarray
    local: Local
    before: Local
    residual: float
    scale: float
    steps: int
    converged: bool
    far: bool = False
    kink: tuple[int, int] | None = None


class Spectral(NamedTuple):
    """Gradient and Hessian in the free directions, on the eigenvectors of the Hessian.

    Eigenvalues of which nothing is known but roundings are zero.
    """

    values: np.ndarray
    vectors: np.ndarray
    gradient: np.ndarray
    zero: np.ndarray

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.gradient))

    @property
    def largest(self) -> float:
        return float(np.max(np.abs(self.values), initial=0.0))


def spectral(local: Local, basis: np.ndarray) -> Spectral:
    """On the columns of the basis; `vectors` are in all parameters."""
    values, vectors = np.linalg.eigh(basis.T @ local.hessian @ basis)
    vectors = basis @ vectors
    eps = np.finfo(local.gradient.dtype).eps
    tolerance = 100 * max(len(values), 1) * eps * np.max(np.abs(values), initial=0.0)
    return Spectral(values, vectors, vectors.T @ local.gradient, np.abs(values) <= tolerance)


def unsettled(found: Found, now: Spectral) -> np.ndarray:
    """The eigenvalues that the last step changed by a tenth: they may be zero at the point that is
    approached, as where L = x⁴, to which Newton's method converges linearly."""
    before = np.sum(now.vectors * (found.before.hessian @ now.vectors), axis=0)
    return np.abs(before - now.values) > 0.1 * np.abs(now.values)


def newton(
    land: Landscape,
    theta: np.ndarray,
    *,
    near: np.ndarray,
    radius: float,
    stop_at_kinks: bool = True,
) -> Found:
    """Follows θ to a zero of the gradient, within `radius` of `near`, by the Levenberg–Marquardt
    method: steps −(H² + μ²)⁻¹ H g with μ in proportion to ‖g‖.

    These converge quadratically to a point of a manifold of critical points, if the Hessian
    vanishes along the manifold only (Yamashita and Fukushima, Computing Suppl. 15, 2001), and to
    critical points of any kind. Long steps are shortened until the next, by the same Hessian, is
    shorter by most of what the Hessian promises: along a curved valley the gradient itself grows at
    first (the natural monotonicity test of Deuflhard, Newton Methods for Nonlinear Problems, 2011,
    section 3.3).
    """
    eps = np.finfo(theta.dtype).eps
    here, damping, scale, steps = land.local(theta), _DAMPING, 0.0, 0
    before, size = here, _TINY
    made = lambda converged=False, far=False, kink=None: Found(
        theta, here, before, now.norm, scale, steps, converged, far, kink
    )
    while True:
        now = spectral(here, land.basis)
        size = max(size, float(np.linalg.norm(theta)))
        scale = max(scale, now.largest * size)
        enough = now.norm <= _ENOUGH * eps * scale
        if now.norm <= _FLOOR * eps * scale or not np.isfinite(now.norm) or steps == _MOST:
            return made(converged=bool(enough))
        if now.zero.all():
            # Nothing is known of where to go.
            return made(converged=bool(enough))
        if enough:
            there = _polished(land, theta, now, stop_at_kinks)
            if there is None:
                return made(converged=True)
            before, (theta, here), steps = here, there, steps + 1
            continue
        share, far = 1.0, False
        for _ in range(_MOST_TRIALS):
            invert = _Inverse(now, damping * now.norm / size)
            full = -invert(now.gradient)
            step = share * full
            beyond = bool(np.linalg.norm(theta + step - near) > radius)
            far = far or beyond
            if not beyond:
                at_kink, pair = land.first_kink(theta, step)
                if at_kink < 1 and stop_at_kinks:
                    theta = theta + at_kink * step
                    return made(kink=pair)
                local = land.local(theta + step)
                left, promised, whole = (
                    np.linalg.norm(invert(gradient))
                    for gradient in (
                        now.vectors.T @ local.gradient,
                        now.gradient + share * now.values * (now.vectors.T @ full),
                        now.gradient,
                    )
                )
                if left < whole and left <= promised + 0.6 * (whole - promised):
                    break
            share, damping = (share / 2, damping) if share > _LEAST_SHARE else (1.0, 10 * damping)
        else:
            return made(far=far)
        theta, before, here, steps = theta + step, here, local, steps + 1
        damping = max(damping / 4, _DAMPING)


def _polished(
    land: Landscape, theta: np.ndarray, now: Spectral, stop_at_kinks: bool
) -> tuple[np.ndarray, Local] | None:
    """A short step from a point that is critical to some roundings to one of half the gradient,
    with as many eigenvectors as that allows; None if there is none.

    Where gradient and eigenvalue are both roundings, the point says nothing of where to go.
    """
    size = float(np.linalg.norm(theta))
    for cut in _CUTS:
        used = ~now.zero & (np.abs(now.values) > cut * now.largest)
        step = -_Inverse(now._replace(zero=~used), 0.0)(now.gradient)
        if np.linalg.norm(step) > _SHORT * size:
            continue
        if stop_at_kinks and land.first_kink(theta, step)[0] < 1:
            continue
        local = land.local(theta + step)
        if np.linalg.norm(land.basis.T @ local.gradient) < 0.5 * now.norm:
            return theta + step, local
    return None


class _Inverse:
    """(H² + μ²)⁻¹ H on the eigenvectors of H, that is nothing where H is zero."""

    def __init__(self, now: Spectral, damping: float):
        values = np.where(now.zero, 0.0, now.values)
        divisor = values**2 + damping**2
        self.shares = np.divide(values, divisor, out=np.zeros_like(values), where=divisor > 0)
        self.vectors = now.vectors

    def __call__(self, gradient: np.ndarray) -> np.ndarray:
        return self.vectors @ (self.shares * gradient)
