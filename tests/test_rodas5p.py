"""Rodas5P: tableau, orders, stability, error estimate, and long flows with and without kinks."""

import functools
import itertools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gflow
from benchmarks.reference_flows import NAMES, reference_flow
from gflow.nonsmooth.shallow.hessian import field_jacobian
from gflow.nonsmooth.shallow.pattern import Change
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import split_trainable
from gflow.solvers.rodas5p import (
    COUPLINGS,
    DENSE,
    GAMMA,
    NODES,
    STAGES,
    TIMES,
    WEIGHTS,
    Rodas5PInterpolation,
)
from gflow.solvers.work import WorkState, nothing_done
from tests.helpers.kink_problems import KINDS, data, drawn, kinks, single_unit
from tests.helpers.networks_as_vectors import distance, flat, norm

ONE = np.ones(8)
# The coefficients in the usual form: k_i = h f(y + Σ α_ij k_j) + h J Σ γ_ij k_j.
GAMMAS = np.linalg.inv(np.eye(8) / GAMMA - COUPLINGS)
ALPHAS, B = STAGES @ GAMMAS, WEIGHTS @ GAMMAS
EMBEDDED = (WEIGHTS - np.eye(8)[7]) @ GAMMAS


# ---- the tableau ----------------------------------------------------------------------------


@functools.cache
def trees(size: int) -> list[tuple]:
    """The rooted trees with this number of nodes, as tuples of subtrees."""

    def forests(nodes: int, largest: int):
        if nodes == 0:
            yield ()
        for k in range(min(nodes, largest), 0, -1):
            for tree, rest in itertools.product(trees(k), forests(nodes - k, k)):
                yield (tree, *rest)

    return sorted({tuple(sorted(forest)) for forest in forests(size - 1, size - 1)})


def order_of(tree) -> int:
    return 1 + sum(map(order_of, tree))


def density(tree) -> int:
    return order_of(tree) * int(np.prod([density(t) for t in tree], dtype=int))


def elementary(tree) -> Any:
    if len(tree) == 1:
        return (ALPHAS + GAMMAS) @ elementary(tree[0])
    return np.prod([ALPHAS @ elementary(t) for t in tree] or [ONE], axis=0)


def defect(weights: np.ndarray, size: int, fraction: float = 1.0) -> float:
    """The largest violation of the order conditions of trees with this number of nodes."""
    return max(abs(weights @ elementary(t) - fraction**size / density(t)) for t in trees(size))


def test_there_are_as_many_trees_as_known():
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize(("weights", "order"), [(B, 5), (EMBEDDED, 4)], ids=["main", "embedded"])
def test_order_conditions(weights, order):
    # The coefficients have sixteen digits and are up to 150.
    assert max(defect(weights, size) for size in range(1, order + 1)) < 1e-13
    assert defect(weights, order + 1) > 1e-2


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_order_conditions_of_dense_output(fraction):
    bends = DENSE[0] + fraction * (DENSE[1] + fraction * DENSE[2])
    weights = fraction * (WEIGHTS + (1 - fraction) * bends) @ GAMMAS
    assert max(defect(weights, size, fraction) for size in range(1, 5)) < 1e-13
    assert defect(weights, 5, fraction) > 1e-4


def test_nodes_and_stiff_accuracy():
    # In exact arithmetic 4e-15; the inverse is rounded, to 1.3e-14 with some BLAS.
    np.testing.assert_allclose(ALPHAS @ ONE, NODES, atol=1e-13)
    np.testing.assert_allclose(GAMMAS @ ONE, TIMES, atol=1e-13)
    # The result and the embedded one are the last two stages: both decay at infinity.
    np.testing.assert_array_equal(STAGES[7] + np.eye(8)[7], WEIGHTS)
    np.testing.assert_array_equal(STAGES[6] + np.eye(8)[6], STAGES[7])


def growth(z: complex, weights=B):
    """R(z), the factor of y in a step, where f = λy and z = hλ."""
    return 1 + z * weights @ np.linalg.solve(np.eye(8) - z * (ALPHAS + GAMMAS), ONE)


def test_a_and_l_stability():
    axis = 1j * np.geomspace(1e-3, 1e6, 400)
    # All poles are at 1/γ, so by the maximum principle the imaginary axis is enough.
    for weights in (B, EMBEDDED):
        assert max(abs(growth(z, weights)) for z in axis) < 1 + 1e-10
        assert abs(growth(-1e8, weights)) < 1e-6


def test_steps_of_decay_at_every_stiffness():
    rates = -jnp.geomspace(1e-2, 1e8, 41)
    term = diffrax.ODETerm(lambda t, y, args: rates * y)
    solver, zero, one = gflow.Rodas5P(), jnp.asarray(0.0), jnp.asarray(1.0)
    y, error, *_ = solver.step(term, zero, one, jnp.ones(41), None, START_STATE, False)
    exact = np.exp(rates)
    assert np.abs(y).max() < 1 and np.abs(y[rates < -1e7]).max() < 1e-5
    np.testing.assert_allclose(y, [growth(complex(r)).real for r in rates], atol=1e-9)
    assert (np.abs(y - exact) <= 1.1 * np.abs(error) + 1e-13).all()


# ---- orders ---------------------------------------------------------------------------------


def pendulum(t, y, args):
    """A nonlinear, driven pendulum, whose state is a pytree."""
    return {"angle": y["speed"], "speed": -jnp.sin(y["angle"]) + 0.5 * jnp.cos(2 * t)}


START = {"angle": jnp.asarray(1.0), "speed": jnp.asarray(0.5)}
START_STATE = WorkState(nothing_done())


@eqx.filter_jit
def solve_pendulum(solver, t0, t1, y0, h, ts, controller=None) -> Any:
    return diffrax.diffeqsolve(
        diffrax.ODETerm(pendulum),
        solver,
        t0,
        t1,
        h,
        y0,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=diffrax.ConstantStepSize() if controller is None else controller,
    ).ys


@pytest.fixture(scope="module")
def exact_pendulum():
    tight = diffrax.PIDController(1e-13, 1e-14)
    times = jnp.asarray([0.02, 0.04, 0.08, 4.0])
    return solve_pendulum(diffrax.Dopri8(), 0.0, 4.0, START, 1e-3, times, tight)


@pytest.mark.slow
def test_order_with_fixed_steps(exact_pendulum):
    sizes, end = 0.1 / 2.0 ** np.arange(4), jnp.asarray([4.0])
    ends = [solve_pendulum(gflow.Rodas5P(), 0.0, 4.0, START, h, end) for h in sizes]
    errors = [np.hypot(*(y[name][0] - exact_pendulum[name][3] for name in START)) for y in ends]
    assert gflow.observed_order(sizes, errors).value == pytest.approx(5.0, abs=0.1)


@pytest.mark.slow
def test_order_of_the_dense_output_of_one_step(exact_pendulum):
    # The order of a single step is one more, here at two fifths of it. Both ends are exact.
    sizes = 0.05 * 2.0 ** np.arange(3)
    term, zero, errors = diffrax.ODETerm(pendulum), jnp.asarray(0.0), []
    for k, h in enumerate(sizes):
        solver = gflow.Rodas5P()
        y1, _, dense, *_ = solver.step(term, zero, jnp.asarray(h), START, None, START_STATE, False)
        inside = solver.interpolation_cls(t0=zero, t1=jnp.asarray(h), **dense)
        assert isinstance(inside, Rodas5PInterpolation)
        y = inside.evaluate(0.4 * h)
        errors.append(np.hypot(*(y[name] - exact_pendulum[name][k] for name in START)))
        assert inside.evaluate(zero) == START and inside.evaluate(jnp.asarray(h)) == y1
        gap = inside.evaluate(zero, jnp.asarray(h))["angle"]
        np.testing.assert_allclose(gap, y1["angle"] - START["angle"], atol=1e-15)
    assert gflow.observed_order(sizes, np.array(errors)).value == pytest.approx(5.0, abs=0.15)


@pytest.mark.slow
def test_backwards_and_with_a_jacobian_of_the_users_own():
    def jacobian(t, y, args):
        del t, args
        return jnp.array([[0.0, 1.0], [-jnp.cos(y["angle"]), 0.0]])

    there, back = jnp.asarray([2.0]), jnp.asarray([0.0])
    ends = []
    for solver in (gflow.Rodas5P(), gflow.Rodas5P(jacobian)):
        end = jax.tree.map(lambda a: a[0], solve_pendulum(solver, 0.0, 2.0, START, 0.02, there))
        again = solve_pendulum(solver, 2.0, 0.0, end, -0.02, back)
        assert again["angle"][0] == pytest.approx(1.0, abs=1e-8)
        ends.append(end)
    np.testing.assert_allclose(ends[0]["angle"], ends[1]["angle"], rtol=1e-13)


# ---- flows ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_tanh_flow_against_an_explicit_solver_and_the_honesty_of_the_error(wave, smooth_net):
    run = lambda **options: gflow.solve_flow(wave, smooth_net, t1=30.0, ts=[30.0], **options)
    exact = run(solver=diffrax.Dopri8(), rtol=1e-13).final
    for rtol in (1e-5, 1e-6, 1e-7, 1e-8):
        flow = run(solver=gflow.Rodas5P(), rtol=rtol)
        assert 0.01 < distance(flow.final, exact) / norm(exact) / rtol < 30
        assert np.abs(flow.diagnostics.energy).max() < 30 * rtol


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "solver"),
    [*((name, gflow.BDF5()) for name in NAMES), (NAMES[-1], gflow.Rodas5P())],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_references_with_kinks_and_slides(name, solver):
    known = reference_flow(name)
    options = {"t1": known.t1, "ts": known.ts, "rtol": 1e-8, "solver": solver}
    flow = gflow.solve_flow(known.risk, known.net, **options)
    for k, expected in enumerate(known.params):
        assert np.linalg.norm(flat(flow[k]) - expected) < 1e-8 * np.linalg.norm(expected)
    assert np.abs(flow.diagnostics.energy).max() < 2e-8
    met, times = kinks(flow), np.array([kink.time for kink in known.kinks])
    assert len(met) == len(times)
    # Events within 1e-4 of each other may come in any order.
    ranks = np.searchsorted(times, times - 1e-4)
    found = sorted(zip(ranks, ((unit, datum, name) for name, unit, datum in met)))
    wanted = sorted(zip(ranks, ((kink.unit, kink.datum, kink.kind) for kink in known.kinks)))
    for (_, (unit, datum, name)), (_, (u, d, kind)) in zip(found, wanted):
        assert (unit, datum) == (u, d) and name.startswith(kind)
    late = np.abs(np.sort(np.asarray(flow.kinks.time)) - times)
    assert np.median(late) < 1e-7 and late.max() < 1e-4


@pytest.mark.slow
def test_a_flow_with_kinks_to_time_1e8():
    known = reference_flow("sine_d1_w20_n40")
    times = np.geomspace(1.0, 1e8, 50)
    options = {"rtol": 1e-8, "solver": gflow.Rodas5P()}
    flow = gflow.solve_flow(known.risk, known.net, t1=1e8, ts=times, **options)
    early = gflow.solve_flow(known.risk, known.net, t1=1e4, ts=times * 1e-4, **options)
    assert np.abs(flow.diagnostics.energy).max() < 1e-7 * float(flow.risk[0])
    assert (np.diff(flow.risk) < 1e-12).all() and flow.grad_norm[-1] < 1e-12
    # An explicit solver would need 1e9 steps to 1e8, since the sharpness is about 20.
    assert int(early.stats["num_steps"]) < 2_000
    assert int(flow.stats["num_steps"]) - int(early.stats["num_steps"]) < 400


# ---- the Jacobian ---------------------------------------------------------------------------


@eqx.filter_jit
def jacobians(known, state, pattern):
    """The Jacobian in closed form, and by automatic differentiation."""
    exact = jax.jacfwd(lambda s: known.field(0.0, s, pattern))(state)
    return field_jacobian(known, 0.0, state, pattern), exact


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *KINDS,
        {"loss": lambda p, t: jnp.sum((p - t) ** 2 * p) + p[0] ** 2 * p[1], "out_size": 2},
        {"repeat": True},
    ],
    ids=lambda case: "-".join(case) or "default",
)
def test_the_jacobian_is_that_of_the_field(case):
    risk, net, trainable = drawn(**case)
    trained, frozen = split_trainable(net, trainable)
    known = ShallowPatternRisk.of(risk, trained, frozen)
    theta = ravel_pytree(trained)[0]
    got, exact = jacobians(known, jnp.append(theta, 0.3), known.start(theta))
    np.testing.assert_allclose(got, exact, atol=1e-14 * np.abs(exact).max())


def test_the_jacobian_on_slides():
    # O4: the flow on both sides of w_1 = 0 points at it.
    risk = data((1, 0, -1), (-1, 0, -1), (1, 1, 3), (0, 1, 7))
    known = ShallowPatternRisk.of(risk, *split_trainable(single_unit(0.0, 2.5)))
    state, pattern = jnp.array([0.0, 2.5, 1.0, 0.0]), known.start(jnp.array([0.0, 2.5, 1.0]))
    only_first = jnp.arange(4) == 0
    zero, yes = jnp.asarray(0), jnp.asarray(True)
    pattern = pattern.changed(
        Change(zero, zero, only_first, only_first, zero, begins=yes, ends=~yes, slack=jnp.zeros(()))
    )
    pattern = pattern.projected(zero, known.normals, known.whole)
    got, exact = jacobians(known, state, pattern)
    free = jnp.diag(jnp.array([0.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(got, exact @ free, atol=1e-13)
    assert np.abs(got).max() > 0.1
