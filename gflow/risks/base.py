"""The abstract risk."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.arguments import ArgumentError, Described, PyTree

# Risks and networks of these shapes have been checked.
_CHECKED: set[tuple[Any, ...]] = set()
_MOST_KEPT = 1000

_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class Risk(eqx.Module):
    """A scalar function of a network, `risk(net)`: the mean of a loss over data or inputs."""

    wanted_for_network: ClassVar[str] = "a network; the risk comes first"

    @abstractmethod
    def __call__(self, net: Callable[[Any], Array]) -> Float[Array, ""]:
        """The risk of the network."""


def check_risk(risk: Any, net: PyTree) -> None:
    """Raises `ArgumentError` unless the risk of the network is one real number.

    Only shapes are evaluated. Errors of the risk itself pass through.
    """
    wanted = "a function of the network to one real number"
    if not callable(risk):
        raise ArgumentError("risk", Described(f"a {type(risk).__name__}"), wanted)
    known = _shapes(risk, net) if isinstance(risk, Risk) else None
    if known is not None and known in _CHECKED:
        return
    value = shape_of_value("risk", "a function", risk, net)
    if jax.tree.structure(value) != jax.tree.structure(0):
        got = Described(f"a function that returns a {type(value).__name__}")
        raise ArgumentError("risk", got, wanted)
    if np.shape(value) != ():
        got = Described(f"a function with values of shape {np.shape(value)}")
        raise ArgumentError("risk", got, wanted + ", such as a mean")
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        got = Described(f"a function to type {jnp.result_type(value)}")
        raise ArgumentError("risk", got, wanted)
    if known is not None and len(_CHECKED) < _MOST_KEPT:
        _CHECKED.add(known)


def shape_of_value(argument: str, called: str, function: Callable, net: PyTree) -> Any:
    """What a function of the network returns, with shapes and types in the place of arrays.

    **Raises:** `ArgumentError` for one that JAX cannot trace; other errors pass through.
    """
    try:
        return eqx.filter_eval_shape(function, net)
    except _UNTRACEABLE as error:
        got = Described(f"{called} that asks for the values of arrays")
        wanted = "one that JAX can trace: of jax.numpy, without NumPy, float() and `if` on values"
        raise ArgumentError(argument, got, wanted) from error


def _shapes(risk: Risk, net: PyTree) -> tuple[Any, ...] | None:
    """The structure of both, and the shape and type of each array; None if it cannot be hashed."""
    leaves, structure = jax.tree.flatten((risk, net))
    of = lambda leaf: (leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf
    key = (structure, *map(of, leaves))
    try:
        hash(key)
    except TypeError:
        return None
    return key
