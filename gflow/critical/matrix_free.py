"""Critical points of risks with too many parameters for a Hessian as a matrix."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator, lsmr, minres

from gflow.critical.candidate import Start, size_of_risk
from gflow.critical.landscapes import FlatRisk
from gflow.critical.point import CriticalKind, CriticalPoint, Zeros
from gflow.hessian import Spectrum, hessian_spectrum
from gflow.hessian.spectrum import Hessian, hessian_product
from gflow.parameters import unflat

_MAX_STEPS, _MAX_DAMPINGS, _MAX_PRODUCTS = 60, 12, 400
# μ, as a multiple of ‖g‖/‖θ‖; residuals count as zero as in `newton`.
_DAMPING, _ENOUGH = 0.1, 500.0
_AT_REST, _PROBES, _SIGNIFICANT = 1e-4, 6, 8.0
_KNOWN = 6


class _SearchEnd(NamedTuple):
    """Where the search ended, whether the gradient has vanished there, and why not."""

    theta: Float[np.ndarray, " size"]
    gradient: Float[np.ndarray, " size"]
    steps: int
    converged: bool
    reason: str


def matrix_free_point(
    risk: FlatRisk, start: Start, radius: float, size: float, optimum: float
) -> CriticalPoint:
    """The critical point near a start, by steps of Levenberg and Marquardt from Hessian products,
    and its kind, from the outermost eigenvalues. Kinks are not looked for."""
    found = _search(risk, start.theta, radius, size)
    net, value = risk.net(found.theta), risk(found.theta)
    spectrum = _spectrum(risk, found.theta)
    kind, message = CriticalKind.NOT_FOUND, found.reason
    if found.converged:
        scale = size_of_risk(risk, net, start.value)
        kind, message = _kind(spectrum, abs(value - optimum) <= 1e-15 * scale)
    descents = ()
    if kind is CriticalKind.SADDLE:
        bent = spectrum.eigenvectors[np.flatnonzero(spectrum.eigenvalues < -spectrum.zero_below)]
        descents = tuple(unflat(risk.trained, direction) for direction in bent)
    return CriticalPoint(
        net=net,
        risk=value,
        residual=float(np.linalg.norm(found.gradient)),
        kind=kind,
        message=f"{message} Of {len(start.theta):,} parameters only the outermost eigenvalues are "
        "known, and kinks were not looked for.",
        distance=float(np.linalg.norm(found.theta - start.theta)),
        risk_change=value - start.value,
        spectrum=spectrum,
        zeros=Zeros(spectrum.num_zero, 0, 0, spectrum.num_zero),
        modes=None,
        active_kinks=(),
        weakly_active=(),
        descent_directions=descents,
        units=None,
        num_steps=found.steps,
        num_patterns=1,
    )


@eqx.filter_jit
def _gradient(risk: FlatRisk, theta: Array) -> Array:
    value = lambda p: risk.risk(eqx.combine(unflat(risk.trained, p), risk.frozen))
    return jax.grad(value)(theta)


def _hessian(risk: FlatRisk, theta: np.ndarray) -> Hessian:
    return Hessian(risk.risk, unflat(risk.trained, jnp.asarray(theta)), risk.frozen)


def _step(hessian: Hessian, gradient: np.ndarray, damping: float) -> np.ndarray:
    """−(H² + μ²)⁻¹ H g."""
    product: Any = lambda v: np.asarray(hessian_product(hessian, jnp.asarray(np.ravel(v))))
    shape = (len(gradient), len(gradient))
    make: Any = LinearOperator  # a class whose __new__ has other arguments than pyright sees
    operator = make(shape, matvec=product, rmatvec=product, dtype=gradient.dtype)
    options: dict[str, Any] = {"atol": 1e-12, "btol": 1e-12, "maxiter": _MAX_PRODUCTS}
    return lsmr(operator, -gradient, damp=damping, **options)[0]


def _search(risk: FlatRisk, theta: np.ndarray, radius: float, size: float) -> _SearchEnd:
    slope = lambda p: np.asarray(_gradient(risk, jnp.asarray(p)))
    centre, gradient, scale = theta, slope(theta), 0.0
    for steps in range(_MAX_STEPS):
        norm, hessian = float(np.linalg.norm(gradient)), _hessian(risk, theta)
        if norm > 0:
            along = np.asarray(hessian_product(hessian, jnp.asarray(gradient / norm)))
            scale = max(scale, float(np.linalg.norm(along)) * size)
        damping, after = _DAMPING * norm / size, None
        for _ in range(_MAX_DAMPINGS if norm > 0 else 0):
            end = theta + _step(hessian, gradient, damping)
            if np.linalg.norm(end - centre) <= radius:
                after = slope(end)
                if np.linalg.norm(after) < 0.9 * norm:
                    theta, gradient = end, after
                    break
            damping, after = 10 * damping, None
        if after is None:
            small = norm <= _ENOUGH * np.finfo(theta.dtype).eps * scale
            if not small:
                return _SearchEnd(theta, gradient, steps, False, _why(norm))
            falls = _still_falls(slope, hessian, theta, gradient, size)
            reason = f"{_why(norm)} The gradient is small, but not zero." if falls else ""
            return _SearchEnd(theta, gradient, steps, not falls, reason)
    return _SearchEnd(theta, gradient, _MAX_STEPS, False, _why(float(np.linalg.norm(gradient))))


def _why(norm: float) -> str:
    return (
        "There is no critical point nearby: the flow has not yet converged, or diverges; the final "
        f"gradient norm is {norm:.1e}."
    )


def _still_falls(
    slope: Any, hessian: Hessian, theta: np.ndarray, gradient: np.ndarray, size: float
) -> bool:
    """Whether the Newton step is long though the gradient is known, and not rounding."""
    if not gradient.any():
        return False
    product: Any = lambda v: np.asarray(hessian_product(hessian, jnp.asarray(np.ravel(v))))
    make: Any = LinearOperator
    operator = make((len(theta), len(theta)), matvec=product, dtype=gradient.dtype)
    # Of eigenvalues that are smaller, Newton steps are long.
    small = float(np.linalg.norm(gradient)) / (_AT_REST * size)
    step = minres(operator, -gradient, shift=-small, rtol=1e-10, maxiter=_MAX_PRODUCTS)[0]
    length = float(np.linalg.norm(step))
    if length <= 0.5 * _AT_REST * size:
        return False
    eps, rng = np.finfo(theta.dtype).eps, np.random.default_rng(0)
    near = [theta + 2 * eps * np.abs(theta) * rng.normal(size=len(theta)) for _ in range(_PROBES)]
    seen = np.array([slope(p) for p in near]) @ (step / length)
    return bool(abs(np.mean(seen)) > _SIGNIFICANT * np.std(seen))


def _spectrum(risk: FlatRisk, theta: np.ndarray) -> Spectrum:
    net = eqx.combine(unflat(risk.trained, jnp.asarray(theta)), risk.frozen)
    chosen = jax.tree.map(lambda a: a is not None, risk.trained, is_leaf=lambda a: a is None)
    return hessian_spectrum(
        risk.risk, net, largest=_KNOWN, smallest=_KNOWN, trainable=chosen, dense_up_to=0
    )


def _kind(spectrum: Spectrum, optimal: bool) -> tuple[CriticalKind, str]:
    if optimal and not spectrum.num_negative:
        return CriticalKind.GLOBAL_MINIMUM, "The risk is the minimum to rounding."
    if spectrum.num_negative:
        return CriticalKind.SADDLE, f"The risk falls in {spectrum.num_negative} directions or more."
    # Of a dense cluster the smallest eigenvalues are known to their residuals only.
    lowest = spectrum.smallest - spectrum.residuals[: spectrum.num_smallest]
    rounding = 1e-13 * float(np.max(np.abs(spectrum.eigenvalues)))
    if not np.min(lowest) > rounding:
        return (
            CriticalKind.DEGENERATE,
            "No eigenvalue is negative; whether zero ones are explained is not known.",
        )
    return CriticalKind.LOCAL_MINIMUM, "All eigenvalues are positive."
