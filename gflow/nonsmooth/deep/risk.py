r"""The risk of a network of any depth on data, pattern by pattern.

A unit is an entry of a site, where the computation of the network for one row has a jump of its
slope (`sites`). A pair of unit and row has its kink where its preactivation $z_j(\theta)$ is 0.
With the sides of all pairs held fixed the risk is smooth. The fields of the two sides of a kink
differ by $q_j m_j$ with $m_j = \nabla_\theta z_j$ and $q_j$ the derivative of the risk by the
activation, times the jump of its slope.

If both point at the kink, the flow slides. Along kinks K with the normals M the multipliers are
$\mu = -(M M^\top)^{-1} M g$, where g and M are those with every pair of K on its inactive side,
$\dot\theta = -(g + M^\top\mu)$, and the weight of the active side of pair j is
$\lambda_j = \mu_j/q_j$: $q_j$ depends on the slides of higher layers in the same row, as

$$q = q^0 + \sum_k \mu_k \, \frac{\partial z_k}{\partial a} .$$
"""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.arguments import PyTree, is_concrete
from gflow.nonsmooth.deep.passing import AbstractPassing
from gflow.nonsmooth.deep.pattern import DeepEvaluation, DeepPattern
from gflow.nonsmooth.deep.row_network import RowNetwork, RowOutput, row_network
from gflow.nonsmooth.deep.slides import Normals, normals_of
from gflow.nonsmooth.deep.transitions import leads_both_ways, transition
from gflow.nonsmooth.pairs import Pair, Pairs
from gflow.nonsmooth.pattern_risk import KinkResolution, Transition, UnitPlaces
from gflow.nonsmooth.shallow.kink_geometry import distinct_rows
from gflow.parameters import UNSCALED, TimeScales, unflat
from gflow.risks import EmpiricalRisk, Penalty, penalty_of, without_penalty

# For how many slides at a time there is room at first; where it cannot grow.
_ROOM, _ROOM_IF_TRACED = 16, 64
# Preactivations of the start within so many roundings count as 0.
_ROUNDINGS = 16
# Units count as this fraction of the largest of their layer at least, when preactivations are
# measured.
_SMALLEST_UNIT = 1e-3


class FirstOrder(NamedTuple):
    """A risk, the preactivations, and its derivatives by θ and by the activations, these times the
    jumps of their slopes."""

    value: Float[Array, ""]
    z: Float[Array, "units rows"]
    gradient: Float[Array, " size"]
    q: Float[Array, "units rows"]


class _Along(NamedTuple):
    """The gradient along the kinks that the flow slides on, and what an evaluation says of them."""

    gradient: Float[Array, " size"]
    q: Float[Array, "units rows"]
    normals: Normals
    multipliers: Float[Array, " slots"]


class DeepPatternRisk(AbstractPassing):
    """The empirical risk of any network, pattern by pattern.

    Rows that are equal have one kink: `rows` are the distinct ones, `group` says to which each
    datum belongs, `first_datum` which datum stands for each.
    """

    trained: PyTree
    frozen: PyTree
    rows: Float[Array, "rows in"]
    group: Int[Array, " data"] | None
    first_datum: Int[Array, " rows"]
    y: Array
    weights: Float[Array, " data"]
    time_scales: TimeScales
    penalty: Penalty | None
    loss: Any = eqx.field(static=True)
    room: int = eqx.field(static=True)

    @classmethod
    def of(
        cls, risk: Any, trained: PyTree, frozen: PyTree, time_scales: TimeScales = UNSCALED
    ) -> "DeepPatternRisk | None":
        """The pattern risk of a network and its data, or None where no kinks are found: other risks
        than an `EmpiricalRisk`, and smooth networks."""
        penalty, risk = penalty_of(risk), without_penalty(risk)
        if not isinstance(risk, EmpiricalRisk) or not callable(eqx.combine(trained, frozen)):
            return None
        dtype = jax.tree.leaves(trained)[0].dtype
        as_floats = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
        rows, first, group = distinct_rows(risk.x.astype(dtype))
        network = row_network(trained, frozen, rows)
        if network.reasons:
            warnings.warn(_words_on(network.reasons), stacklevel=4)
        if network.num_units == 0:
            return None
        n = risk.num_data
        weights = jnp.full(n, 1 / n) if risk.weights is None else risk.weights
        return cls(
            trained=trained,
            frozen=frozen,
            rows=rows,
            group=group,
            first_datum=first,
            y=as_floats(risk.y),
            weights=weights.astype(dtype),
            time_scales=time_scales,
            penalty=penalty,
            loss=risk.loss,
            room=_ROOM if is_concrete(risk, trained, frozen) else _ROOM_IF_TRACED,
        )

    # ---- the interface to the loop ------------------------------------------------------------

    def start(self, theta: Float[Array, " size"]) -> DeepPattern:
        params = self.params(theta)
        z_of = lambda x: self.network(params, self.frozen, x, None).z
        z = jax.vmap(z_of, out_axes=1)(self.rows)
        return DeepPattern.without_slides(z > 0, min(self.room, z.size), theta.dtype)

    def repels(self, theta: Float[Array, " size"], pattern: DeepPattern) -> Bool[Array, ""]:
        now = self.evaluate(theta, pattern)
        scales = self.scales(theta, pattern, now)
        rounding = _ROUNDINGS * jnp.finfo(theta.dtype).eps
        near = jnp.abs(self.heights(now.z, pattern, scales)) <= rounding
        return leads_both_ways(self, theta, pattern, now, near)

    def jacobian(
        self, t: Any, y: Float[Array, " size_and_one"], pattern: DeepPattern
    ) -> Float[Array, "size_and_one size_and_one"]:
        of_theta = lambda theta: self.evaluate(theta, pattern).field
        return jnp.pad(jax.jacfwd(of_theta)(y[:-1]), ((0, 0), (0, 1)))

    def evaluate(self, theta: Float[Array, " size"], pattern: DeepPattern) -> DeepEvaluation:
        sides = pattern.open_sides()
        none = jnp.zeros(sides.shape, theta.dtype)
        value, z, gradient, q = self.first_order(theta, sides, none, pattern.loose)

        def along_kinks() -> _Along:
            normals = self.normals(theta, pattern)
            multipliers = normals.multipliers(gradient)
            along = gradient + (multipliers * normals.lengths) @ normals.rows
            by_rows = (multipliers[:, None] * normals.by_units).T
            return _Along(along, q.at[:, pattern.slots.row].add(by_rows), normals, multipliers)

        def off_kinks() -> _Along:
            normals = Normals.none(pattern.room, len(theta), len(sides), theta.dtype)
            return _Along(gradient, q, normals, jnp.zeros(pattern.room, theta.dtype))

        along: _Along = jax.lax.cond(pattern.slides(), along_kinks, off_kinks)
        field = jnp.append(-along.gradient, along.gradient @ along.gradient)
        return DeepEvaluation(
            z=z,
            q=along.q,
            normals=along.normals,
            multipliers=along.multipliers,
            field=field,
            value=value,
        )

    def preactivations(
        self, theta: Float[Array, " size"], pattern: DeepPattern
    ) -> Float[Array, "units rows"]:
        return self.outputs(theta, pattern.open_sides(), None).z

    def scales(
        self, theta: Float[Array, " size"], pattern: DeepPattern, evaluation: DeepEvaluation
    ) -> Float[Array, " units"]:
        return self.scales_of(evaluation.z)

    def scales_of(self, z: Float[Array, "units rows"]) -> Float[Array, " units"]:
        """The largest preactivation of each unit."""
        largest = jnp.max(jnp.abs(z), axis=1)
        layers = jnp.asarray(self.network.places.layer)
        of_layers = jax.ops.segment_max(largest, layers, int(self.network.places.layer[-1]) + 1)
        of_layers = jnp.where(of_layers > 0, of_layers, 1.0)
        return jnp.maximum(largest, _SMALLEST_UNIT * of_layers[layers])

    def heights(
        self, z: Float[Array, "units rows"], pattern: DeepPattern, scales: Float[Array, " units"]
    ) -> Float[Array, "units rows"]:
        side = jnp.where(pattern.active, z, -z) * (1 / scales)[:, None]
        ties = self.network.ties
        if not ties.any():
            return side
        # Two that are equal, such as two zeros, mostly stay so: there is no kink.
        return jnp.where((z == 0) & jnp.asarray(ties)[:, None], jnp.inf, side)

    def kink_margin(
        self,
        theta: Float[Array, " size"],
        pattern: DeepPattern,
        scales: Float[Array, " units"],
        pair: Pair,
    ) -> Float[Array, ""]:
        unit, row = pair
        z = self.row(theta, pattern.open_sides()[:, row], row).z[unit]
        side = jnp.where(pattern.active[unit, row], 1.0, -1.0) / scales[unit]
        return z * side + pattern.slack_of(Pairs.all_of(unit, row))

    def slide_margins(
        self, evaluation: DeepEvaluation, pattern: DeepPattern
    ) -> Float[Array, " slots"]:
        weights = self.slide_weights(evaluation, pattern)
        return jnp.where(pattern.used, jnp.minimum(weights, 1 - weights), jnp.inf)

    def transition(
        self,
        theta: Float[Array, " size"],
        pattern: DeepPattern,
        evaluation: DeepEvaluation,
        resolution: KinkResolution,
    ) -> Transition:
        return transition(self, theta, pattern, evaluation, resolution)

    def on_kinks(
        self, theta: Float[Array, " size"], pattern: DeepPattern, evaluation: DeepEvaluation
    ) -> Float[Array, " size"]:
        def put_back():
            z = evaluation.z[pattern.slots.unit, pattern.slots.row]
            return theta + evaluation.normals.back(jnp.where(pattern.used, z, 0.0))

        return jax.lax.cond(pattern.slides(), put_back, lambda: theta)

    @property
    def num_units(self) -> int:
        return self.network.num_units

    @property
    def places(self) -> UnitPlaces:
        return self.network.places

    @property
    def padding(self) -> None:
        return None

    @property
    def shares_kinks(self) -> bool:
        return False

    def with_ties(
        self, theta: Float[Array, " size"], before: DeepPattern, after: DeepPattern
    ) -> DeepPattern:
        ties = self.network.ties
        if not ties.any():
            return after

        def looked_at():
            free = (self.preactivations(theta, before) == 0) & jnp.asarray(ties)[:, None]
            params, sides = self.params(theta), after.open_sides()
            z_of = lambda x, sides, free: self.network(params, self.frozen, x, sides, None, free).z
            z = jax.vmap(z_of, in_axes=(0, 1, 1), out_axes=1)(self.rows, sides, free)
            return jnp.where(free & ~after.sliding, z > 0, after.active)

        some = jnp.any(after.active != before.active)
        active = jax.lax.cond(some, looked_at, lambda: after.active)
        return eqx.tree_at(lambda p: p.active, after, active)

    # ---- the network -----------------------------------------------------------------------------

    @property
    def network(self) -> RowNetwork:
        return row_network(self.trained, self.frozen, self.rows)

    def params(self, theta: Float[Array, " size"]) -> PyTree:
        return unflat(self.trained, self.time_scales.theta(theta))

    def outputs(
        self,
        theta: Float[Array, " size"],
        sides: Bool[Array, "units rows"],
        extra: Float[Array, "units rows"] | None,
        loose: Bool[Array, ""] | None = None,
    ) -> RowOutput:
        """Those of all rows on these sides of their kinks, or, if `loose`, on those that they are
        on."""
        params = self.params(theta)
        free = None if loose is None else jnp.broadcast_to(loose, (self.num_units,))
        of_row = lambda x, sides, extra: self.network(params, self.frozen, x, sides, extra, free)
        axes: Any = RowOutput._make((0, 1))
        return jax.vmap(of_row, in_axes=(0, 1, 1), out_axes=axes)(self.rows, sides, extra)

    def row(
        self,
        theta: Float[Array, " size"],
        sides: Bool[Array, " units"],
        row: Int[Array, ""],
        extra: Float[Array, " units"] | None = None,
    ) -> RowOutput:
        """That of one row."""
        return self.network(self.params(theta), self.frozen, self.rows[row], sides, extra)

    def normal(
        self, theta: Float[Array, " size"], pattern: DeepPattern, unit: Array, row: Array
    ) -> tuple[Float[Array, " size"], Float[Array, " units"]]:
        """The derivatives of one preactivation by θ and by the activations of its row."""
        sides = pattern.open_sides()[:, row]
        z_of = lambda theta, extra: self.row(theta, sides, row, extra).z[unit]
        return jax.grad(z_of, argnums=(0, 1))(theta, jnp.zeros(sides.shape, theta.dtype))

    def normals(self, theta: Float[Array, " size"], pattern: DeepPattern) -> Normals:
        """The normals of the kinks that the pattern slides on."""
        normal = lambda unit, row: self.normal(theta, pattern, unit, row)
        rows, by_units = jax.vmap(normal)(*pattern.slots)
        used = pattern.used[:, None]
        return normals_of(jnp.where(used, rows, 0.0), jnp.where(used, by_units, 0.0))

    def first_order(
        self,
        theta: Float[Array, " size"],
        sides: Bool[Array, "units rows"],
        extra: Float[Array, "units rows"],
        loose: Bool[Array, ""] | None = None,
    ) -> FirstOrder:
        """The risk on the sides of `outputs`, with some amounts added to the activations."""

        def value(theta, extra):
            output, z = self.outputs(theta, sides, extra, loose)
            return self._loss(output) + self._penalty_at(theta), z

        (found, z), slopes = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(theta, extra)
        return FirstOrder(found, z, *slopes)

    def _loss(self, outputs: Any) -> Float[Array, ""]:
        group = self.group
        if group is not None:
            outputs = jax.tree.map(lambda a: a[group], outputs)
        return self.weights @ jax.vmap(self.loss)(outputs, self.y)

    def _penalty_at(self, theta: Float[Array, " size"]) -> Float[Array, ""]:
        if self.penalty is None:
            return jnp.zeros((), theta.dtype)
        return self.penalty(eqx.combine(self.params(theta), self.frozen))

    # ---- slides ----------------------------------------------------------------------------------

    def slide_weights(
        self, evaluation: DeepEvaluation, pattern: DeepPattern
    ) -> Float[Array, " slots"]:
        """λ of the active side for each slot, −1 where nothing pulls towards the kink."""
        smallest, pull = self._pulls(evaluation, pattern)
        pulled = pull > 0
        weights = (evaluation.multipliers - smallest) / jnp.where(pulled, pull, 1.0)
        return jnp.where(pulled, weights, -1.0)

    def _pulls(
        self, evaluation: DeepEvaluation, pattern: DeepPattern
    ) -> tuple[Float[Array, " slots"], Float[Array, " slots"]]:
        """μ at λ = 0 for each slot, and by how much it grows to λ = 1."""
        own = evaluation.q[pattern.slots.unit, pattern.slots.row]

        def of_all():
            amounts = jnp.where(pattern.sliding, pattern.multiple * evaluation.q, 0.0)
            total = lambda a: jax.ops.segment_sum(
                a.ravel(), pattern.slot.ravel(), len(pattern.used)
            )
            ahead = pattern.multiple > 0
            smallest = total(jnp.where(ahead, 0.0, amounts))
            return smallest, total(jnp.where(ahead, amounts, 0.0)) - smallest

        return jax.lax.cond(pattern.shares(), of_all, lambda: (jnp.zeros_like(own), own))


def _words_on(reasons: tuple[str, ...]) -> str:
    return (
        f"this network may have kinks that are not located: {', '.join(reasons)}. There it is "
        "integrated as if it were smooth, in many small steps. Kinks are located of ReLU, leaky "
        "ReLU, absolute values, maxima and minima, and of `jnp.where` with a comparison with a "
        "number."
    )
