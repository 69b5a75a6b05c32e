"""Activation functions: value, slope and activation pattern, with ReLU'(0) = 0."""

import contextlib
from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.arguments import ArgumentError, finite


class Activation(eqx.Module):
    """An elementwise function σ with its slope σ'.

    - `name`: for messages and plots, and for `as_activation` if it is one of `NAMED`.
    - `kinked`: whether σ' jumps at 0.
    - `homogeneous`: whether σ(az) = a σ(z) for a > 0.
    """

    name: eqx.AbstractVar[str]
    kinked: eqx.AbstractVar[bool]
    homogeneous: eqx.AbstractVar[bool]

    @abstractmethod
    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """σ(z), elementwise."""

    @abstractmethod
    def slope(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """σ'(z), elementwise."""


class PiecewiseLinear(Activation):
    """σ(z) = z for z > 0 and `negative_slope` · z otherwise: ReLU (0), leaky ReLU, identity (1).

    At the kink the slope is that of the inactive side, so ReLU'(0) = 0: automatic differentiation
    computes the generalized gradient of Eberle, Jentzen, Riekert and Weiss (arXiv 2108.08106).
    """

    negative_slope: float = eqx.field(static=True)
    name: str = eqx.field(static=True)
    kinked: bool = eqx.field(static=True)
    homogeneous: bool = eqx.field(static=True)

    def __init__(self, negative_slope: float = 0.0):
        self.negative_slope = finite("negative_slope", negative_slope)
        names = {0.0: "relu", 0.01: "leaky_relu", 1.0: "identity"}
        self.name = names.get(self.negative_slope, f"leaky_relu({self.negative_slope!r})")
        self.kinked = self.negative_slope != 1.0
        self.homogeneous = True

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        if self.negative_slope == 0.0:
            return jax.nn.relu(z)
        return jnp.where(z > 0, z, self.negative_slope * z)

    def slope(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        one = jnp.ones_like(z)
        return jnp.where(z > 0, one, self.negative_slope * one)

    def pattern(self, z: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """The activation pattern: True where the unit is active, z > 0."""
        return z > 0


class SmoothActivation(Activation):
    """A smooth activation given by any elementwise function; its slope comes from autodiff."""

    function: Callable = eqx.field(static=True)
    name: str = eqx.field(static=True)
    kinked: bool = eqx.field(static=True)
    homogeneous: bool = eqx.field(static=True)

    def __init__(self, function: Callable, name: str | None = None):
        self.function = function
        self.name = getattr(function, "__name__", repr(function)) if name is None else name
        self.kinked = False
        self.homogeneous = False

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.function(z)

    def slope(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.jvp(self.function, (z,), (jnp.ones_like(z),))[1]


NAMED: dict[str, Activation] = {
    "relu": PiecewiseLinear(0.0),
    "leaky_relu": PiecewiseLinear(0.01),
    "identity": PiecewiseLinear(1.0),
    "tanh": SmoothActivation(jnp.tanh, "tanh"),
    "sigmoid": SmoothActivation(jax.nn.sigmoid, "sigmoid"),
    "softplus": SmoothActivation(jax.nn.softplus, "softplus"),
    "silu": SmoothActivation(jax.nn.silu, "silu"),
    "gelu": SmoothActivation(jax.nn.gelu, "gelu"),
    "erf": SmoothActivation(jax.scipy.special.erf, "erf"),
}
_KNOWN_FUNCTIONS = {
    jax.nn.relu: NAMED["relu"],
    jax.nn.leaky_relu: NAMED["leaky_relu"],
    jax.nn.identity: NAMED["identity"],
}


def as_activation(activation: str | Callable) -> Activation:
    """The `Activation` for a name ("relu", "leaky_relu(0.1)", "tanh", ...) or a function.

    `jax.nn.relu`, `jax.nn.leaky_relu` and `jax.nn.identity` are recognised. Any other function is
    assumed to be smooth.

    **Raises:** `ArgumentError` for an unknown name, and for what is no function.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation in NAMED:
            return NAMED[activation]
        if activation.startswith("leaky_relu(") and activation.endswith(")"):
            with contextlib.suppress(ValueError):
                return PiecewiseLinear(float(activation[len("leaky_relu(") : -1]))
    elif callable(activation):
        return _KNOWN_FUNCTIONS.get(activation) or SmoothActivation(activation)
    known = ", ".join(NAMED)
    raise ArgumentError("activation", activation, f"a function, or one of {known}")
