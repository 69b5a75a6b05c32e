"""BDF5: its polynomials, order, stability, error estimate, and long flows in curved valleys."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gflow
from gflow.solvers.bdf5 import CAUTION, BDF5State, lagrange, slopes_at_one
from gflow.solvers.work import nothing_done
from tests.helpers.networks_as_vectors import distance, norm

# ---- one step -------------------------------------------------------------------------------

GAPS = st.lists(st.floats(0.2, 3.0), min_size=5, max_size=5)


@settings(deadline=None, max_examples=25)
@given(GAPS, st.lists(st.floats(-2, 2), min_size=6, max_size=6), st.floats(-1, 1))
def test_polynomials_are_met_exactly(gaps, coefficients, s):
    nodes = 1 - np.cumsum(gaps)[::-1]
    p = np.polynomial.Polynomial(coefficients)
    at = jnp.append(jnp.asarray(nodes), 1.0)
    # The weights are at most (longest gap / shortest gap)⁵, 1e5.
    assert float(lagrange(at, s) @ p(np.asarray(at))) == pytest.approx(p(s), abs=1e-8)
    slope = slopes_at_one(jnp.asarray(nodes)) @ p(np.asarray(at))
    assert float(slope) == pytest.approx(p.deriv()(1.0), abs=1e-6)


def test_stability_on_the_negative_real_axis_with_equal_and_growing_steps():
    largest = np.inf
    for growth in (1.0, 1.1):
        # The last five points and the next, as fractions of the step to it.
        gaps = growth ** -np.arange(5.0)
        c = np.asarray(slopes_at_one(jnp.asarray(1 - np.cumsum(gaps)[::-1])))
        for z in -np.geomspace(1e-2, 1e8, 60):
            largest = np.abs(np.roots([c[5] - z, *c[4::-1]])).max()
            assert largest < 1
        assert largest < 0.05


@jax.jit
def one_step(h, fractions):
    """The step from 1 of y' = −y³, whose solution is (1 + 2t)^−½, and its error."""
    exact = lambda t: jnp.stack([(1 + 2 * t) ** -0.5, (3 + 2 * t) ** -0.5])
    times = fractions * h
    past = BDF5State(
        t=times,
        y=jax.vmap(exact)(times),
        known=jnp.asarray(6),
        leads=jnp.asarray(True),
        work=nothing_done(),
    )
    field = diffrax.ODETerm(lambda t, y, args: -(y**3))
    zero = jnp.zeros_like(h)
    y1, error, *_ = gflow.BDF5().step(field, zero, h, exact(zero), None, past, False)
    return error / CAUTION, y1 - exact(h)


@pytest.mark.parametrize("growth", [1.0, 1.2])
def test_order_and_estimate_of_one_step_from_exact_points(growth):
    fractions = -jnp.append(jnp.cumsum(growth ** -jnp.arange(1, 6.0))[::-1], 0.0)
    sizes = np.array([0.02, 0.01, 0.005])
    estimates, errors = zip(*(one_step(h, fractions) for h in sizes))
    norms = [float(jnp.linalg.norm(e)) for e in errors]
    # The order of a single step is one more.
    assert gflow.observed_order(sizes, norms).value == pytest.approx(6.0, abs=0.2)
    assert float(jnp.linalg.norm(estimates[-1])) == pytest.approx(norms[-1], rel=0.3)


# ---- flows ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_smooth_flow_to_time_1e8(wave):
    net = gflow.ShallowNet(1, 16, key=jax.random.key(0), activation="tanh")
    times = np.geomspace(1e-4, 1.0, 20)
    steps = {}
    for t1 in (1e4, 1e8):
        flow = gflow.solve_flow(wave, net, t1=t1, ts=t1 * times, rtol=1e-8, solver=gflow.BDF5())
        assert np.abs(flow.diagnostics.energy).max() < 1e-7 * 0.75
        assert (np.diff(flow.risk) < 0).all()
        steps[t1] = int(flow.stats["num_steps"])
    # Rodas5P takes 388 and 7,456.
    assert steps[1e4] < 400 and steps[1e8] - steps[1e4] < 1_000
    early = gflow.solve_flow(wave, net, t1=1e4, ts=1e4 * times, rtol=1e-10, solver=gflow.Rodas5P())
    late = gflow.solve_flow(wave, net, t1=1e4, ts=1e4 * times, rtol=1e-8, solver=gflow.BDF5())
    np.testing.assert_allclose(late.risk, early.risk, rtol=1e-5)


@pytest.mark.slow
def test_the_error_is_honest(wave, smooth_net):
    run = lambda **options: gflow.solve_flow(wave, smooth_net, t1=300.0, ts=[300.0], **options)
    exact = run(solver=gflow.Rodas5P(), rtol=1e-12).final
    for rtol in (1e-5, 1e-6, 1e-7, 1e-8):
        flow = run(solver=gflow.BDF5(), rtol=rtol)
        assert 0.01 < distance(flow.final, exact) / norm(exact) / rtol < 30


@pytest.mark.slow
def test_any_diffeqsolve_in_both_directions():
    # Stiff, with the slow solution cos t; the state is a pytree.
    def field(t, y, args):
        del args
        return {"fast": -1e6 * (y["fast"] - jnp.cos(t)), "slow": -jnp.sin(t) * y["slow"]}

    solve: Any = eqx.filter_jit(
        lambda t0, t1, y0: diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            gflow.BDF5(),
            t0,
            t1,
            jnp.sign(t1 - t0) * 1e-3,
            y0,
            stepsize_controller=diffrax.PIDController(1e-8, 1e-10),
            saveat=diffrax.SaveAt(ts=jnp.linspace(t0, t1, 30)),
        )
    )
    y0 = {"fast": jnp.asarray(1.0), "slow": jnp.asarray(1.0)}
    solution = solve(0.0, 10.0, y0)
    t = solution.ts
    np.testing.assert_allclose(solution.ys["fast"], np.cos(t), atol=2e-6)
    np.testing.assert_allclose(solution.ys["slow"], np.exp(np.cos(t) - 1), rtol=1e-6)
    assert int(solution.stats["num_steps"]) < 500
    slow = lambda t, y, args: field(t, {"fast": jnp.cos(t), "slow": y["slow"]}, args)
    backwards: Any = diffrax.diffeqsolve(
        diffrax.ODETerm(slow),
        gflow.BDF5(),
        10.0,
        0.0,
        -1e-3,
        jax.tree.map(lambda a: a[-1], solution.ys),
        stepsize_controller=diffrax.PIDController(1e-8, 1e-10),
    )
    assert float(backwards.ys["slow"][0]) == pytest.approx(1.0, rel=1e-6)
