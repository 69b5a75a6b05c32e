r"""The risk of one hidden layer on data, pattern by pattern.

Unit i has a kink at row n where its preactivation $z_{in} = \langle w_i, x_n\rangle + b_i$ is 0.
With the pattern of active pairs held fixed the risk is smooth. The fields of the two sides of a
kink differ only along its normal $m = \nabla_\theta z_{in}$, by $-(1-\alpha)\,
(\partial L/\partial a_{in})\, m$ with α the negative slope. If both point at the kink, the flow
slides along it, by Filippov's field, which is minus the minimal-norm element of the Clarke
subdifferential: all sliding pairs of a unit, with normals M, take the multipliers

$$\mu = -(M M^\top)^{-1} M f, \qquad \dot u = -(f + M^\top \mu),$$

where −f is the field of the unit's w and b from its other pairs. The weight of the active side is
$\lambda = (\mu/(\partial L/\partial a) - \alpha)/(1 - \alpha)$; sliding ends where it leaves
[0, 1].

Rows with parallel normals, such as x and −x without biases, can have one kink between them. It is
crossed, or slid along, by all of them at once: their jumps add up, and one of them stands for all
in the slots of the slides.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gflow.activations import PiecewiseLinear
from gflow.arguments import PyTree
from gflow.networks import ShallowNet
from gflow.nonsmooth.pairs import Pair, Pairs
from gflow.nonsmooth.pattern_risk import KinkResolution, Transition, UnitPlaces
from gflow.nonsmooth.shallow.hessian import field_jacobian
from gflow.nonsmooth.shallow.kink_geometry import NormalLines, by_normals
from gflow.nonsmooth.shallow.pattern import Evaluation, ShallowPattern, Slides
from gflow.nonsmooth.shallow.table_kinks import Inputs, table_kinks
from gflow.nonsmooth.shallow.transitions import transition
from gflow.nonsmooth.shallow.units import AbstractPairsOfUnits, free
from gflow.parameters import UNSCALED, ParameterLayout, TimeScales, unflat
from gflow.risks import EmpiricalRisk, Penalty, penalty_of, without_penalty
from gflow.rows import with_row

_MAX_SLIDES = 64
# Preactivations of the start within so many roundings count as 0.
_ROUNDINGS = 4


class Added(NamedTuple):
    """Which units, distinct rows and entries of θ were added, to pad shapes."""

    units: Bool[Array | np.ndarray, " units"]
    rows: Bool[Array | np.ndarray, " rows"]
    theta: Bool[Array | np.ndarray, " size"]


class ShallowPatternRisk(AbstractPairsOfUnits):
    """The empirical risk of a `ShallowNet` with piecewise linear activation, pattern by pattern.

    Rows that are equal have one kink: `rows` are the distinct ones, `group` says to which each
    datum belongs, `first_datum` which datum stands for each. `normals` are the rows' normals in the
    trained ones of (w_i, b_i), in the coordinates of the time scales. Preactivations are measured
    by the norms of their unit, at the start of a step, and of their row, in `sizes`. What was
    `added` takes no part; None if nothing was. A `penalty` adds its gradient to the field, and
    `moves_zero_units` says whether that of units with w = b = 0 may not vanish.
    """

    trained: PyTree
    frozen: PyTree
    rows: Float[Array, "rows in"]
    group: Int[Array, " data"] | None
    first_datum: Int[Array, " rows"]
    y: Array
    weights: Float[Array, " data"]
    normals: Float[Array, "rows dim"]
    sizes: Float[Array, " rows"]
    lines: NormalLines
    time_scales: TimeScales
    output_scale: Float[Array, ""]
    added: Added | None
    penalty: Penalty | None
    moves_zero_units: Bool[Array, ""] | None
    loss: Any = eqx.field(static=True)
    negative_slope: float = eqx.field(static=True)

    @classmethod
    def of(
        cls, risk: Any, trained: PyTree, frozen: PyTree, time_scales: TimeScales = UNSCALED
    ) -> "ShallowPatternRisk | None":
        """The pattern risk of a network and its data, or None where no kinks are known.

        That is where the risk is not the `EmpiricalRisk` of a `ShallowNet`, its activation is
        smooth, or neither w nor b is trained.
        """
        net, penalty, risk = eqx.combine(trained, frozen), penalty_of(risk), without_penalty(risk)
        if not isinstance(risk, EmpiricalRisk) or not isinstance(net, ShallowNet):
            return None
        activation = net.activation
        if not isinstance(activation, PiecewiseLinear) or not activation.kinked:
            return None
        if trained.w is None and trained.b is None:
            return None
        # The precision of the flow is that of the parameters.
        inputs = Inputs(trained.w is not None, trained.b is not None, net.b is not None)
        table = table_kinks(risk, net.w.dtype, inputs)
        return cls(
            trained=trained,
            frozen=frozen,
            rows=table.rows,
            group=table.group,
            first_datum=table.first_datum,
            y=table.y,
            weights=table.weights,
            normals=_by_phi(table.normals, trained, time_scales),
            sizes=table.sizes,
            lines=table.lines,
            time_scales=time_scales,
            output_scale=jax.device_put(np.asarray(net.output_scale, net.w.dtype)),
            added=None,
            penalty=penalty,
            moves_zero_units=None if penalty is None else penalty.moves_zero_units(net),
            loss=risk.loss,
            negative_slope=activation.negative_slope,
        )

    # ---- the interface to the loop ------------------------------------------------------------

    def start(self, theta: Float[Array, " size"]) -> ShallowPattern:
        active = self.z(self.net(theta)) > 0
        dim = self.normals.shape[1]
        slots = min(dim, self.rows.shape[0], _MAX_SLIDES)
        pattern = ShallowPattern.without_slides(active, dim, slots, theta.dtype)
        if self.added is None:
            return pattern
        sliding = self.added.units[:, None] | self.added.rows[None, :]
        return eqx.tree_at(lambda p: p.sliding, pattern, sliding)

    def repels(self, theta: Float[Array, " size"], pattern: ShallowPattern) -> Bool[Array, ""]:
        now = self.evaluate(theta, pattern)
        size = self.scales(theta, pattern)[:, None] * self.sizes[None, :]
        on_kink = jnp.abs(now.z) <= _ROUNDINGS * jnp.finfo(now.z.dtype).eps * size
        here = self.velocity(now) @ self.normals.T
        square = jnp.sum(self.normals**2, axis=1)
        turned = jax.vmap(self.turns)(now.q, pattern.active, on_kink)
        on_active, on_inactive = (here - turn * square[None, :] for turn in turned)
        apart = (on_inactive <= 0) & (on_active >= 0) & (on_active > on_inactive)
        return jnp.any(on_kink & apart)

    def jacobian(
        self, t: Any, y: Float[Array, " size_and_one"], pattern: ShallowPattern
    ) -> Float[Array, "size_and_one size_and_one"]:
        return field_jacobian(self, t, y, pattern)

    def evaluate(self, theta: Float[Array, " size"], pattern: ShallowPattern) -> Evaluation:
        net = self.net(theta)
        z = self.z(net)
        a = jnp.where(pattern.active, z, self.negative_slope * z)
        v = self.output_scale * net.v
        outputs = v @ a if v.ndim == 1 else a.T @ v
        if net.c is not None:
            outputs = outputs + jnp.broadcast_to(net.c, outputs.shape)
        value, r = self._loss(outputs)
        slopes = self.slopes(pattern)
        if v.ndim == 1:
            # a is linear in (w, b): one product serves the gradients of (w, b) and of v.
            by_row = by_normals(slopes * r[None, :], self.inputs)
            force = v[:, None] * by_row
            by_v = self.output_scale * jnp.sum(net.incoming() * by_row, axis=1)
        else:
            force = by_normals(slopes * (v @ r.T), self.inputs)
            by_v = self.output_scale * (a @ r)
        force, by_c = self._by_u(force), jnp.sum(r, axis=0)
        if self.penalty is None:
            velocity = self.assembled(free(pattern, -force), -by_v, -by_c)
        else:
            penalty, slope = jax.value_and_grad(self.penalty_at)(theta)
            by_units = self.by_units(jnp.append(slope, penalty))
            value, force = value + penalty, force + by_units
            velocity = self.assembled(free(pattern, -force), -by_v, -by_c)
            velocity = velocity - (slope - self.moved(by_units))
        field = jnp.append(velocity, velocity @ velocity)
        return Evaluation(z, v, r, force, field, value)

    def _by_u(self, by_all: Float[Array, "units inputs"]) -> Float[Array, "units dim"]:
        """The derivatives by the trained ones of (w_i, b_i), in the coordinates of the time scales,
        from those by all."""
        features, places = self.rows.shape[1], ParameterLayout(self.trained).places
        by_w, by_b = by_all[:, :features], by_all[:, features:]
        parts = [] if places.w is None else [self.by_phi("w", by_w)]
        parts += [] if places.b is None else [self.by_phi("b", by_b)]
        return jnp.concatenate(parts, axis=1)

    def slopes(self, pattern: ShallowPattern) -> Float[Array, "units rows"]:
        """σ' of the pairs, 0 where they slide."""
        slopes = jnp.where(pattern.active, 1.0, self.negative_slope)
        return jnp.where(pattern.sliding, 0.0, slopes).astype(self.normals.dtype)

    def scales(
        self,
        theta: Float[Array, " size"],
        pattern: ShallowPattern,
        evaluation: Evaluation | None = None,
    ) -> Float[Array, " units"]:
        """‖(w_i, b_i)‖, for units at 0 some small number."""
        del pattern, evaluation
        norms = self.net(theta).incoming_norms()
        smallest = 1e-9 * jnp.max(norms)
        return jnp.maximum(norms, jnp.where(smallest > 0, smallest, 1.0))

    def preactivations(
        self, theta: Float[Array, " size"], pattern: ShallowPattern
    ) -> Float[Array, "units rows"]:
        del pattern
        return self.z(self.net(theta))

    def heights(
        self, z: Float[Array, "units rows"], pattern: ShallowPattern, scales: Float[Array, " units"]
    ) -> Float[Array, "units rows"]:
        """The distance of z from 0 on the side of the pattern, for units and rows of size 1."""
        # Reciprocals of vectors: a division for each pair would cost as much as the field.
        side = jnp.where(pattern.active, z, -z)
        return side * (1 / scales)[:, None] * (1 / self.sizes)[None, :]

    def kink_margin(
        self,
        theta: Float[Array, " size"],
        pattern: ShallowPattern,
        scales: Float[Array, " units"],
        pair: Pair,
    ) -> Float[Array, ""]:
        net, (unit, row) = self.net(theta), pair
        z = net.w[unit] @ self.rows[row]
        z = z if net.b is None else z + net.b[unit]
        side = jnp.where(pattern.active[unit, row], 1.0, -1.0) / (scales[unit] * self.sizes[row])
        return z * side + pattern.slack_of(Pairs.all_of(unit, row))

    def slide_margins(
        self, evaluation: Evaluation, pattern: ShallowPattern
    ) -> Float[Array, "units slots"]:
        return self.slides(evaluation, pattern).margins

    def transition(
        self,
        theta: Float[Array, " size"],
        pattern: ShallowPattern,
        evaluation: Evaluation,
        resolution: KinkResolution,
    ) -> Transition:
        return transition(self, theta, pattern, evaluation, resolution)

    def put_on_kinks(
        self,
        theta: Float[Array, " size"],
        pattern: ShallowPattern,
        evaluation: Evaluation,
        unit: Int[Array, ""],
    ) -> Float[Array, " size"]:
        z = evaluation.z[unit, pattern.slots[unit]]
        past = jnp.where(pattern.used[unit], z, 0.0)
        by = jnp.zeros_like(evaluation.force)
        return theta + self.moved(with_row(by, unit, -(past @ pattern.lift[unit])))

    @property
    def num_units(self) -> int:
        return eqx.combine(self.trained, self.frozen).width

    @property
    def places(self) -> UnitPlaces:
        units = np.arange(self.num_units)
        return UnitPlaces(np.zeros_like(units), units)

    @property
    def padding(self) -> Bool[Array, " size"] | None:
        return None if self.added is None else jnp.asarray(self.added.theta)

    @property
    def shares_kinks(self) -> bool:
        return self.lines.line is not None

    # ---- one hidden layer -----------------------------------------------------------------------

    @property
    def whole(self) -> Any:
        """Whether a unit held in all directions is zero, and stays so."""
        zero = self.trained.w is not None and self.frozen.b is None
        # For a single weight, 0 is a kink like any other.
        stays = zero and self.normals.shape[1] > 1
        return stays if self.moves_zero_units is None else stays & ~self.moves_zero_units

    def penalty_at(self, theta: Float[Array, " size"]) -> Float[Array, ""]:
        """The penalty of the risk at θ."""
        assert self.penalty is not None
        return self.penalty(self.net(theta))

    def net(self, theta: Float[Array, " size"]) -> ShallowNet:
        return eqx.combine(unflat(self.trained, self.time_scales.theta(theta)), self.frozen)

    def z(self, net: ShallowNet) -> Float[Array, "units rows"]:
        return net.incoming() @ self.inputs.T

    @property
    def inputs(self) -> Float[Array, "rows inputs"]:
        """The rows, with a 1 for the biases if there are any."""
        if self.frozen.b is None and self.trained.b is None:
            return self.rows
        return jnp.concatenate([self.rows, jnp.ones_like(self.rows[:, :1])], axis=1)

    def assembled(self, by_u: Array, by_v: Array, by_c: Array) -> Array:
        """Packs derivatives by u (.., units, dim), in the coordinates of the time scales, by v
        (.., units, outs) and by c (.., outs) in the order of θ."""
        features, layout = self.rows.shape[1], ParameterLayout(self.trained)
        by_v, by_c = self.by_phi("v", by_v), self.by_phi("c", by_c)
        by_name = {"w": by_u[..., :features], "b": by_u[..., -1], "v": by_v, "c": by_c}
        return layout.assembled(by_name, lead=by_u.shape[:-2])

    def by_phi(self, name: str, derivative: Array) -> Array:
        """A derivative by one field as that by its coordinates of the time scales."""
        places = getattr(ParameterLayout(self.trained).places, name)
        return self.time_scales.by_phi(derivative, places)

    def _loss(self, outputs: Array) -> tuple[Float[Array, ""], Array]:
        """The risk, and ∂L/∂N for each distinct row."""
        by_data = outputs if self.group is None else outputs[self.group]
        losses = lambda n: self.weights @ jax.vmap(self.loss)(n, self.y)
        value, r = jax.value_and_grad(losses)(by_data)
        if self.group is None:
            return value, r
        return value, jax.ops.segment_sum(r, self.group, self.rows.shape[0])

    def turns(
        self, q: Float[Array, " rows"], active: Bool[Array, " rows"], here: Bool[Array, " rows"]
    ) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
        """Change of one unit's gradient, per row normal, when all kinks in `here` switch to the
        side where the row is active; and to the other."""
        ahead = self.lines.along > 0
        along = jnp.where(here, self.lines.along * (1 - self.negative_slope) * q, 0.0)
        above = self.lines.total(along * (ahead.astype(q.dtype) - active)) / self.lines.along
        below = self.lines.total(along * ((~ahead).astype(q.dtype) - active)) / self.lines.along
        return jnp.where(ahead, above, below), jnp.where(ahead, below, above)

    def slides(self, evaluation: Evaluation, pattern: ShallowPattern) -> Slides:
        """Where the slides are in [0, 1]."""
        smallest, pull = self.pulls(evaluation, pattern)
        pulled = pull > 0
        multipliers = -jnp.sum(pattern.lift * evaluation.force[:, None, :], axis=-1)
        weights = (multipliers - smallest) / jnp.where(pulled, pull, 1.0)
        weights = jnp.where(pulled, weights, -1.0)
        some = pattern.used & ~pattern.degenerate[:, None]
        margins = jnp.where(some, jnp.minimum(weights, 1 - weights), jnp.inf)
        return Slides(weights, pulled, margins)

    def pulls(
        self, evaluation: Evaluation, pattern: ShallowPattern
    ) -> tuple[Float[Array, "units slots"], Float[Array, "units slots"]]:
        """μ at λ = 0 for each slot, and by how much it grows to λ = 1."""
        if self.lines.line is None:
            units = jnp.arange(len(pattern.slots))[:, None]
            q = evaluation.q_of(Pairs.all_of(units, pattern.slots))
            return self.negative_slope * q, (1 - self.negative_slope) * q
        along = self.lines.along
        weighted = jnp.where(pattern.sliding, evaluation.q * along[None, :], 0.0)
        total = lambda slopes: jax.vmap(lambda a: self.lines.total(a * slopes) / along)(weighted)
        of_slots = lambda a: jnp.take_along_axis(a, pattern.slots, axis=1)
        above = of_slots(total(jnp.where(along > 0, 1.0, self.negative_slope)))
        below = of_slots(total(jnp.where(along > 0, self.negative_slope, 1.0)))
        ahead = along[pattern.slots] > 0
        smallest = jnp.where(ahead, below, above)
        return smallest, jnp.where(ahead, above, below) - smallest


def _by_phi(
    normals: Float[Array, "rows dim"], trained: PyTree, time_scales: TimeScales
) -> Float[Array, "rows dim"]:
    """The normals in the trained ones of (w_i, b_i) in the coordinates of the time scales."""
    if time_scales.roots is None:
        return normals
    places = ParameterLayout(trained).places
    parts = [] if places.w is None else [(normals[:, : places.w.shape[1]], places.w)]
    parts += [] if places.b is None else [(normals[:, -1:], places.b)]
    return jnp.concatenate([time_scales.by_phi(part, place) for part, place in parts], axis=1)
