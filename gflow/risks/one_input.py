r"""Exact squared risks of a shallow network with one input, in order: any measure on the line.

The units' kinks cut the line into cells on which N is affine. With the kinks sorted, slopes and
intercepts are running sums over the units, and so are, from both ends, the integrals over the
active sides that make up the generalized gradient. Everything takes O(W log W) time.

For a field g on the line (the residual r, or a tangent of N) let, with $t_i$ the kink of unit i,

$$A_i[g] = \int \sigma'(z_i)\, g \, d\mu, \qquad B_i[g] = \int \sigma'(z_i) (x - t_i)\, g \, d\mu.$$

Then $G_{b_i} = 2 s \langle v_i, A_i\rangle$, $G_{w_i} = 2 s \langle v_i, B_i + t_i A_i\rangle$,
$G_{v_i} = 2 s (w_i B_i + z_i(t_i) A_i)$ with r for g, and $G_c = 2 \int r d\mu$.
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
    Pair,
    add,
    exact_levels,
    joined,
    multiply,
    prefix_sums,
    two_product,
    two_sum,
    value,
)


class Units(eqx.Module):
    """The parameters of a `ShallowNet` with one input, the units along the last axis."""

    w: Float[Array, "1 width"]
    b: Float[Array, "1 width"]
    v: Float[Array, "out width"]
    c: Float[Array, "out 1"]
    slope: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    @property
    def rightward(self) -> Bool[Array, "1 width"]:
        """Whether the active side is the right one; both sides, from the left end on, for w = 0."""
        return (self.w > 0) | ((self.w == 0) & (self.b > 0))

    def kinks(self, first: Array, last: Array) -> Float[Array, "1 width"]:
        """t_i = −b_i/w_i moved into [first, last]; `first` for w_i = 0."""
        flat = self.w == 0
        t = jnp.where(flat, first, -self.b / jnp.where(flat, 1.0, self.w))
        return jnp.clip(t, first, last)


class Knots(NamedTuple):
    """Where cells begin: the measure's own knots first, then the units' kinks.

    Cells are made in the order of `keys`; x are the places.
    """

    keys: Float[Array, " knots"] | Int[Array, " knots"]
    x: Float[Array, "1 knots"]


class Cells(NamedTuple):
    """Integrals over each cell, with x from the cell's left end, and r p at that end.

    `m0`, `m1` and `m2` are the moments of the measure, `r0` and `r1` those of the residual.
    """

    squares: Float[Array, " knots"]
    r0: Float[Array, "out knots"]
    r1: Float[Array, "out knots"]
    m0: Float[Array, "1 knots"]
    m1: Float[Array, "1 knots"]
    m2: Float[Array, "1 knots"]
    edge: Float[Array, "out knots"]


class Measure(eqx.Module):
    """A measure on the line together with a target."""

    @abstractmethod
    def knots(self, units: Units) -> Knots:
        """The cells' left ends, in any order; the measure's own ones first."""

    @abstractmethod
    def cells(self, order: Array, knots: Knots, slopes: Pair, intercepts: Pair) -> Cells:
        """Integrals over the cells of sorted knots, on which N is slopes · x + intercepts."""


class State(NamedTuple):
    """What value, gradient and Hessian are made of: cells, and where the units are among them."""

    cells: Cells
    x: Float[Array, "1 knots"]
    order: Int[Array, " knots"]
    rank: Int[Array, " width"]
    t: Float[Array, "1 width"]
    offset: Float[Array, "1 width"]


def line_risk(measure: Measure, net: ShallowNet) -> Float[Array, ""]:
    """∫‖N − f‖² dμ, with derivatives in closed form: gradient, and Hessian products."""
    return _jitted_risk(measure, _as_units(net))


def _as_units(net: ShallowNet) -> Units:
    activation = net.activation
    if not isinstance(activation, PiecewiseLinear):
        got = Described(f"activation {activation.name}")
        raise ArgumentError("net", got, "ReLU, leaky ReLU or the identity")
    out = 1 if net.out_size == "scalar" else net.out_size
    return Units(
        w=net.w.T,
        b=jnp.zeros_like(net.w.T) if net.b is None else net.b[None],
        v=net.v.reshape(net.width, out).T,
        c=jnp.zeros((out, 1), net.w.dtype) if net.c is None else net.c.reshape(out, 1),
        slope=activation.negative_slope,
        scale=net.output_scale,
    )


@eqx.filter_jit
def _jitted_risk(measure: Measure, units: Units) -> Float[Array, ""]:
    return _risk(measure, units)


@eqx.filter_custom_jvp
def _risk(measure: Measure, units: Units) -> Float[Array, ""]:
    return jnp.sum(_state(measure, units).cells.squares)


@_risk.def_jvp
def _risk_jvp(primals, tangents):
    measure, units = primals
    risk, gradient = _risk_and_gradient(measure, units)
    return risk, _dot(gradient, _tangent(tangents, units))


@eqx.filter_custom_jvp
def _risk_and_gradient(measure: Measure, units: Units) -> tuple[Float[Array, ""], Units]:
    state = _state(measure, units)
    return jnp.sum(state.cells.squares), _gradient(units, state)


@_risk_and_gradient.def_jvp
def _risk_and_gradient_jvp(primals, tangents):
    measure, units = primals
    tangent = _tangent(tangents, units)
    state = _state(measure, units)
    gradient = _gradient(units, state)
    primals_out = jnp.sum(state.cells.squares), gradient
    return primals_out, (_dot(gradient, tangent), _hessian_product(units, state, tangent))


def _tangent(tangents: tuple[Any, Any], units: Units) -> Units:
    """The tangent of the units, zeros where there is none."""
    of_measure, of_units = tangents
    if jax.tree.leaves(of_measure):
        raise NotImplementedError(
            "this risk has no derivatives in the data, the target or the density; "
            "jnp.mean(risk.losses(net)) has, for data of equal weights"
        )
    fields = ("w", "b", "v", "c")
    given = {n: None if of_units is None else getattr(of_units, n) for n in fields}
    return eqx.tree_at(
        lambda u: [getattr(u, n) for n in fields],
        units,
        [jnp.zeros_like(getattr(units, n)) if given[n] is None else given[n] for n in fields],
    )


def _dot(a: Units, b: Units) -> Float[Array, ""]:
    parts = [jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))]
    return jnp.sum(jnp.stack(parts))


@eqx.filter_custom_jvp
def _state(measure: Measure, units: Units) -> State:
    knots = measure.knots(units)
    order = sorting_order(knots.keys)
    own = order.shape[0] - units.w.shape[1]
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))[own:]
    x = knots.x[:, order]
    slopes, intercepts = _affine_pieces(units, order)
    t = knots.x[:, own:]
    offset = value(add(two_product(units.w, t), units.b))
    cells = _cells(measure, order, Knots(knots.keys[order], x), slopes, intercepts)
    return State(cells, x, order, rank, t, offset)


@_state.def_jvp
def _state_jvp(primals, tangents):
    raise NotImplementedError("third derivatives of an exact risk are not available")


def _cells(measure: Measure, *of_net: Any) -> Cells:
    """The measure's cells, NaN for a network that is not finite.

    The branch is there for speed. XLA would compute the cells anew for each of their uses: that
    takes twice as long to compile, and for data five times as long to run with 10,000 units.
    """
    *_, intercepts = of_net
    cells = lambda *of_net: measure.cells(*of_net)
    shapes = jax.eval_shape(cells, *of_net)
    unknown = lambda *_: jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), shapes)
    return jax.lax.cond(jnp.isfinite(intercepts.hi[0, 0]), cells, unknown, *of_net)


def sorting_order(keys: Array) -> Int[Array, " n"]:
    """The permutation that sorts the keys, the first first among equals.

    64-bit keys are sorted as whole numbers with the place in the last bits, in two rounds where the
    bits do not suffice. On the CPU, XLA sorts so three times faster than pairs of key and place.
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


def _affine_pieces(units: Units, order: Int[Array, " knots"]) -> tuple[Pair, Pair]:
    """Slope and intercept of N on each cell, as pairs: their sums and products do not round."""
    v = two_product(units.v, jnp.full_like(units.v, units.scale))
    of_units = multiply(v, units.w), multiply(v, units.b)
    lines = Pair(*(jnp.concatenate(parts) for parts in zip(*of_units)))
    levels = exact_levels(lines)
    pieces = joined(*(_over_active(units, order, level) for level in levels))
    if units.slope != 0.0:
        slope = jnp.full_like(pieces.hi, units.slope)
        everywhere = joined(*(jnp.sum(level, axis=-1, keepdims=True) for level in levels))
        everywhere = Pair(*(jnp.broadcast_to(a, slope.shape) for a in everywhere))
        rest = two_sum(jnp.ones_like(slope), -slope)
        pieces = add(multiply(pieces, rest), multiply(everywhere, slope))
    outputs = units.c.shape[0]
    return pieces.part(slice(outputs)), add(pieces.part(slice(outputs, None)), units.c)


def _over_active(
    units: Units, order: Int[Array, " knots"], lines: Float[Array, "rows width"]
) -> Float[Array, "rows knots"]:
    """Sums over the units that are active on each cell."""
    own = order.shape[0] - lines.shape[1]
    at_left_end = jnp.sum(jnp.where(units.rightward, 0.0, lines), axis=1, keepdims=True)
    steps = jnp.pad(jnp.where(units.rightward, lines, -lines), ((0, 0), (own, 0)))
    return at_left_end + prefix_sums(steps[:, order])


class _Sides(NamedTuple):
    """A_i and B_i of a field for each unit, and the field's integral."""

    a: Float[Array, "out width"]
    b: Float[Array, "out width"]
    total: Float[Array, "out 1"]


def _sides(units: Units, state: State, g0: Array, g1: Array) -> _Sides:
    """From the field's moments in each cell. Each side's sums begin at that side's end, so that
    their rounding is that of the integral over the active side."""
    lengths = jnp.diff(state.x, append=state.x[:, -1:])
    both = prefix_sums(jnp.stack([g0, jnp.flip(g0, -1)]))
    left, right = both[0], jnp.flip(both[1], -1)
    beyond = jnp.pad(right[:, 1:], ((0, 0), (0, 1)))
    terms = jnp.stack([g1 - lengths * left, jnp.flip(g1 + lengths * beyond, -1)])
    both = prefix_sums(terms)
    left_b, right_b = both[0], jnp.flip(both[1], -1)
    before = lambda sums: jnp.pad(sums, ((0, 0), (1, 0)))[:, state.rank]
    from_kink = lambda sums: sums[:, state.rank]
    a_left, b_left = before(left), before(left_b)
    a_right, b_right = from_kink(right), from_kink(right_b)
    a = jnp.where(units.rightward, a_right, a_left)
    b = jnp.where(units.rightward, b_right, b_left)
    if units.slope != 0.0:
        a = a + units.slope * jnp.where(units.rightward, a_left, a_right)
        b = b + units.slope * jnp.where(units.rightward, b_left, b_right)
    return _Sides(a, b, left[:, -1:])


def _gradient(units: Units, state: State) -> Units:
    """G(θ), with σ' of the inactive side at kinks."""
    a, b, total = _sides(units, state, state.cells.r0, state.cells.r1)
    v = units.scale * units.v
    return _replaced(
        units,
        w=2 * jnp.sum(v * (b + state.t * a), axis=0, keepdims=True),
        b=2 * jnp.sum(v * a, axis=0, keepdims=True),
        v=2 * units.scale * (units.w * b + state.offset * a),
        c=2 * total,
    )


def _hessian_product(units: Units, state: State, d: Units) -> Units:
    """The derivative of G along d, linear in d; a kink that moves takes r p at the kink along."""
    cells, t, scale = state.cells, state.t, units.scale
    v, dv = scale * units.v, scale * d.v
    # The tangent of N is affine on each cell, with jumps.
    lines = jnp.concatenate([dv * units.w + v * d.w, dv * units.b + v * d.b])
    pieces = _over_active(units, state.order, lines)
    if units.slope != 0.0:
        everywhere = jnp.sum(lines, axis=1, keepdims=True)
        pieces = (1 - units.slope) * pieces + units.slope * everywhere
    slopes, intercepts = jnp.split(pieces, 2)
    at_left = intercepts + d.c + slopes * state.x
    p0 = at_left * cells.m0 + slopes * cells.m1
    p1 = at_left * cells.m1 + slopes * cells.m2
    a, b, _ = _sides(units, state, cells.r0, cells.r1)
    da, db, dtotal = _sides(units, state, p0, p1)
    # z_i' at the kink over |w_i|: how far the kink moves into the inactive side.
    inside = (units.w != 0) & (t > state.x[:, :1]) & (t < state.x[:, -1:])
    moves = jnp.where(inside, 1 - units.slope, 0.0) / jnp.abs(jnp.where(inside, units.w, 1.0))
    with_edge = da + moves * (d.w * t + d.b) * cells.edge[:, state.rank]
    active, dactive = b + t * a, db + t * with_edge
    return _replaced(
        units,
        w=2 * jnp.sum(dv * active + v * dactive, axis=0, keepdims=True),
        b=2 * jnp.sum(dv * a + v * with_edge, axis=0, keepdims=True),
        v=2 * scale * (units.w * db + state.offset * da + d.w * active + d.b * a),
        c=2 * dtotal,
    )


def _replaced(units: Units, **fields: Array) -> Units:
    return eqx.tree_at(lambda u: [getattr(u, n) for n in fields], units, list(fields.values()))
