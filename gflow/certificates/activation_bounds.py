"""What is proved of activations: bounds of their slopes over intervals, in float64 on the host."""

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
    """Bounds of the slope σ' of a C² activation σ on the whole line, which the user vouches for.

    - `least`, `largest`: least ≤ σ' ≤ largest.
    - `curvature`: |σ''| ≤ curvature.
    - `shape`: "bump" if σ' is even and does not grow with |z|, "rising" if σ' does not fall with z;
      both give sharper slopes over intervals. None if neither.

    For z + tanh(z): `SlopeBounds(1.0, 2.0, 0.77, "bump")`.

    **Raises:** `ArgumentError` for bounds that are not finite or not in order.
    """

    least: float
    largest: float
    curvature: float
    shape: Literal["bump", "rising"] | None = None

    def __post_init__(self):
        finite("least", self.least)
        finite("largest", self.largest)
        positive("curvature", self.curvature, or_zero=True)
        if self.least > self.largest:
            raise ArgumentError("least", self.least, f"at most largest = {self.largest}")
        if self.shape is not None:
            one_of("shape", self.shape, ("bump", "rising"))


class HostActivation(NamedTuple):
    """σ and σ' for NumPy arrays of float64, with bounds of σ'; `kinked` for (leaky) ReLU."""

    value: Callable[[Values], Values]
    slope: Callable[[Values], Values]
    bounds: SlopeBounds
    kinked: bool = False

    def slopes(self, low: Values, centre: Values, high: Values) -> tuple[Values, Values, Values]:
        """The least slope over [low, high], that at the centre, and the largest."""
        least, largest, curvature, shape = vars(self.bounds).values()
        if shape == "rising" or self.kinked:
            lows, middle, highs = self.slope(np.stack([low, centre, high]))
            return np.minimum(lows, highs), middle, np.maximum(lows, highs)
        if shape == "bump":
            ends = abs(low), abs(high)
            nearest = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(*ends))
            least, middle, most = self.slope(np.stack([np.maximum(*ends), centre, nearest]))
            return least, middle, most
        change = curvature * np.maximum(high - centre, centre - low)
        middle = self.slope(centre)
        return np.maximum(middle - change, least), middle, np.minimum(middle + change, largest)


def _sech_squared(z):
    decay = np.exp(-abs(z))
    return (2 * decay / (1 + decay**2)) ** 2


# The largest |σ''| are at tanh z = 1/√3; at e^z = 2 ± √3; at 0; at z = 1/√2; at z = 1/√3.
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
_KNOWN: dict[Any, HostActivation] = {
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
    """What is known of an activation; `bounds` serve one that is not. None if nothing is.

    **Raises:** `ArgumentError` if the function contradicts `bounds` at a sample of points.
    """
    return _host_activation(as_activation(activation), bounds)


# Kept, so that a function of the user's own is compiled once.
@lru_cache(maxsize=64)
def _host_activation(known: Activation, bounds: SlopeBounds | None) -> HostActivation | None:
    if isinstance(known, PiecewiseLinear):
        return _piecewise_linear(known)
    function = known.function if isinstance(known, SmoothActivation) else known
    if isinstance(function, Callable) and _hashable(function) and function in _KNOWN:
        return _KNOWN[function]
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
    """The function of JAX in float64 on the processor, whatever JAX runs in and on otherwise."""
    compiled = jax.jit(function)

    def evaluate(z: Values) -> Values:
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            return np.asarray(compiled(jnp.asarray(z)), float)

    return evaluate


def _check(host: HostActivation) -> None:
    z = np.linspace(-30, 30, 4001)
    least, largest, curvature, shape = vars(host.bounds).values()
    slopes = host.slope(z)
    steepest = np.abs(np.diff(slopes)).max() / (z[1] - z[0])
    # Slopes are compared to rounding.
    slack = 1e-12 * max(abs(least), abs(largest))
    rises = np.diff(slopes) if shape == "rising" else -np.diff(slopes[2000:])
    uneven = np.abs(slopes - slopes[::-1]).max() if shape == "bump" else 0.0
    found = None
    if slopes.min() < least - slack or slopes.max() > largest + slack:
        found = f"slopes from {slopes.min():.6g} to {slopes.max():.6g}"
    elif steepest > curvature + 100 * slack:
        found = f"|σ''| up to {steepest:.6g}"
    elif shape is not None and (rises.min() < -slack or uneven > slack):
        found = f"a slope that is not {shape!r}"
    if found is not None:
        raise ArgumentError("slopes", host.bounds, f"bounds that hold: the function has {found}")
