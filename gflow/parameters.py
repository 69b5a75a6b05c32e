"""The trained parameters of a network, and their places in the flat vector θ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float
from typing_extensions import TypeVar

from gflow.arguments import ArgumentError, Described, PyTree

# Any network: an equinox module, or another pytree of arrays.
Net = TypeVar("Net", default=Any)


def split_trainable(net: PyTree, trainable: Sequence[str] | PyTree | None = None):
    """The trained parameters of a network and the rest, as two pytrees; `eqx.combine` joins them.

    `trainable` is None (every floating-point array), names of fields of the network such as
    `("v", "c")`, or an equinox filter specification (a pytree of booleans, or a prefix of one).

    **Raises:** `ArgumentError` for unknown names, a choice without floating-point arrays, and
    trained arrays of several types.
    """
    spec = trainable
    if trainable is None:
        spec = eqx.is_inexact_array
    elif isinstance(trainable, str):
        raise ArgumentError("trainable", trainable, f"a tuple of names, ({trainable!r},)")
    elif isinstance(trainable, (list, tuple)) and all(isinstance(n, str) for n in trainable):
        for name in trainable:
            if name not in vars(net):
                fields = [f for f in vars(net) if eqx.is_array(getattr(net, f))]
                raise ArgumentError("trainable", name, f"fields of the network: {fields}")
        spec = jax.tree.map(lambda _: False, net)
        chosen = [n for n in trainable if getattr(net, n) is not None]
        spec = eqx.tree_at(
            lambda s: [getattr(s, n) for n in chosen],
            spec,
            [jax.tree.map(eqx.is_inexact_array, getattr(net, n)) for n in chosen],
        )
    trained, frozen = eqx.partition(net, spec)
    arrays = jax.tree.leaves(trained)
    if not arrays or not all(eqx.is_inexact_array(a) for a in arrays):
        raise ArgumentError(
            "trainable", Described(repr(trainable)), "a choice of at least one array of floats"
        )
    if len({a.dtype for a in arrays}) > 1:
        found = ", ".join(sorted({str(a.dtype) for a in arrays}))
        raise ArgumentError("net", Described(f"parameters of types {found}"), "one floating type")
    return trained, frozen


class ParameterLayout:
    """The flat vector θ of trained parameters, in the order of `jax.flatten_util.ravel_pytree`.

    For a `ShallowNet` the order is w (unit by unit), b, v (unit by unit), c, if trained.

    - `size`: the length of θ.
    - `places`: the trained part of the network, each entry replaced by its index in θ:
      `theta[places.w[i]]` is w_i. None where an array is not trained.
    """

    def __init__(self, trained: PyTree):
        arrays, structure = jax.tree.flatten(trained)
        ends = np.cumsum([0, *(a.size for a in arrays)])
        indices = [np.arange(n, n + a.size).reshape(a.shape) for n, a in zip(ends, arrays)]
        self.size = int(ends[-1])
        self.places: Any = jax.tree.unflatten(structure, indices)

    def of_units(
        self, units: Iterable[int], names: Sequence[str] = ("w", "b")
    ) -> Bool[np.ndarray, " size"]:
        """True for the entries of θ that belong to these units, in the arrays of these names."""
        chosen, rows = np.zeros(self.size, bool), np.array(list(units), int)
        for name in names:
            if (places := getattr(self.places, name)) is not None:
                chosen[places[rows]] = True
        return chosen

    def assembled(self, by_name: Mapping[str, Array], lead: tuple[int, ...]) -> Array:
        """Concatenates the trained ones of these arrays, with leading axes `lead`, in θ's order."""
        names = [name for name in by_name if getattr(self.places, name) is not None]
        names.sort(key=lambda name: getattr(self.places, name).flat[0])
        return jnp.concatenate([by_name[name].reshape(*lead, -1) for name in names], axis=-1)


def flat(trained: PyTree) -> Float[Array, " size"]:
    """θ, the trained parameters as one vector."""
    return ravel_pytree(trained)[0]


def unflat(like: PyTree, theta: Float[Array, " size"]) -> PyTree:
    """θ as a pytree of the same structure as `like`, the trained part of a network."""
    return ravel_pytree(like)[1](jnp.asarray(theta))
