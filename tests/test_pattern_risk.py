"""The loop through kinks knows a network only by `AbstractPatternRisk`: a risk of two numbers."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import gflow
from gflow.flow.located import LocatedRun
from gflow.flow.problem import FlowProblem, Method
from gflow.flow.span import Span
from gflow.flow.stopping import Stop
from gflow.nonsmooth.pairs import Pair, Pairs
from gflow.nonsmooth.passages import Pushes, Sight, Tangles
from gflow.nonsmooth.pattern import AbstractPattern, Event
from gflow.nonsmooth.pattern_risk import (
    AbstractEvaluation,
    AbstractPatternRisk,
    Transition,
    UnitPlaces,
)
from gflow.nonsmooth.recognition import pattern_risk_of
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import UNSCALED, flat, split_trainable

PULL, PUSH = 1.0, 1.5


class OnePair(AbstractPattern):
    active: jax.Array
    sliding: jax.Array
    slack: jax.Array

    @property
    def crowded(self):
        return jnp.asarray(False)

    @property
    def room(self):
        return 0

    def with_room(self, room):
        return self

    def slides(self):
        return jnp.any(self.sliding)

    def with_slack(self, heights):
        return heights + jnp.where(self.sliding, jnp.inf, self.slack)

    def any_released(self):
        return jnp.any(self.slack > 0)

    def settled(self, heights):
        slack = jnp.where(heights <= self.slack, self.slack, 0.0)
        return eqx.tree_at(lambda p: p.slack, self, slack)

    def allowing(self, pairs, flags, slack):
        most = jnp.max(jnp.where(flags, slack, 0.0))
        return eqx.tree_at(lambda p: p.slack, self, jnp.maximum(self.slack, most))


class Looked(AbstractEvaluation):
    z: Any
    field: jax.Array
    value: jax.Array
    theta: jax.Array

    @property
    def grad_norm(self):
        return jnp.sqrt(self.field[-1])

    def kept(self):
        return self

    def times(self, factor):
        field = (factor * self.field).at[-1].multiply(factor)
        return Looked(self.z, field, self.value, self.theta)


class TwoNumbers(AbstractPatternRisk[OnePair]):
    """L(x, y) = PULL max(x, 0) + (x − y)²/2 − PUSH y, whose only kink is x = 0.

    On the kink the flow slides while 0 < y < PULL. Entries of θ beyond the two are padding.
    """

    first_datum: jax.Array
    num_padding: int = eqx.field(static=True)

    def start(self, theta):
        active = (theta[0] > 0).reshape(1, 1)
        zero = jnp.zeros((1, 1))
        no = zero.astype(bool)
        return OnePair(active, no, zero)

    def repels(self, theta, pattern):
        return jnp.asarray(False)

    def value(self, theta):
        x, y = theta[0], theta[1]
        return PULL * jnp.maximum(x, 0) + (x - y) ** 2 / 2 - PUSH * y

    def jacobian(self, t, y, pattern):
        return jax.jacfwd(lambda y: self.field(t, y, pattern))(y)

    def evaluate(self, theta, pattern):
        x, y = theta[0], theta[1]
        u = y - x - PULL * pattern.active[0, 0]
        u = jnp.where(pattern.sliding[0, 0], 0.0, u)
        velocity = jnp.zeros_like(theta).at[:2].set(jnp.stack([u, x - y + PUSH]))
        field = jnp.append(velocity, velocity @ velocity)
        return Looked(self.preactivations(theta, pattern), field, self.value(theta), theta)

    def preactivations(self, theta, pattern):
        return theta[:1].reshape(1, 1)

    def scales(self, theta, pattern, evaluation):
        return jnp.asarray(1.0)

    def heights(self, z, pattern, scales):
        return jnp.where(pattern.active, z, -z)

    def kink_margin(self, theta, pattern, scales, pair: Pair):
        return self.margins(self.preactivations(theta, pattern), pattern, scales)[pair]

    def slide_margins(self, evaluation, pattern):
        x, y = evaluation.theta[:2]
        weight = (y - x) / PULL
        return jnp.where(pattern.sliding, jnp.minimum(weight, 1 - weight), jnp.inf)

    def on_kinks(self, theta, pattern, evaluation):
        return theta.at[0].set(jnp.where(pattern.sliding[0, 0], 0.0, theta[0]))

    def suspects(self, thetas, ends, pattern, scales, eps, patience):
        turns = ends.dt * jnp.abs((ends.end.field - ends.start.field)[0])
        return self.margins(ends.end.z, pattern, scales) <= 0.2 * turns - eps

    def sight(self, thetas, ends, pattern, scales, pairs, tolerance):
        active = pattern.active[pairs.unit, pairs.row]
        side, push = jnp.where(active, 1.0, -1.0), jnp.where(active, PULL, -PULL)
        slack = pattern.with_slack(jnp.zeros((1, 1)))[pairs.unit, pairs.row]
        speeds = jnp.stack([ends.start.field, ends.end.field])[:, pairs.unit]
        return Sight(
            sides=side,
            margins=side[None] * thetas[:, pairs.unit] + slack[None],
            slopes=side[None] * speeds,
            beyond=side * (speeds[1] + push),
            slack=slack,
            active=active,
            jumps=jnp.full(pairs.unit.shape, PULL) / (tolerance[0] * np.sqrt(3)),
            pushes=Pushes(push, push),
        )

    def slide_jumps(self, evaluation, pattern, tolerance):
        return jnp.full((1, 1), PULL) / (tolerance[0] * np.sqrt(3))

    def tangles(self, pattern, seen):
        no = jnp.zeros_like(seen.past)
        return Tangles(no, jnp.zeros_like(seen.ended), no)

    def with_passed(self, theta, pattern, passed, back, end):
        turned = jnp.any(passed.crossed & (passed.age > back))
        age = jnp.max(jnp.where(passed.crossed, passed.age, 0.0))
        push = jnp.where(pattern.active[0, 0], PULL, -PULL) * (age - back)
        pattern = eqx.tree_at(lambda p: p.active, pattern, pattern.active ^ turned)
        return theta.at[0].add(jnp.where(turned, push, 0.0)), pattern

    def jump_of_field(self, theta, before, after, passed, end, now):
        return self.evaluate(end.theta, after).field[:-1] - end.field[:-1]

    def within_step(self, theta, before, after, passed, back, end):
        theta, pattern = self.with_passed(theta, before, passed, back, end)
        begun = after.sliding & ~before.sliding & (self.heights(theta[:1], before, 1.0) <= 0)
        sliding = pattern.sliding | begun
        pattern = eqx.tree_at(lambda p: p.sliding, pattern, sliding)
        return self.on_kinks(theta, pattern, end), pattern

    def transition(self, theta, pattern, evaluation, resolution):
        slides = pattern.sliding[0, 0]
        to_active = theta[1] > PULL
        crosses = (theta[1] < 0) | to_active
        active = jnp.where(slides | crosses, to_active, False)
        begins = ~slides & ~crosses
        kind = gflow.KinkKind
        ends = jnp.where(to_active, kind.SLIDE_ENDS_TO_ACTIVE, kind.SLIDE_ENDS_TO_INACTIVE)
        crossed = jnp.where(to_active, kind.CROSS_TO_ACTIVE, kind.CROSS_TO_INACTIVE)
        arrival = jnp.where(begins, kind.SLIDE_BEGINS, crossed)
        zero, slack = jnp.asarray(0), jnp.where(begins, jnp.inf, resolution.slack)
        slack = jnp.where(begins, 0.0, slack).reshape(1, 1)
        begins = begins.reshape(1, 1)
        after = OnePair(active.reshape(1, 1), begins, slack)
        happened = jnp.where(slides, ends, arrival).reshape(1)
        event = Event(zero, zero, jnp.ones(1, bool), happened)
        return Transition(self.on_kinks(theta, after, evaluation), after, event)

    @property
    def num_units(self):
        return 1

    @property
    def places(self):
        return UnitPlaces(np.zeros(1, int), np.zeros(1, int))

    @property
    def padding(self):
        return jnp.arange(2 + self.num_padding) >= 2 if self.num_padding else None

    @property
    def shares_kinks(self):
        return False


def follow(num_padding: int = 0, budget: float = 0.0, rtol: float = 1e-10):
    risk = TwoNumbers(jnp.zeros(1, int), num_padding)
    theta0 = jnp.zeros(2 + num_padding).at[:2].set(jnp.array([-1.0, 0.0]))
    method = Method(diffrax.Tsit5(), jnp.asarray(rtol), jnp.asarray(rtol / 100), None, Stop())
    span = Span(jnp.asarray(0.0), jnp.asarray(6.0), jnp.linspace(0.0, 6.0, 20))
    problem = FlowProblem(lambda theta: risk.value(theta), theta0, None)
    kinks = {"kink_budget": jnp.asarray(budget), "log_size": 10}
    run = LocatedRun(problem, method, span, theta0, risk, keeps_steps=False, **kinks)
    state = run.advance(run.init(), 10_000)
    return risk, run.output(state), run.kinks(state)


@pytest.mark.parametrize(
    ("budget", "rtol", "digits"), [(0.0, 1e-10, 1e-8), (1.0, 1e-10, 1e-8), (1.0, 1e-3, 3e-3)]
)
def test_a_slide_begins_and_ends_where_it_should(budget, rtol, digits):
    """Off the kink y + x grows at the rate PUSH, and y − x relaxes to PUSH/2 at the rate 2."""
    risk, output, log = follow(budget=budget, rtol=rtol)
    total = lambda t: -1 + PUSH * t
    apart = lambda t: PUSH / 2 + (1 - PUSH / 2) * np.exp(-2 * t)
    begins = brentq(lambda t: total(t) - apart(t), 0.0, 3.0)
    y = (total(begins) + apart(begins)) / 2
    ends = begins + np.log((PUSH - y) / (PUSH - PULL))
    kinds = [gflow.KinkKind.SLIDE_BEGINS, gflow.KinkKind.SLIDE_ENDS_TO_ACTIVE]
    assert log.names == [kind.label for kind in kinds]
    np.testing.assert_allclose(log.time, [begins, ends], atol=digits)
    at_end = risk.value(output.y[:-1])
    dissipated = float(output.y[-1])
    at_start = risk.value(jnp.array([-1.0, 0.0]))
    np.testing.assert_allclose(at_start - at_end, dissipated, rtol=digits / 10)


def test_padding_counts_in_no_norm():
    """More entries at rest would lower the root mean square of the errors."""
    _, plain, _ = follow()
    _, padded, _ = follow(num_padding=30)
    assert padded.counts.steps == plain.counts.steps
    # Sums of other lengths may be rounded otherwise.
    np.testing.assert_allclose(padded.y[:2], plain.y[:2], rtol=1e-14)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu(0.3)"])
def test_sizes_of_jumps(activation):
    """Across its kink the gradient jumps by as much as each pair says."""
    x = jax.random.normal(jax.random.key(1), (6, 2))
    net = gflow.ShallowNet(2, 3, key=jax.random.key(2), activation=activation)
    trained, frozen = split_trainable(net)
    risk = ShallowPatternRisk.of(gflow.EmpiricalRisk(x, jnp.sin(x[:, 0])), trained, frozen)
    assert risk is not None
    theta = flat(trained)
    unit, row = 1, 4
    # Onto the kink of one pair, by its bias.
    z = risk.z(net)[unit, row]
    theta = flat(eqx.tree_at(lambda n: n.b, trained, trained.b.at[unit].add(-z)))
    pattern = risk.start(theta)
    turned = eqx.tree_at(
        lambda p: p.active, pattern, pattern.active.at[unit, row].set(~pattern.active[unit, row])
    )
    y = jnp.append(theta, 0.0)
    one, two = (risk.field(0.0, y, p)[:-1] for p in (pattern, turned))
    pair = Pairs.all_of(jnp.asarray(unit), jnp.asarray(row))
    jump = risk.jumps_of(risk.evaluate(theta, pattern), pair)
    np.testing.assert_allclose(jnp.linalg.norm(one - two), jump, rtol=1e-10)


def nearby(distance: float, step: float) -> gflow.EmpiricalRisk:
    """Rows 3 and 7 are at this distance, their targets differ by this step."""
    x = np.random.default_rng(0).uniform(-1, 1, (9, 2))
    y = np.sin(x[:, 0])
    x[7] = x[3] + [distance, 0.0]
    y[7] = y[3] + step
    return gflow.EmpiricalRisk(x, y)


@pytest.mark.parametrize("distance", [1e-12, 1e-9, 1e-7])
def test_rows_that_nearly_agree_are_named(distance):
    net = gflow.ShallowNet(2, 3, key=jax.random.key(0))
    with pytest.warns(UserWarning, match=r"3 and 7 differ by 1\.0e-.*targets by 0\.5") as caught:
        pattern_risk_of(nearby(distance, 0.5), *split_trainable(net), UNSCALED)
    assert len(caught) == 1


@pytest.mark.parametrize(("distance", "step"), [(0.0, 0.5), (1e-9, 1e-9), (1e-5, 0.5)])
def test_other_rows_are_not(distance, step, recwarn):
    net = gflow.ShallowNet(2, 3, key=jax.random.key(0))
    assert pattern_risk_of(nearby(distance, step), *split_trainable(net), UNSCALED) is not None
    assert not recwarn.list
