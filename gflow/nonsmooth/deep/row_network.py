"""A network as a function of one row of data, with the sides of its kinks as arguments."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jaxtyping import Array, Bool, Float

from gflow.arguments import PyTree, is_concrete
from gflow.nonsmooth.deep.flattening import evaluated, flattened
from gflow.nonsmooth.deep.sites import Findings, Site, cases_of, find_sites
from gflow.nonsmooth.pattern_risk import UnitPlaces

_MOST_NETWORKS = 64


class RowOutput(NamedTuple):
    """The output of a network for one row, and the preactivations of all units."""

    output: Any
    z: Float[Array, " units"]


class RowNetwork:
    """The computation of a network for one row, taken apart at its kinks.

    A unit is one entry of one site, in the order of the computation: a site is a layer of units. At
    units with `ties` two quantities are
    compared, which may be equal for good. Units that are `clipped` have the slope 0 where they are
    inactive, as those of ReLU have. `reasons` say what kinks are not followed.
    """

    def __init__(self, jaxpr: ClosedJaxpr, structure: Any, found: Findings):
        self._jaxpr, self._structure, self._found = jaxpr, structure, found
        sizes = [prod(site.shape) for site in found.sites.values()]
        self.num_units = sum(sizes)
        numbers = [np.arange(0), *(np.arange(n) for n in sizes)]
        layers = np.repeat(np.arange(len(sizes)), sizes)
        self.places = UnitPlaces(layers, np.concatenate(numbers))
        self.ties = np.repeat([site.ties for site in found.sites.values()], sizes)
        clips = [site.kind == "max" and not site.ties for site in found.sites.values()]
        self.clipped = np.repeat(clips, sizes)
        self.reasons = found.reasons

    def __call__(
        self,
        trained: PyTree,
        frozen: PyTree,
        x: Float[Array, " in"],
        sides: Bool[Array, " units"] | None,
        extra: Float[Array, " units"] | None = None,
        free: Bool[Array, " units"] | None = None,
    ) -> RowOutput:
        """The output where units are on these `sides` of their kinks, or, without them and where
        they are `free`, on those of their preactivations.

        `extra`, which is 0, is added to the activations, to find the derivatives by them: where the
        slope of an activation jumps by c, derivatives are c times those by it.
        """
        arrays = jax.tree.leaves((trained, eqx.filter(frozen, _is_array), x))
        jaxpr, found = self._jaxpr.jaxpr, self._found
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, self._jaxpr.consts))
        known.update(zip(jaxpr.invars, arrays))
        value = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
        all_z, first = [], 0
        for n, eqn in enumerate(jaxpr.eqns):
            args = [value(atom) for atom in eqn.invars]
            if n in found.sites:
                site = found.sites[n]
                last = first + prod(site.shape)
                part = lambda a, s=slice(first, last), of=site: a[s].reshape(of.shape)
                split = _split(site, eqn, args, value)
                above = split.z > 0 if sides is None else part(sides)
                if free is not None:
                    above = jnp.where(part(free), split.z > 0, above)
                result = jnp.where(above, split.above, split.below)
                if site.ties:
                    result = _of_zeros(split, result)
                if extra is not None:
                    result = result + split.bend * part(extra)
                results, first = [result], last
                all_z.append(split.z.reshape(-1))
            elif n in found.same_as:
                one = args[found.same_as[n]]
                results = [jnp.broadcast_to(one, eqn.outvars[0].aval.shape)]
            else:
                results = evaluated(eqn, args)
            known.update(zip(eqn.outvars, results))
        output = self._structure.unflatten([value(atom) for atom in jaxpr.outvars])
        return RowOutput(output, jnp.concatenate(all_z))


class _Split(NamedTuple):
    """The preactivations of a site, its results on both sides, and the factor `bend` by which its
    slope jumps."""

    z: Array
    above: Array
    below: Array
    bend: Any


def _of_zeros(split: _Split, result: Array) -> Array:
    """The result of a comparison, with the derivatives of both where two zeros are compared, such
    as two inactive units: either decides if it alone becomes active."""
    of_both = split.above + split.below - jax.lax.stop_gradient(split.below)
    return jnp.where((split.z == 0) & (split.above == 0), of_both, result)


def _split(site: Site, eqn: JaxprEqn, args: Sequence[Any], value: Callable[[Any], Any]) -> _Split:
    wide = lambda a: jnp.broadcast_to(a, site.shape)
    if site.kind == "abs":
        return _Split(args[0], args[0], -args[0], 2.0)
    if site.kind in ("max", "min"):
        # What a number is compared with is the unit.
        one, other = args[::-1] if isinstance(eqn.invars[0], Literal) else args
        z, bend = (one - other, 1.0) if site.kind == "max" else (other - one, -1.0)
        return _Split(wide(z), wide(one), wide(other), bend)
    comparison = site.comparison
    assert comparison is not None
    base = value(comparison.base)
    of_base = lambda b: cases_of(site, eqn, value, b)
    at = jnp.full_like(base, comparison.number)
    _, bend = jax.jvp(lambda b: of_base(b).apart, (at,), (jnp.ones_like(at),))
    cases = of_base(base)
    return _Split(base - comparison.number, cases.above, cases.below, bend)


# Those found lately, by what tells networks apart apart from their arrays.
_NETWORKS: dict[Any, RowNetwork] = {}


def row_network(trained: PyTree, frozen: PyTree, x: Float[Array, "rows in"]) -> RowNetwork:
    """The computation of a network for a row of x, found once for networks that differ in their
    arrays only."""
    fixed, rest = eqx.partition(frozen, _is_array)
    leaves, structure = jax.tree.flatten(rest)
    arrays, of_arrays = jax.tree.flatten((trained, fixed))
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (*arrays, x)]
    shapes = tuple((a.shape, str(a.dtype)) for a in like)
    key = (structure, tuple((type(leaf), leaf) for leaf in leaves), of_arrays, shapes)
    try:
        known = _NETWORKS.get(key)
    except TypeError:
        return _looked_into(rest, of_arrays, like)[0]
    if known is not None:
        return known
    network, is_known = _looked_into(rest, of_arrays, like)
    if is_known:
        if len(_NETWORKS) == _MOST_NETWORKS:
            _NETWORKS.pop(next(iter(_NETWORKS)))
        _NETWORKS[key] = network
    return network


def _looked_into(rest: PyTree, of_arrays: Any, like: list[Any]) -> tuple[RowNetwork, bool]:
    """The network of such arrays, and whether it captures none that JAX traces."""
    trained, fixed = of_arrays.unflatten(like[:-1])
    row = jax.ShapeDtypeStruct(like[-1].shape[1:], like[-1].dtype)

    def output(trained, fixed, x):
        net: Any = eqx.combine(trained, fixed, rest)
        return net(x)

    flat = flattened(output, trained, fixed, row)
    num_trained = len(jax.tree.leaves(trained))
    moves = [n < num_trained for n in range(len(like))]
    found = find_sites(flat.jaxpr.jaxpr, moves)
    return RowNetwork(flat.jaxpr, flat.structure, found), is_concrete(flat.jaxpr.consts)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))
