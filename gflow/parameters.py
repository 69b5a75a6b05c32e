"""The trained parameters of a network, their places in the flat vector θ, and its time scales."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float
from typing_extensions import TypeVar

from gflow.arguments import ArgumentError, Described, PyTree, is_concrete, positive

# Any network: an equinox module, or another pytree of arrays.
Net = TypeVar("Net", default=Any)


def split_trainable(net: PyTree, trainable: Sequence[str] | PyTree | None = None):
    """The trained parameters of a network and the rest, as two pytrees; `eqx.combine` joins them.

    `trainable` is None (every floating-point array), names of fields of the network such as
    `("v", "c")`, or an equinox filter specification (a pytree of booleans, or a prefix of one).

    Trained arrays of NumPy become arrays of JAX, in the types that JAX runs in.

    **Raises:** `ArgumentError` for unknown names, a choice without floating-point arrays, what is
    no network, and trained arrays that are complex or of several types.
    """
    if (wanted := getattr(type(net), "wanted_for_network", None)) is not None:
        raise ArgumentError("net", Described(f"a {type(net).__name__}"), wanted)
    spec = trainable
    if isinstance(trainable, str):
        raise ArgumentError("trainable", trainable, f"a tuple of names, ({trainable!r},)")
    elif isinstance(trainable, (list, tuple)) and all(isinstance(n, str) for n in trainable):
        for name in trainable:
            _check_field("trainable", name, net)
        spec = jax.tree.map_with_path(
            lambda path, leaf: _field(path) in trainable and eqx.is_inexact_array(leaf), net
        )
    try:
        trained, frozen = _floats_and_rest(net) if spec is None else eqx.partition(net, spec)
    except Exception as error:  # those of a function of the leaves are of any type
        wanted = "names of fields, or a filter specification of the network's structure"
        raise ArgumentError("trainable", trainable, wanted) from error
    arrays = jax.tree.leaves(trained)
    if not arrays and trainable is None:
        got = Described(f"a {type(net).__name__} without arrays of floats")
        raise ArgumentError("net", got, "an equinox module, or another pytree of arrays of floats")
    if not arrays or not all(eqx.is_inexact_array(a) for a in arrays):
        raise ArgumentError(
            "trainable", Described(repr(trainable)), "a choice of at least one array of floats"
        )
    if any(jnp.issubdtype(a.dtype, jnp.complexfloating) for a in arrays):
        got = Described("complex parameters")
        raise ArgumentError("net", got, "real ones, such as real and imaginary parts")
    trained = jax.tree.map(jnp.asarray, trained)
    arrays = jax.tree.leaves(trained)
    if len({a.dtype for a in arrays}) > 1:
        found = ", ".join(sorted({str(a.dtype) for a in arrays}))
        raise ArgumentError("net", Described(f"parameters of types {found}"), "one floating type")
    return trained, frozen


def _floats_and_rest(net: PyTree) -> tuple[PyTree, PyTree]:
    """As `eqx.partition` does it, leaf by leaf."""
    leaves, structure = jax.tree.flatten(net)
    floats = [eqx.is_inexact_array(leaf) for leaf in leaves]
    trained = [leaf if chosen else None for leaf, chosen in zip(leaves, floats)]
    frozen = [None if chosen else leaf for leaf, chosen in zip(leaves, floats)]
    return structure.unflatten(trained), structure.unflatten(frozen)


def _field(path: tuple[Any, ...]) -> Any:
    """The field of a network, or the key of a dict, that a leaf belongs to."""
    key = path[0] if path else None
    return getattr(key, "name", getattr(key, "key", getattr(key, "idx", None)))


def _check_field(argument: str, name: Any, net: PyTree) -> None:
    named = net if isinstance(net, Mapping) else getattr(net, "__dict__", {})
    if name in named or name in getattr(net, "_fields", ()):
        return
    paths = jax.tree_util.tree_leaves_with_path(eqx.filter(net, eqx.is_inexact_array))
    fields = list(dict.fromkeys(_field(path) for path, _ in paths))
    raise ArgumentError(argument, name, f"fields of the network: {fields}")


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


class TimeScales(eqx.Module):
    r"""Positive numbers τ, one for each entry of θ, of the flow dθ/dt = −τ ⊙ ∇L(θ).

    In the coordinates $\varphi = \theta/\sqrt\tau$ it is the gradient flow
    $d\varphi/dt = -\nabla_\varphi L$. Along kinks it slides by the projection in the metric 1/τ,
    the Euclidean one of φ. `roots` are √τ, None where all are 1.
    """

    roots: Float[Array, " size"] | None = None

    @classmethod
    def of(cls, given: PyTree, net: PyTree, trained: PyTree) -> "TimeScales":
        """From one number, numbers by field, or a pytree of numbers that is a prefix of `net`.

        **Raises:** `ArgumentError` for unknown fields, and numbers that are not positive.
        """
        if given is None:
            return UNSCALED
        leaves = jax.tree.leaves(trained)
        roots = jnp.sqrt(jnp.asarray(_numbers(given, net, trained), leaves[0].dtype))
        return cls(jnp.repeat(roots, np.array([a.size for a in leaves])))

    def theta(self, phi: Array) -> Array:
        """θ = √τ φ."""
        return phi if self.roots is None else self.roots * phi

    def phi(self, theta: Array) -> Array:
        """φ = θ/√τ."""
        return theta if self.roots is None else theta / self.roots

    def scaled(self, params: PyTree) -> PyTree:
        """φ, as a pytree like θ."""
        return params if self.roots is None else unflat(params, self.phi(flat(params)))

    def of_gradient(self, gradient: PyTree) -> PyTree:
        """The gradient by φ from that by θ."""
        if self.roots is None:
            return gradient
        return unflat(gradient, self.roots * flat(gradient))

    def times(self, updates: PyTree) -> PyTree:
        """τ ⊙ updates."""
        return self.of_gradient(self.of_gradient(updates))

    def stats(self, trained: PyTree) -> dict[str, Array]:
        """`time_scale_NAME` of each trained array; {} where all are 1."""
        if self.roots is None:
            return {}
        places = jax.tree_util.tree_leaves_with_path(ParameterLayout(trained).places)
        named = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
        return {f"time_scale_{named(p)}": self.roots[place.flat[0]] ** 2 for p, place in places}

    def by_phi(self, derivative: Array, places: np.ndarray | None) -> Array:
        """A derivative by one trained array, with these places in θ, as that by its φ."""
        if self.roots is None or places is None:
            return derivative
        return self.roots[places.flat[0]] * derivative


UNSCALED = TimeScales()


def _numbers(given: PyTree, net: PyTree, trained: PyTree) -> list[Any]:
    """The number of each trained array, in the order of θ."""
    by_field = isinstance(given, Mapping)
    for name in given if by_field else ():
        _check_field("time_scales", name, net)
    try:
        spread = _spread_by_field(given, net) if by_field else jax.tree.broadcast(given, net)
    except ValueError:
        wanted = "a number, numbers by field such as {'v': 0.1}, or a prefix of the network"
        raise ArgumentError("time_scales", given, wanted) from None
    chosen = lambda array, number: None if array is None else number
    spread = jax.tree.map(chosen, trained, spread, is_leaf=lambda array: array is None)
    numbers = jax.tree.leaves(spread)
    for number in numbers:
        if is_concrete(number):
            positive("time_scales", number)
    return numbers


def _spread_by_field(given: Mapping[str, PyTree], net: PyTree) -> PyTree:
    """The number of each leaf: by field one, or a prefix of the field; 1 for other fields."""
    numbers = {}
    for name, value in given.items():
        field = net[name] if isinstance(net, Mapping) else getattr(net, name)
        numbers[name] = iter(jax.tree.leaves(jax.tree.broadcast(value, field)))
    return jax.tree.map_with_path(
        lambda path, _: next(numbers[name]) if (name := _field(path)) in numbers else 1.0, net
    )


def flat(trained: PyTree) -> Float[Array, " size"]:
    """θ, the trained parameters as one vector."""
    return ravel_pytree(trained)[0]


def unflat(like: PyTree, theta: Float[Array, " size"]) -> PyTree:
    """θ as a pytree of the same structure as `like`, the trained part of a network."""
    return ravel_pytree(like)[1](jnp.asarray(theta))
