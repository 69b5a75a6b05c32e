"""Moments of pairs of hidden units under X ~ N(0, I), with derivatives that are closed forms.

A unit is z = ⟨u, X⟩ + b of size σ = ‖u‖, direction û = u/σ and offset h = b/σ; of a second one,
z' = ⟨v, X⟩ + b', they are τ, v̂, k. ρ = ⟨û, v̂⟩ and q = √(1 − ρ²).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.risks.bivariate_normal import conditional, density, distribution, orthant


class Slopes(NamedTuple):
    """What the derivatives of K = E[f(z) f(z')] are made of, for all pairs:

    ∂K/∂u = near·u + both·v and ∂K/∂b = lift, ∂K/∂v = near2·v + both·u and ∂K/∂b' = lift2, with
    both = E[f'(z) f'(z')], near = E[f''(z) f(z')] and lift = E[f'(z) f(z')] (Stein's lemma).
    The lifts are None without biases.
    """

    both: Float[Array, "first second"]
    near: Float[Array, "first second"]
    near2: Float[Array, "first second"]
    lift: Float[Array, "first second"] | None
    lift2: Float[Array, "first second"] | None

    def along(self, primals: tuple, tangents: tuple) -> Float[Array, "first second"]:
        """The derivative of K along tangents of (u, b, v, b')."""
        (u, _, v, _), (du, db, dv, db2) = primals, tangents
        moved = (
            self.near * jnp.sum(u * du, axis=1)[:, None]
            + self.near2 * jnp.sum(v * dv, axis=1)[None, :]
            + self.both * (du @ v.T + u @ dv.T)
        )
        if self.lift is None or self.lift2 is None:
            return moved
        return moved + self.lift * db[:, None] + self.lift2 * db2[None, :]


def _cosines(d1: Array, d2: Array, noise: Array | None = None) -> tuple[Array, Array]:
    """1 − ρ and 1 + ρ for ρ = ⟨d1, d2⟩ of all pairs of rows, also right where they are tiny.

    A row's ‖d‖² and noise are together 1.
    """
    sign = jnp.where(d1 @ d2.T < 0, -1.0, 1.0)
    # ½‖d1 ∓ d2‖², one feature at a time: all at once can take d times the memory of the result.
    add = lambda total, ends: (total + (ends[0][:, None] - sign * ends[1][None, :]) ** 2, None)
    small = jax.lax.scan(add, jnp.zeros_like(sign), (d1.T, d2.T))[0] / 2
    small = small if noise is None else small + noise
    return jnp.where(sign < 0, 2 - small, small), jnp.where(sign < 0, small, 2 - small)


def erf_means(
    w: Float[Array, "units in"], b: Float[Array, " units"] | None
) -> Float[Array, " units"]:
    """E erf(z) = erf(b/√(1 + 2σ²))."""
    if b is None:
        return jnp.zeros_like(w[:, 0])
    return jax.scipy.special.erf(b / jnp.sqrt(1 + 2 * jnp.sum(w**2, axis=1)))


@jax.custom_jvp
def erf_pairs(
    u: Float[Array, "first in"],
    b: Float[Array, " first"] | None,
    v: Float[Array, "second in"],
    b2: Float[Array, " second"] | None,
) -> Float[Array, "first second"]:
    """E[erf(z) erf(z')] for all pairs; b and b2 are both None, or neither.

    It is (2/π) arcsin ρ without biases (Williams, Neural Computation 10, 1998), and with them
    4Φ₂(h, k; ρ) − 2Φ(h) − 2Φ(k) + 1, where for erf ρ = 2⟨u, v⟩/√((1 + 2σ²)(1 + 2τ²)) and
    h = √2 b/√(1 + 2σ²): erf is the mean of sign(z + ξ/√2) over independent noise ξ ~ N(0, 1).
    """
    (h, k), _, minus, plus = _erf_geometry(u, b, v, b2)
    if b is None:
        return 1 - 4 / math.pi * jnp.arctan2(jnp.sqrt(minus), jnp.sqrt(plus))
    return 4 * orthant(h, k, minus, plus) - 2 * (distribution(h) + distribution(k)) + 1


@erf_pairs.defjvp
def _erf_pairs_jvp(primals, tangents):
    return erf_pairs(*primals), _erf_slopes(*primals).along(primals, tangents)


def _erf_slopes(u, b, v, b2) -> Slopes:
    (h, k), (noise, noise2), minus, plus = _erf_geometry(u, b, v, b2)
    r, r2 = conditional(h, k, minus, plus), conditional(k, h, minus, plus)
    across = 4 * density(h) * density(r) / jnp.sqrt(minus * plus)
    aside = 4 * density(h) * (2 * distribution(r) - 1)
    aside2 = 4 * density(k) * (2 * distribution(r2) - 1)
    rho = (plus - minus) / 2
    return Slopes(
        both=2 * jnp.sqrt(noise * noise2) * across,
        near=-noise * (h * aside + 2 * rho * across),
        near2=-noise2 * (k * aside2 + 2 * rho * across),
        lift=None if b is None else jnp.sqrt(noise / 2) * aside,
        lift2=None if b is None else jnp.sqrt(noise2 / 2) * aside2,
    )


def _erf_geometry(u, b, v, b2):
    """Offsets, noises 1/(1 + 2σ²), and 1 ∓ ρ, which the noise keeps above 0."""
    noise, noise2 = (1 / (1 + 2 * jnp.sum(w**2, axis=1)) for w in (u, v))
    d1, d2 = u * jnp.sqrt(2 * noise)[:, None], v * jnp.sqrt(2 * noise2)[:, None]
    h = jnp.zeros_like(noise) if b is None else b * jnp.sqrt(2 * noise)
    k = jnp.zeros_like(noise2) if b2 is None else b2 * jnp.sqrt(2 * noise2)
    noise, noise2 = noise[:, None], noise2[None, :]
    minus, plus = _cosines(d1, d2, (noise + noise2) / 2)
    return (h[:, None], k[None, :]), (noise, noise2), minus, plus


# An offset so far out that the unit is always active or never: Φ is 1 or 0 there, φ is 0.
_FAR = 100.0


class Units(NamedTuple):
    """Hidden units by direction, size and offset; a direction is 0 where the size is."""

    size: Float[Array, " units"]
    direction: Float[Array, "units in"]
    offset: Float[Array, " units"]


def units(w: Float[Array, "units in"], b: Float[Array, " units"] | None) -> Units:
    # Scaled first, so that the squares of tiny and huge weights do not leave the range of floats.
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(w), axis=1))
    top = jnp.where(top > 0, top, 1.0)
    scaled = w / top[:, None]
    squares = jnp.sum(scaled**2, axis=1)
    moving = squares > 0
    norm = jnp.sqrt(jnp.where(moving, squares, 1.0))
    size = jnp.where(moving, top * norm, 0.0)
    # Of a unit without weights z = b: it is active if b > 0, and with b = 0 it is not.
    bias = jnp.zeros_like(top) if b is None else b
    offset = jnp.where(
        moving, bias / jnp.where(moving, size, 1.0), jnp.where(bias > 0, 1, -1) * _FAR
    )
    return Units(size, scaled / norm[:, None], jnp.clip(offset, -_FAR, _FAR))


def relu_means(
    w: Float[Array, "units in"], b: Float[Array, " units"] | None
) -> tuple[Float[Array, " units"], Float[Array, "units in"]]:
    """E relu(z) = bΦ(h) + σφ(h) and E[relu(z) X] = Φ(h) u."""
    unit = units(w, b)
    active = distribution(unit.offset)
    mean = unit.size * density(unit.offset)
    return mean if b is None else mean + b * active, active[:, None] * w


class _Side(NamedTuple):
    """One unit of each pair: (first, 1) or (1, second), but for what is on its line z = 0.

    `inverse` is 1/σ, or 0 if z does not change sign; `density` is φ(h). On the line z = 0, z' has
    mean μ = b' − ρτh and deviation τq: `share` is Φ and `edge` φ of μ/(τq), `mean` E relu(z').
    """

    size: Array
    inverse: Array
    bias: Array
    offset: Array
    density: Array
    share: Array
    edge: Array
    mean: Array


class _Pairs(NamedTuple):
    here: _Side
    there: _Side
    both: Array
    rho: Array
    q: Array

    def exchanged(self) -> "_Pairs":
        return self._replace(here=self.there, there=self.here)


def _pairs(one: Units, two: Units, b: Array | None, b2: Array | None) -> _Pairs:
    minus, plus = _cosines(one.direction, two.direction)
    rho, q = (plus - minus) / 2, jnp.sqrt(minus * plus)
    h, k = one.offset[:, None], two.offset[None, :]
    sigma, tau = one.size[:, None], two.size[None, :]
    if b is None or b2 is None:
        bias, bias2 = jnp.zeros_like(h), jnp.zeros_like(k)
        # The lines z = 0 and z' = 0 meet at the origin.
        angle = 2 * jnp.arctan2(jnp.sqrt(minus), jnp.sqrt(plus))
        both = jnp.where((h >= 0) & (k >= 0), 0.5 - angle / (2 * math.pi), 0.0)
        reach = reach2 = jnp.zeros_like(q)
    else:
        bias, bias2 = b[:, None], b2[None, :]
        both = orthant(h, k, minus, plus)
        reach, reach2 = conditional(h, k, minus, plus), conditional(k, h, minus, plus)
    here = _side(sigma, bias, h, reach, bias2 - rho * tau * h, q * tau)
    there = _side(tau, bias2, k, reach2, bias - rho * sigma * k, q * sigma)
    return _Pairs(here, there, both, rho, q)


def _side(size, bias, offset, reach, mu, deviation) -> _Side:
    share, edge = distribution(reach), density(reach)
    inverse = jnp.where(jnp.abs(offset) < _FAR, 1 / jnp.where(size > 0, size, 1.0), 0.0)
    mean = mu * share + deviation * edge
    return _Side(size, inverse, bias, offset, density(offset), share, edge, mean)


@jax.custom_jvp
def relu_pairs(
    u: Float[Array, "first in"],
    b: Float[Array, " first"] | None,
    v: Float[Array, "second in"],
    b2: Float[Array, " second"] | None,
) -> Float[Array, "first second"]:
    """K = E[relu(z) relu(z')] for all pairs; b and b2 are both None, or neither.

    Its first and second derivatives are closed forms, finite also at aligned, opposite and zero
    weights. relu'(0) = 0: a unit with u = 0 and b = 0 (or None) has no derivative.
    """
    return _value(relu_slopes(u, b, v, b2), u, b, v)


def _value(slopes: Slopes, u: Array, b: Array | None, v: Array) -> Array:
    # Euler's identity: K is positively homogeneous in (u, b).
    value = slopes.near * jnp.sum(u**2, axis=1)[:, None] + slopes.both * (u @ v.T)
    return value if b is None or slopes.lift is None else value + slopes.lift * b[:, None]


@relu_pairs.defjvp
def _relu_pairs_jvp(primals, tangents):
    u, b, v, b2 = primals
    slopes = relu_slopes(u, b, v, b2)
    return _value(slopes, u, b, v), slopes.along(primals, tangents)


@jax.custom_jvp
def relu_slopes(u: Array, b: Array | None, v: Array, b2: Array | None) -> Slopes:
    """Of `relu_pairs`: both = P(z > 0, z' > 0) = Φ₂(h, k; ρ), near = E[δ(z) relu(z')]."""
    return _slopes(_pairs(units(u, b), units(v, b2), b, b2), b is not None)


def _slopes(p: _Pairs, biased: bool) -> Slopes:
    p2 = p.exchanged()
    lifts = (_lift(p), _lift(p2)) if biased else (None, None)
    return Slopes(p.both, _near(p), _near(p2), *lifts)


def _near(p: _Pairs) -> Array:
    return p.here.density * p.here.mean * p.here.inverse


def _lift(p: _Pairs) -> Array:
    lines = p.there.density * p.there.share + p.rho * p.here.density * p.here.share
    return p.there.bias * p.both + p.there.size * lines


class _Move(NamedTuple):
    """Tangents of one unit of each pair; `product` is that of ⟨û, v⟩, û the direction of it."""

    size: Array
    bias: Array
    offset: Array
    product: Array


class _Moves(NamedTuple):
    here: _Move
    there: _Move
    # Minus the tangent of the angle.
    turn: Array

    def exchanged(self) -> "_Moves":
        return self._replace(here=self.there, there=self.here)


def _moves(p: _Pairs, one: Units, two: Units, du, db, dv, db2) -> _Moves:
    size = jnp.sum(one.direction * du, axis=1)[:, None]
    size2 = jnp.sum(two.direction * dv, axis=1)[None, :]
    ahead, ahead2 = du @ two.direction.T, one.direction @ dv.T
    towards = (ahead - p.rho * size) * p.here.inverse
    towards2 = (ahead2 - p.rho * size2) * p.there.inverse
    # Near aligned units this divides a rounding error by q, but where slopes are put together to a
    # derivative it is multiplied by q again; for aligned ones any turn will do.
    lines = (p.here.inverse > 0) & (p.there.inverse > 0) & (p.q > 0)
    turn = jnp.where(lines, (towards + towards2) / jnp.where(p.q > 0, p.q, 1.0), 0.0)
    here = _move(p.here, size, db, 1, ahead2 + p.there.size * towards)
    there = _move(p.there, size2, db2, 0, ahead + p.here.size * towards2)
    return _Moves(here, there, turn)


def _move(side: _Side, size: Array, bias: Array | None, axis: int, product: Array) -> _Move:
    if bias is None:
        return _Move(size, jnp.zeros_like(size), jnp.zeros_like(size), product)
    bias = jnp.expand_dims(bias, axis)
    return _Move(size, bias, (bias - side.offset * size) * side.inverse, product)


@relu_slopes.defjvp
def _relu_slopes_jvp(primals, tangents):
    u, b, v, b2 = primals
    one, two = units(u, b), units(v, b2)
    p = _pairs(one, two, b, b2)
    d = _moves(p, one, two, *tangents)
    p2, d2 = p.exchanged(), d.exchanged()
    both = p.here.density * p.here.edge * d.turn
    if b is None:
        lifts = None, None
    else:
        both = both + _both_move(p.here, d.here) + _both_move(p.there, d.there)
        lifts = _lift_move(p, d), _lift_move(p2, d2)
    moved = Slopes(both, _near_move(p, d), _near_move(p2, d2), *lifts)
    return _slopes(p, b is not None), moved


def _both_move(side: _Side, move: _Move) -> Array:
    return side.density * side.share * move.offset


def _near_move(p: _Pairs, d: _Moves) -> Array:
    here, move, rho_tau = p.here, d.here, p.rho * p.there.size
    mu = d.there.bias - here.offset * move.product - rho_tau * move.offset
    mean = here.share * mu + here.edge * (p.q * d.there.size - rho_tau * d.turn)
    law = here.offset * move.offset + move.size * here.inverse
    return here.density * here.inverse * (mean - here.mean * law)


def _lift_move(p: _Pairs, d: _Moves) -> Array:
    here, there = p.here, p.there
    line = here.mean * d.here.offset + here.share * d.here.product
    lines = there.density * there.share * d.there.size + here.density * line
    return p.both * d.there.bias + lines
