"""Proved bounds of the slopes of activations over intervals, in float64 on the host."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import erf, expit

from gflow.activations import Activation, PiecewiseLinear, SmoothActivation, as_activation
from gflow.arguments import ArgumentError, finite, one_of, positive

Values = Float[np.ndarray, "*shape"]


@dataclass(frozen=True)
class SlopeBounds:
    """Bounds of the slope σ' of a C² activation σ on the real line, which the user guarantees.

    - `min_slope`, `max_slope`: min_slope ≤ σ' ≤ max_slope.
    - `curvature`: |σ''| ≤ curvature.
    - `shape`: "bump" if σ' is even and does not grow with |z|, "rising" if σ' does not fall with z;
      both give sharper bounds over intervals. None if neither.

    For z + tanh(z): `SlopeBounds(1.0, 2.0, 0.77, "bump")`.

    **Raises:** `ArgumentError` for bounds that are not finite or not in order.
    """

    min_slope: float
    max_slope: float
    curvature: float
    shape: Literal["bump", "rising"] | None = None

    def __post_init__(self):
        finite("min_slope", self.min_slope)
        finite("max_slope", self.max_slope)
        positive("curvature", self.curvature, or_zero=True)
        if self.min_slope > self.max_slope:
            wanted = f"at most max_slope = {self.max_slope}"
            raise ArgumentError("min_slope", self.min_slope, wanted)
        if self.shape is not None:
            one_of("shape", self.shape, ("bump", "rising"))


class HostActivation(NamedTuple):
    """σ and σ' for NumPy arrays of float64, with bounds of σ'. (Leaky) ReLU is `kinked`."""

    value: Callable[[Values], Values]
    slope: Callable[[Values], Values]
    bounds: SlopeBounds
    kinked: bool = False

    def slopes(self, low: Values, centre: Values, high: Values) -> tuple[Values, Values, Values]:
        """A lower bound of σ' over [low, high], σ' at the centre, and an upper bound."""
        bounds = self.bounds
        if bounds.shape == "rising" or self.kinked:
            lows, middle, highs = self.slope(np.stack([low, centre, high]))
            return np.minimum(lows, highs), middle, np.maximum(lows, highs)
        if bounds.shape == "bump":
            ends = abs(low), abs(high)
            nearest = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(*ends))
            smallest, middle, largest = self.slope(np.stack([np.maximum(*ends), centre, nearest]))
            return smallest, middle, largest
        change = bounds.curvature * np.maximum(high - centre, centre - low)
        middle = self.slope(centre)
        lower, upper = middle - change, middle + change
        return np.maximum(lower, bounds.min_slope), middle, np.minimum(upper, bounds.max_slope)


def _sech_squared(z):
    decay = np.exp(-abs(z))
    return (2 * decay / (1 + decay**2)) ** 2


# In this order |σ''| is largest at tanh z = 1/√3, e^z = 2 ± √3, z = 0, z = 1/√2 and z = 1/√3.
_TANH = HostActivation(np.tanh, _sech_squared, SlopeBounds(0.0, 1.0, 4 / 27**0.5, "bump"))
_SIGMOID = HostActivation(
    expit, lambda z: expit(z) * expit(-z), SlopeBounds(0.0, 0.25, 1 / 108**0.5, "bump")
)
_SOFTPLUS = HostActivation(
    lambda z: np.logaddexp(z, 0.0), expit, SlopeBounds(0.0, 1.0, 0.25, "rising")
)
_ERF = HostActivation(
    erf,
    lambda z: 2 / np.pi**0.5 * np.exp(-(z**2)),
    SlopeBounds(0.0, 2 / np.pi**0.5, (8 / (np.e * np.pi)) ** 0.5, "bump"),
)
_ARCTAN = HostActivation(
    np.arctan, lambda z: 1 / (1 + z**2), SlopeBounds(0.0, 1.0, 27**0.5 / 8, "bump")
)
KNOWN: dict[Any, HostActivation] = {
    jnp.tanh: _TANH,
    jax.lax.tanh: _TANH,
    jax.nn.sigmoid: _SIGMOID,
    jax.lax.logistic: _SIGMOID,
    jax.nn.softplus: _SOFTPLUS,
    jax.scipy.special.erf: _ERF,
    jax.lax.erf: _ERF,
    jnp.arctan: _ARCTAN,
    jnp.atan: _ARCTAN,
}


def host_activation(activation: Any, bounds: SlopeBounds | None) -> HostActivation | None:
    """The activation on the host, with its bounds, or with `bounds` if gflow knows none for it.

    None if there are no bounds.

    **Raises:** `ArgumentError` if the function violates `bounds` at one of many points.
    """
    return _host_activation(as_activation(activation), bounds)


# Cached, so that a function that the user supplies is compiled once.
@lru_cache(maxsize=64)
def _host_activation(known: Activation, bounds: SlopeBounds | None) -> HostActivation | None:
    if isinstance(known, PiecewiseLinear):
        return _piecewise_linear(known)
    function = known.function if isinstance(known, SmoothActivation) else known
    if isinstance(function, Callable) and _hashable(function) and function in KNOWN:
        return KNOWN[function]
    if bounds is None:
        return None
    slope = lambda z: jax.jvp(known, (z,), (jnp.ones_like(z),))[1]
    host = HostActivation(_on_host(known), _on_host(slope), bounds)
    _check(host)
    return host


def _hashable(function: Any) -> bool:
    return not isinstance(function, eqx.Module)


def _piecewise_linear(known: PiecewiseLinear) -> HostActivation:
    below = known.negative_slope
    return HostActivation(
        lambda z: np.where(z > 0, z, below * z),
        lambda z: np.where(z > 0, 1.0, below),
        SlopeBounds(min(below, 1.0), max(below, 1.0), 0.0),
        known.kinked,
    )


def _on_host(function: Callable) -> Callable[[Values], Values]:
    """A function of JAX, evaluated in float64 on the CPU whatever the defaults of JAX are."""
    compiled = jax.jit(function)

    def evaluate(z: Values) -> Values:
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            return np.asarray(compiled(jnp.asarray(z)), float)

    return evaluate


def _check(host: HostActivation) -> None:
    """Raises `ArgumentError` if the bounds are violated at one of many points in [−30, 30]."""
    z, bounds = np.linspace(-30, 30, 4001), host.bounds
    slopes = host.slope(z)
    steepest = np.abs(np.diff(slopes)).max() / (z[1] - z[0])
    # Slopes are compared up to rounding.
    slack = 1e-12 * max(abs(bounds.min_slope), abs(bounds.max_slope))
    rises = np.diff(slopes) if bounds.shape == "rising" else -np.diff(slopes[2000:])
    uneven = np.abs(slopes - slopes[::-1]).max() if bounds.shape == "bump" else 0.0
    violation = None
    if slopes.min() < bounds.min_slope - slack or slopes.max() > bounds.max_slope + slack:
        violation = f"slopes from {slopes.min():.6g} to {slopes.max():.6g}"
    elif steepest > bounds.curvature + 100 * slack:
        violation = f"|σ''| up to {steepest:.6g}"
    elif bounds.shape is not None and (rises.min() < -slack or uneven > slack):
        violation = f"a slope that is not {bounds.shape!r}"
    if violation is not None:
        raise ArgumentError("slopes", bounds, f"bounds that hold: the function has {violation}")
