"""Stabilised explicit solvers: orders, stability, honest errors, and the flows they follow."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings, strategies as st

import gflow
from benchmarks.reference_flows import reference_flow
from gflow.solvers import rock4 as rock, stabilised
from tests.helpers.networks_as_vectors import flat

SOLVERS = [gflow.RKC2(), gflow.ROCK4()]
either = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)


def reach(solver, s: int) -> float:
    """The stated bound of stability."""
    if isinstance(solver, gflow.RKC2):
        return 2 / 3 * (s**2 - 1) * (1 - 2 / 15 * 2 / 13)
    return rock.coefficients(s).reach


def stage_numbers(solver) -> tuple[int, ...]:
    return (2, 3, 5, 12, 60, 200) if isinstance(solver, gflow.RKC2) else (5, 6, 9, 14, 25)


@eqx.filter_jit
def steps(solver, field, y0, stages, count, h, t0=0.0):
    """`count` steps with a fixed number of stages."""
    t0, h = jnp.asarray(t0), jnp.asarray(h)

    def one(k, y):
        t = t0 + k * h
        return y + solver.advance(field, t, h, y, field(t, y), stages).change

    return jax.lax.fori_loop(0, count, one, y0)


def decay(rates, still=0.0):
    return jax.tree_util.Partial(_decay, rates, still + 0 * rates)


def _decay(rates, still, t, y):
    return -rates * (y - still)


# ---- order ----------------------------------------------------------------------------------


def pendulum(t, y):
    """Nonlinear, coupled and driven, so that every order condition up to the fourth matters."""
    x, v, w = y
    like = jnp if isinstance(y, jax.Array) else np
    return like.stack([v * w, -like.sin(x) - 0.3 * v + like.cos(t), x * v - w**2 + t])


@either
@pytest.mark.parametrize("s", [5, 13])
def test_observed_order(solver, s):
    y0, t1 = np.array([0.5, 0.2, 1.0]), 2.0
    exact = scipy.integrate.solve_ivp(pendulum, (0, t1), y0, "DOP853", rtol=1e-13, atol=1e-14)
    counts = np.array([40, 80, 160])
    ends = [steps(solver, pendulum, jnp.asarray(y0), jnp.asarray(s), n, t1 / n) for n in counts]
    errors = [np.linalg.norm(y - exact.y[:, -1]) for y in ends]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders[-1] == pytest.approx(solver.order(None), abs=0.1)


@pytest.mark.parametrize("s", [5, 6, 11, 30, 150])
def test_order_conditions_of_rock4(s):
    # All eight conditions in their usual form, from the full tableau.
    made = rock.coefficients(s)
    m = s - 4
    rows = np.zeros((s + 1, s + 1))
    for j, (mu, nu) in enumerate(zip(made.mu, made.nu), start=1):
        rows[j] = nu * rows[j - 1] + (1 - nu) * (rows[j - 2] if j > 1 else 0)
        rows[j, j - 1] += mu
    start = rows[m].copy()
    for k in range(1, 5):
        rows[m + k] = start
        rows[m + k, m : m + k] += made.last[k, :k]
    a, b = rows[:s, :s], rows[s, :s]
    c = a.sum(axis=1)
    np.testing.assert_allclose(c[:m], made.times, atol=1e-12)
    np.testing.assert_allclose(c[m:], made.last_times[:4], atol=1e-12)
    trees = [np.ones(s), c, c**2, a @ c, c**3, c * (a @ c), a @ c**2, a @ a @ c]
    found = np.array([b @ tree for tree in trees])
    np.testing.assert_allclose(found, 1 / np.array([1, 2, 3, 6, 4, 8, 12, 24]), atol=1e-12)
    # The estimate vanishes to third order, and not to fourth; its fifth field is that of y1.
    at_end = np.array([1, 1, 1, 1 / 2, 1, 1 / 2, 1 / 3, 1 / 6])
    estimate = np.array(trees)[:, m:] @ made.last[5, :4] + made.last[5, 4] * at_end
    assert np.abs(estimate[:4]).max() < 1e-13 and np.abs(estimate[4:]).max() > 1e-4


# ---- stability ------------------------------------------------------------------------------


@either
def test_stable_up_to_the_stated_bound(solver):
    size = 4001
    for s in stage_numbers(solver):
        bound = reach(solver, s)
        rates = jnp.linspace(0.0, bound, size)
        growth = steps(solver, decay(rates), jnp.ones(size), jnp.asarray(s), 1, 1.0)
        growth = np.abs(np.asarray(growth))
        # Damped to about 0.95 beyond the first decay, which follows exp(−z).
        assert growth.max() <= 1 and growth[rates > 2.5].max(initial=0.0) < 0.96
        assert int(solver.stages(jnp.asarray(0.999 * bound))) == s
        assert int(solver.stages(jnp.asarray(1.001 * bound))) == s + 1


@either
def test_small_positive_eigenvalues_do_no_harm(solver):
    for s in stage_numbers(solver)[1:]:
        rates = jnp.linspace(-0.3, 0.0, 31)
        growth = steps(solver, decay(rates), jnp.ones(31), jnp.asarray(s), 1, 1.0)
        # The first neglected term, of order 3 or 5, with a coefficient below 1/order!.
        bound = 0.3**3 / 6 if solver.order(None) == 2 else 0.3**5 / 120
        assert np.abs(np.asarray(growth) - np.exp(-np.asarray(rates))).max() < bound


@either
def test_roundings_grow_no_more_than_stated(solver):
    # At rest, with the stiffest spectrum that s stages allow, all motion is rounding error.
    still = 1.0 + jnp.sin(jnp.arange(4001.0))
    eps = float(jnp.finfo(still.dtype).eps)
    few = isinstance(solver, gflow.RKC2)
    for s in (200, 1000) if few else (20, 40):
        rates = jnp.linspace(0.0, reach(solver, s), 4001)
        y = steps(solver, decay(rates, still), still + eps, jnp.asarray(s), 20, 1.0)
        moved = jnp.abs(y - still).max()
        # Twenty steps, each of which damps the errors of those before.
        assert moved < eps * (10 * s if few else 20 * 6e-4 * s**8)


# ---- errors ---------------------------------------------------------------------------------


@eqx.filter_jit
def _adaptive(solver, field, y0, t1, tol):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        t1,
        1e-4,
        y0,
        stepsize_controller=diffrax.PIDController(tol, tol, pcoeff=0.3, icoeff=0.4),
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
        max_steps=100_000,
        throw=False,
    )


def adaptive(solver, field, y0, t1, tol):
    return _adaptive(solver, field, y0, jnp.asarray(t1), jnp.asarray(tol))


def end(solution: diffrax.Solution, which=-1):
    assert solution.ys is not None
    return jax.tree.map(lambda ys: ys[which], solution.ys)


def weighted(error, y) -> float:
    return float(jnp.sqrt(jnp.mean((error / (1 + jnp.abs(y))) ** 2)))


RATES = jnp.logspace(-2, 3, 50)


def relaxation(t, y, args):
    return -RATES * (y - 1)


@either
def test_errors_are_honest_on_a_linear_flow(solver):
    exact = 1 - jnp.exp(-RATES * 10)
    for tol in (1e-4, 1e-5, 1e-6, 1e-7):
        solution = adaptive(solver, relaxation, jnp.zeros(50), 10.0, tol)
        assert 0.01 < weighted(end(solution) - exact, exact) / tol < 30
        # The product of the time and the spectral radius is 10,000.
        assert int(solution.solver_state.work.evaluations) < 4000


@pytest.fixture(scope="module")
def smooth_field(wave, smooth_net):
    theta, unravel = jax.flatten_util.ravel_pytree(eqx.filter(smooth_net, eqx.is_inexact_array))
    rest = eqx.filter(smooth_net, eqx.is_inexact_array, inverse=True)
    gradient = jax.grad(lambda th: wave(eqx.combine(unravel(th), rest)))
    field = lambda t, y, args: -gradient(y)
    tight = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        0.0,
        30.0,
        1e-3,
        theta,
        stepsize_controller=diffrax.PIDController(1e-11, 1e-11),
        max_steps=100_000,
    )
    return field, theta, end(tight)


@pytest.mark.slow
@either
def test_errors_are_honest_on_the_flow_of_a_network(solver, smooth_field):
    field, theta, exact = smooth_field
    for tol in (1e-4, 1e-5, 1e-6, 1e-7):
        found = end(adaptive(solver, field, theta, 30.0, tol))
        assert 0.01 < weighted(found - exact, exact) / tol < 30


# ---- spectral radius ------------------------------------------------------------------------


@jax.jit
def power(matrix, start):
    return stabilised.spectral_radius(lambda v: matrix @ v, start, jnp.zeros(()))


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from(["indefinite", "negative", "decaying"]))
def test_spectral_radius_with_its_safety(seed, kind):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(80, 80))
    if kind == "decaying":
        q, _ = np.linalg.qr(a)
        matrix = -(q / np.arange(1, 81)) @ q.T
    else:
        matrix = a + a.T if kind == "indefinite" else -a @ a.T
    radius, vector, products = power(jnp.asarray(matrix), jnp.asarray(rng.normal(size=80)))
    exact = np.abs(np.linalg.eigvalsh(matrix)).max()
    assert 1 <= stabilised._SAFETY * float(radius) / exact <= 1.3
    assert int(products) < 100
    # Continued from there, one product is enough.
    again = stabilised.spectral_radius(lambda v: jnp.asarray(matrix) @ v, vector, radius)
    assert int(again.num_products) == 1 and float(again.radius) >= float(radius)


def test_no_field_has_no_radius():
    solution = adaptive(SOLVERS[0], lambda t, y, args: 0.0 * y, jnp.ones(3), 10.0, 1e-4)
    assert (end(solution) == 1).all() and float(solution.solver_state.radius) == 0


@either
def test_a_mode_that_grows_stiff_is_noticed(solver):
    def field(t, y, args):
        rates = jnp.stack([jnp.asarray(1000.0), 10 + 4000 * jnp.maximum(t - 1, 0.0)])
        return -rates * (y - jnp.stack([jnp.cos(t), jnp.sin(t)]))

    solution = adaptive(solver, field, jnp.ones(2), 3.0, 1e-4)
    # The quasi-stationary solution f − f'/λ + f''/λ².
    exact = [np.cos(3) + np.sin(3) / 1000, np.sin(3) - np.cos(3) / 8010]
    np.testing.assert_allclose(end(solution), exact, atol=1e-3)
    assert float(solution.solver_state.radius) > 7000


# ---- the solver interface -------------------------------------------------------------------


def test_work_is_counted():
    seen = []

    def field(t, y, args):
        jax.debug.callback(lambda: seen.append(None))
        return relaxation(t, y, args)

    solution = adaptive(SOLVERS[1], field, jnp.zeros(50), 1.0, 1e-5)
    jax.effects_barrier()
    work = solution.solver_state.work
    assert int(solution.stats["num_rejected_steps"]) == 0
    assert len(seen) == int(work.evaluations) + int(work.products)


@pytest.mark.slow
@either
def test_pytrees_backwards_and_batches(solver):
    def field(t, y, args):
        return {"a": -args * y["b"], "b": args * y["a"]}

    def solve(rate, t1):
        return end(
            diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                solver,
                1.0,
                t1,
                -0.01,
                {"a": jnp.ones(2), "b": jnp.zeros(2)},
                rate,
                saveat=diffrax.SaveAt(ts=[0.5, 0.0]),
                stepsize_controller=diffrax.PIDController(1e-6, 1e-6),
            ),
            slice(None),
        )

    rates = jnp.array([1.0, 2.0])
    found = jax.vmap(solve, (0, None))(rates, 0.0)
    angles = np.outer(rates, [0.5, 1.0])[:, :, None] * np.ones(2)
    # The tolerance is that of one step, of which there are some hundred.
    np.testing.assert_allclose(found["a"], np.cos(angles), atol=2e-4)
    np.testing.assert_allclose(found["b"], -np.sin(angles), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [gflow.RKC2(max_stages=10), gflow.ROCK4(max_stages=10)])
def test_steps_of_too_many_stages_are_rejected(solver):
    solution = adaptive(solver, relaxation, jnp.zeros(50), 5.0, 1e-4)
    assert solution.result == diffrax.RESULTS.successful
    assert int(solution.stats["num_rejected_steps"]) > 0
    np.testing.assert_allclose(end(solution), 1 - jnp.exp(-RATES * 5), atol=1e-3)
    kept, work = solution.stats["num_accepted_steps"], solution.solver_state.work
    assert int(work.evaluations) <= 10 * int(kept) + 1


def test_misuse():
    with pytest.raises(gflow.ArgumentError, match="max_stages"):
        gflow.RKC2(max_stages=1)
    with pytest.raises(gflow.ArgumentError, match="max_stages"):
        gflow.ROCK4(max_stages=151)


@pytest.mark.slow
@either
def test_memory_of_a_solve(solver):
    # 40 vectors of parameters are allowed, whatever the number of stages.
    size = 100_000
    rates = jnp.linspace(0.0, 1e4, size)
    field = lambda t, y, args: -args * y

    def solve(y0, rates):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            0.0,
            1.0,
            1e-4,
            y0,
            rates,
            stepsize_controller=diffrax.PIDController(1e-4, 1e-4),
            saveat=diffrax.SaveAt(t1=True),
            adjoint=diffrax.ForwardMode(),
        ).ys

    memory = jax.jit(solve).lower(jnp.ones(size), rates).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 40 * 8 * size


# ---- flows ----------------------------------------------------------------------------------


@pytest.mark.slow
@either
def test_the_flow_of_a_smooth_network(solver, wave, smooth_net, smooth_field):
    _, _, exact = smooth_field
    options = {"t1": 30.0, "ts": [30.0], "rtol": 1e-6, "solver": solver}
    flow = gflow.solve_flow(wave, smooth_net, **options)
    np.testing.assert_allclose(flat(flow.final), exact, atol=3e-5)
    assert 0 < flow.stats["num_hessian_products"] < flow.stats["num_field_evaluations"] / 10
    assert flow.stats["num_field_evaluations"] >= 2 * flow.stats["num_steps"]
    # The errors of the dissipation add up, each near the tolerance.
    assert jnp.abs(flow.diagnostics.energy).max() < 1e-6 * flow.stats["num_steps"]
    if isinstance(solver, gflow.ROCK4):
        in_pieces = gflow.solve_flow(wave, smooth_net, **options, progress=True)
        assert in_pieces.stats["num_hessian_products"] == flow.stats["num_hessian_products"]


@pytest.mark.slow
@either
def test_located_kinks_of_a_reference(solver):
    known = reference_flow("sine_d1_w20_n40")
    options = {"t1": known.t1, "ts": [known.t1], "rtol": 1e-6, "solver": solver}
    flow = gflow.solve_flow(known.risk, known.net, **options)
    exact = known.params[-1]
    assert np.linalg.norm(flat(flow.final) - exact) < 5e-6 * np.linalg.norm(exact)
    assert len(flow.kinks.time) == len(known.kinks)
    times = np.sort(flow.kinks.time)
    wanted = np.sort([kink.time for kink in known.kinks])
    np.testing.assert_allclose(times, wanted, rtol=1e-3, atol=1e-3)
    assert flow.stats["num_hessian_products"] > 0


@pytest.mark.slow
def test_slides_that_end_do_not_begin_again_without_end():
    known = reference_flow("sine_d1_w20_n40")
    options = {"t1": 1e4, "ts": [1e4], "solver": gflow.ROCK4()}
    close = gflow.solve_flow(known.risk, known.net, rtol=3e-7, **options)
    assert close.kinks.counts()["slide begins"] == 18
    # Errors of stiff modes end slides too early: without slack thousands of slides would follow.
    loose = gflow.solve_flow(known.risk, known.net, rtol=1e-5, throw=False, **options)
    assert loose.ts[-1] == 1e4 and loose.kinks.counts()["slide begins"] < 1_000
    # Near its infimum the risk rises by λ|Δθ|²/2, with the relative error that was asked for.
    most = gflow.sharpness(known.risk, close.final) * np.sum((1e-5 * flat(close.final)) ** 2) / 2
    assert abs(loose.risk[-1] - close.risk[-1]) < most
