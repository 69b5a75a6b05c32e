r"""Exact squared risks of a shallow network with one input, for any measure on the real line.

The units' kinks cut the inputs into cells on which N is affine. With the kinks sorted, the slopes
and intercepts of N are running sums over the units. The generalized gradient consists of integrals
over active sides, which are running sums from both ends. Everything takes O(W log W) time.

For a function g of the input (the residual r, or a tangent of N) and the kink $t_i$ of unit i, let

$$A_i[g] = \int \sigma'(z_i)\, g \, d\mu, \qquad B_i[g] = \int \sigma'(z_i) (x - t_i)\, g \, d\mu.$$

Then $G_{b_i} = 2 s \langle v_i, A_i\rangle$, $G_{w_i} = 2 s \langle v_i, B_i + t_i A_i\rangle$,
$G_{v_i} = 2 s (w_i B_i + z_i(t_i) A_i)$ with g = r, and $G_c = 2 \int r d\mu$.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.activations import PiecewiseLinear
from gflow.arguments import ArgumentError, Described
from gflow.networks import ShallowNet
from gflow.risks.compensated import (
    FloatPair,
    add,
    exact_levels,
    joined,
    multiply,
    prefix_sums,
    two_product,
    two_sum,
    value,
)


class OneInputUnits(eqx.Module):
    """The parameters of a `ShallowNet` with one input, with the units along the last axis."""

    w: Float[Array, "1 width"]
    b: Float[Array, "1 width"]
    v: Float[Array, "out width"]
    c: Float[Array, "out 1"]
    slope: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    @property
    def rightward(self) -> Bool[Array, "1 width"]:
        """Whether the unit is active to the right of its kink, or everywhere (w = 0 and b > 0)."""
        return (self.w > 0) | ((self.w == 0) & (self.b > 0))

    def kinks(self, first: Array, last: Array) -> Float[Array, "1 width"]:
        """t_i = −b_i/w_i, clipped to [first, last]; `first` for w_i = 0."""
        flat = self.w == 0
        t = jnp.where(flat, first, -self.b / jnp.where(flat, 1.0, self.w))
        return jnp.clip(t, first, last)


class Knots(NamedTuple):
    """The left ends of cells: the measure's own knots first, then the units' kinks.

    - `keys`: their order; `x`: their places.
    """

    keys: Float[Array, " knots"] | Int[Array, " knots"]
    x: Float[Array, "1 knots"]


class Cells(NamedTuple):
    """Integrals over each cell, with x measured from the cell's left end.

    - `squares`: of the squared residual.
    - `r0`, `r1`: the moments of the residual r; `m0`, `m1`, `m2`: those of the measure.
    - `left_end`: r times the density p, at the cell's left end.
    """

    squares: Float[Array, " knots"]
    r0: Float[Array, "out knots"]
    r1: Float[Array, "out knots"]
    m0: Float[Array, "1 knots"]
    m1: Float[Array, "1 knots"]
    m2: Float[Array, "1 knots"]
    left_end: Float[Array, "out knots"]


class Measure(eqx.Module):
    """A measure on the real line together with a target."""

    @abstractmethod
    def knots(self, units: OneInputUnits) -> Knots:
        """The cells' left ends, the measure's own ones first, otherwise in any order."""

    @abstractmethod
    def cells(self, order: Array, knots: Knots, slopes: FloatPair, intercepts: FloatPair) -> Cells:
        """Integrals over the cells of sorted knots, in which N is slopes · x + intercepts."""


class Partition(NamedTuple):
    """The inputs cut into cells, from which value, gradient and Hessian are computed.

    - `x`: the left ends of the cells; `order`: the permutation that sorted them.
    - `rank`: for each unit, the cell to the right of its kink; `t`: the kink; `offset`: z_i(t_i).
    """

    cells: Cells
    x: Float[Array, "1 knots"]
    order: Int[Array, " knots"]
    rank: Int[Array, " width"]
    t: Float[Array, "1 width"]
    offset: Float[Array, "1 width"]


def one_input_risk(measure: Measure, net: ShallowNet) -> Float[Array, ""]:
    """∫‖N − f‖² dμ, with gradient and Hessian products in closed form."""
    return _jitted_risk(measure, _as_units(net))


def _as_units(net: ShallowNet) -> OneInputUnits:
    activation = net.activation
    if not isinstance(activation, PiecewiseLinear):
        got = Described(f"activation {activation.name}")
        raise ArgumentError("net", got, "ReLU, leaky ReLU or the identity")
    out = 1 if net.out_size == "scalar" else net.out_size
    return OneInputUnits(
        w=net.w.T,
        b=jnp.zeros_like(net.w.T) if net.b is None else net.b[None],
        v=net.v.reshape(net.width, out).T,
        c=jnp.zeros((out, 1), net.w.dtype) if net.c is None else net.c.reshape(out, 1),
        slope=activation.negative_slope,
        scale=net.output_scale,
    )


@eqx.filter_jit
def _jitted_risk(measure: Measure, units: OneInputUnits) -> Float[Array, ""]:
    return _risk(measure, units)


@eqx.filter_custom_jvp
def _risk(measure: Measure, units: OneInputUnits) -> Float[Array, ""]:
    return jnp.sum(_partition(measure, units).cells.squares)


@_risk.def_jvp
def _risk_jvp(primals, tangents):
    measure, units = primals
    risk, gradient = _risk_and_gradient(measure, units)
    return risk, _dot(gradient, _tangent(tangents, units))


@eqx.filter_custom_jvp
def _risk_and_gradient(
    measure: Measure, units: OneInputUnits
) -> tuple[Float[Array, ""], OneInputUnits]:
    partition = _partition(measure, units)
    return jnp.sum(partition.cells.squares), _gradient(units, partition)


@_risk_and_gradient.def_jvp
def _risk_and_gradient_jvp(primals, tangents):
    measure, units = primals
    tangent = _tangent(tangents, units)
    partition = _partition(measure, units)
    gradient = _gradient(units, partition)
    primals_out = jnp.sum(partition.cells.squares), gradient
    return primals_out, (_dot(gradient, tangent), _hessian_product(units, partition, tangent))


def _tangent(tangents: tuple[Any, Any], units: OneInputUnits) -> OneInputUnits:
    """The tangent of the units, with zeros where it is absent."""
    of_measure, of_units = tangents
    if jax.tree.leaves(of_measure):
        raise NotImplementedError(
            "this risk has no derivatives in the data, the target or the density; "
            "jnp.mean(risk.losses(net)) has, for data with equal weights"
        )
    fields = ("w", "b", "v", "c")
    given = {n: None if of_units is None else getattr(of_units, n) for n in fields}
    return eqx.tree_at(
        lambda u: [getattr(u, n) for n in fields],
        units,
        [jnp.zeros_like(getattr(units, n)) if given[n] is None else given[n] for n in fields],
    )


def _dot(a: OneInputUnits, b: OneInputUnits) -> Float[Array, ""]:
    parts = [jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))]
    return jnp.sum(jnp.stack(parts))


@eqx.filter_custom_jvp
def _partition(measure: Measure, units: OneInputUnits) -> Partition:
    knots = measure.knots(units)
    order = sorting_order(knots.keys)
    own = order.shape[0] - units.w.shape[1]
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))[own:]
    x = knots.x[:, order]
    slopes, intercepts = _affine_functions(units, order)
    t = knots.x[:, own:]
    offset = value(add(two_product(units.w, t), units.b))
    cells = _cells(measure, order, Knots(knots.keys[order], x), slopes, intercepts)
    return Partition(cells, x, order, rank, t, offset)


@_partition.def_jvp
def _partition_jvp(primals, tangents):
    raise NotImplementedError("third derivatives of an exact risk are not available")


def _cells(measure: Measure, *of_net: Any) -> Cells:
    """The measure's cells, NaN for a network that is not finite.

    The branch is for speed. Without it XLA computes the cells anew for each of their uses, which
    takes twice as long to compile and, for data and 10,000 units, five times as long to run.
    """
    *_, intercepts = of_net
    cells = lambda *of_net: measure.cells(*of_net)
    shapes = jax.eval_shape(cells, *of_net)
    unknown = lambda *_: jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), shapes)
    return jax.lax.cond(jnp.isfinite(intercepts.hi[0, 0]), cells, unknown, *of_net)


def sorting_order(keys: Array) -> Int[Array, " n"]:
    """The stable permutation that sorts the keys, as `jnp.argsort`.

    64-bit keys are sorted as whole numbers with the index in the last bits, in two rounds where the
    bits do not suffice. On CPUs this is three times faster than `jnp.argsort`, whose sort by XLA
    compares pairs of key and index.
    """
    n = keys.shape[0]
    if keys.dtype.itemsize < 8 or n < 2:
        return jnp.argsort(keys)
    bits = (n - 1).bit_length()
    place, last = jnp.arange(n), 2**bits - 1
    if jnp.issubdtype(keys.dtype, jnp.integer):
        return jnp.sort((keys << bits) | place) & last
    whole = jax.lax.bitcast_convert_type(keys + 0.0, jnp.int64)
    whole = jnp.where(whole < 0, whole ^ (2**63 - 1), whole)
    upper, lower = whole >> (63 - bits), whole & (2 ** (63 - bits) - 1)
    first = jnp.sort((lower << bits) | place) & last
    return first[jnp.sort((upper[first] << bits) | place) & last]


def _affine_functions(
    units: OneInputUnits, order: Int[Array, " knots"]
) -> tuple[FloatPair, FloatPair]:
    """Slope and intercept of N in each cell, as pairs: their sums and products do not round."""
    v = two_product(units.v, jnp.full_like(units.v, units.scale))
    of_units = multiply(v, units.w), multiply(v, units.b)
    affine = FloatPair(*(jnp.concatenate(parts) for parts in zip(*of_units)))
    levels = exact_levels(affine)
    pieces = joined(*(_over_active(units, order, level) for level in levels))
    if units.slope != 0.0:
        slope = jnp.full_like(pieces.hi, units.slope)
        everywhere = joined(*(jnp.sum(level, axis=-1, keepdims=True) for level in levels))
        everywhere = FloatPair(*(jnp.broadcast_to(a, slope.shape) for a in everywhere))
        rest = two_sum(jnp.ones_like(slope), -slope)
        pieces = add(multiply(pieces, rest), multiply(everywhere, slope))
    outputs = units.c.shape[0]
    return pieces.part(slice(outputs)), add(pieces.part(slice(outputs, None)), units.c)


def _over_active(
    units: OneInputUnits, order: Int[Array, " knots"], affine: Float[Array, "rows width"]
) -> Float[Array, "rows knots"]:
    """Sums over the units that are active in each cell; `affine` holds a term for each unit."""
    own = order.shape[0] - affine.shape[1]
    at_left_end = jnp.sum(jnp.where(units.rightward, 0.0, affine), axis=1, keepdims=True)
    steps = jnp.pad(jnp.where(units.rightward, affine, -affine), ((0, 0), (own, 0)))
    return at_left_end + prefix_sums(steps[:, order])


class _Sides(NamedTuple):
    """A_i and B_i of a function for each unit, and the integral of the function."""

    a: Float[Array, "out width"]
    b: Float[Array, "out width"]
    total: Float[Array, "out 1"]


def _sides(units: OneInputUnits, partition: Partition, g0: Array, g1: Array) -> _Sides:
    """A_i and B_i of g from its moments `g0` and `g1` in each cell.

    The sums of each side begin at that side's end, so that their rounding is relative to the
    integral over the active side.
    """
    lengths = jnp.diff(partition.x, append=partition.x[:, -1:])
    both = prefix_sums(jnp.stack([g0, jnp.flip(g0, -1)]))
    left, right = both[0], jnp.flip(both[1], -1)
    beyond = jnp.pad(right[:, 1:], ((0, 0), (0, 1)))
    terms = jnp.stack([g1 - lengths * left, jnp.flip(g1 + lengths * beyond, -1)])
    both = prefix_sums(terms)
    left_b, right_b = both[0], jnp.flip(both[1], -1)
    before = lambda sums: jnp.pad(sums, ((0, 0), (1, 0)))[:, partition.rank]
    from_kink = lambda sums: sums[:, partition.rank]
    a_left, b_left = before(left), before(left_b)
    a_right, b_right = from_kink(right), from_kink(right_b)
    a = jnp.where(units.rightward, a_right, a_left)
    b = jnp.where(units.rightward, b_right, b_left)
    if units.slope != 0.0:
        a = a + units.slope * jnp.where(units.rightward, a_left, a_right)
        b = b + units.slope * jnp.where(units.rightward, b_left, b_right)
    return _Sides(a, b, left[:, -1:])


def _gradient(units: OneInputUnits, partition: Partition) -> OneInputUnits:
    """G(θ), with σ'(0) that of the inactive side."""
    a, b, total = _sides(units, partition, partition.cells.r0, partition.cells.r1)
    v = units.scale * units.v
    return _replaced(
        units,
        w=2 * jnp.sum(v * (b + partition.t * a), axis=0, keepdims=True),
        b=2 * jnp.sum(v * a, axis=0, keepdims=True),
        v=2 * units.scale * (units.w * b + partition.offset * a),
        c=2 * total,
    )


def _hessian_product(units: OneInputUnits, partition: Partition, d: OneInputUnits) -> OneInputUnits:
    """The derivative of G along d, including r p times the velocity of each moving kink."""
    cells, t, scale = partition.cells, partition.t, units.scale
    v, dv = scale * units.v, scale * d.v
    # The tangent of N is affine in each cell, with jumps between them.
    affine = jnp.concatenate([dv * units.w + v * d.w, dv * units.b + v * d.b])
    pieces = _over_active(units, partition.order, affine)
    if units.slope != 0.0:
        everywhere = jnp.sum(affine, axis=1, keepdims=True)
        pieces = (1 - units.slope) * pieces + units.slope * everywhere
    slopes, intercepts = jnp.split(pieces, 2)
    at_left = intercepts + d.c + slopes * partition.x
    p0 = at_left * cells.m0 + slopes * cells.m1
    p1 = at_left * cells.m1 + slopes * cells.m2
    a, b, _ = _sides(units, partition, cells.r0, cells.r1)
    da, db, dtotal = _sides(units, partition, p0, p1)
    # z_i' at the kink over |w_i| is the velocity of the kink towards the inactive side.
    inside = (units.w != 0) & (t > partition.x[:, :1]) & (t < partition.x[:, -1:])
    moves = jnp.where(inside, 1 - units.slope, 0.0) / jnp.abs(jnp.where(inside, units.w, 1.0))
    with_kink = da + moves * (d.w * t + d.b) * cells.left_end[:, partition.rank]
    active, dactive = b + t * a, db + t * with_kink
    return _replaced(
        units,
        w=2 * jnp.sum(dv * active + v * dactive, axis=0, keepdims=True),
        b=2 * jnp.sum(dv * a + v * with_kink, axis=0, keepdims=True),
        v=2 * scale * (units.w * db + partition.offset * da + d.w * active + d.b * a),
        c=2 * dtotal,
    )


def _replaced(units: OneInputUnits, **fields: Array) -> OneInputUnits:
    return eqx.tree_at(lambda u: [getattr(u, n) for n in fields], units, list(fields.values()))
