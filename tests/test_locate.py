"""Located kinks: oracles with exact times, trusted trajectories, orders, transformations."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from benchmarks.reference_flows import NAMES, reference_flow
from tests.helpers.kink_problems import (
    KEY,
    KINDS,
    data,
    drawn,
    kinks,
    single_unit,
    small_problem,
    solve,
)
from tests.helpers.networks_as_vectors import distance, flat, norm, stacked

# ---- closed forms ---------------------------------------------------------------------------


def test_crossing_at_its_exact_time():
    # O1: both kinks meet at w = 0, at t = log 2.
    flow = solve(data((1, 2), (-1, -1)), single_unit(-1.0), 3.0, trainable=("w",))
    t = np.asarray(flow.ts)
    exact = np.where(t < np.log(2), 1 - 2 * np.exp(-t), 2 - 2 * np.exp(-(t - np.log(2))))
    np.testing.assert_allclose(flow.params.w[:, 0, 0], exact, atol=1e-9)
    np.testing.assert_allclose(flow.kinks.time, np.log(2), atol=1e-9)
    assert sorted(kinks(flow)) == [("cross to active", 0, 0), ("cross to inactive", 0, 1)]


def test_stop_in_finite_time():
    # O2: w reaches 0 at log(1 + w0) and stays; the risk there is 1, and so is its minimum.
    w0 = 1.5
    flow = solve(data((1, -1), (-1, -1)), single_unit(w0), 4.0, trainable=("w",))
    t, stop = np.asarray(flow.ts), np.log(1 + w0)
    exact = np.where(t < stop, (1 + w0) * np.exp(-t) - 1, 0.0)
    np.testing.assert_allclose(flow.params.w[:, 0, 0], exact, atol=1e-9)
    assert flow.kinks.time[0] == pytest.approx(stop, abs=1e-9)
    assert flow.risk[-1] == pytest.approx(1.0, abs=1e-12)
    # The minimal-norm subgradient is zero there, the generalized gradient too (both sides dead).
    assert flow.grad_norm[-1] < 1e-10 < flow.grad_norm[0]


def test_no_spurious_stop_where_the_generalized_gradient_vanishes():
    # O3: analytic in w, although G(0) = 0.
    flow = solve(data((1, 1), (-1, -1)), single_unit(-1.0), 3.0, trainable=("w",))
    t = np.asarray(flow.ts)
    np.testing.assert_allclose(flow.params.w[:, 0, 0], 1 - 2 * np.exp(-t), atol=1e-9)


@pytest.mark.slow
def test_sliding_and_its_end_from_a_start_on_two_kinks():
    # O4, in which the mean of four squares runs at half the speed of half their sum.
    risk = data((1, 0, -1), (-1, 0, -1), (1, 1, 3), (0, 1, 7))
    flow = solve(risk, single_unit(0.0, 2.5), 40.0, trainable=("w",), ts=np.linspace(0, 40, 401))
    t, end = np.asarray(flow.ts), np.log(2.5)
    w = np.asarray(flow.params.w[:, 0])
    slides = t < end
    np.testing.assert_allclose(w[slides, 0], 0, atol=1e-9)
    np.testing.assert_allclose(w[slides, 1], 5 - 2.5 * np.exp(-t[slides]), atol=1e-9)
    # The line w_1 = 0 is the kink of two data, which slide together until w_2 = 4.
    assert sorted(kinks(flow)[2:]) == [
        ("slide ends to active", 0, 1),
        ("slide ends to inactive", 0, 0),
    ]
    assert np.asarray(flow.kinks.time)[2:] == pytest.approx([end, end], abs=1e-8)
    np.testing.assert_allclose(w[-1], [-2 / 3, 16 / 3], atol=1e-8)
    assert w[t > 1, 0].max() < 0
    assert (
        flow.kinks.sliding_at(0.5) == {(0, 0, 0), (0, 0, 1)} and flow.kinks.sliding_at(1.0) == set()
    )
    begins = np.asarray(flow.kinks.time)[:2]
    for slides, until in (
        (flow.kinks.slides(40.0), end),
        (flow.kinks.within(0.0, 0.5).slides(0.5), 0.5),  # under way
    ):
        assert {slide.datum for slide in slides} == {0, 1}
        assert [slide.begin for slide in slides] == pytest.approx(begins, abs=1e-12)
        assert [slide.end for slide in slides] == pytest.approx([until, until], abs=1e-8)


# ---- trusted trajectories -------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def reference(request):
    known = reference_flow(request.param)
    return known, gflow.solve_flow(known.risk, known.net, t1=known.t1, ts=known.ts, rtol=1e-10)


@pytest.mark.slow
def test_parameters_of_the_references(reference):
    known, flow = reference
    for k, expected in enumerate(known.params):
        assert np.linalg.norm(flat(flow[k]) - expected) < 1e-7 * np.linalg.norm(expected)
    np.testing.assert_allclose(flow.risk, known.risks, rtol=1e-7)
    assert np.abs(flow.diagnostics.energy).max() < 1e-7


@pytest.mark.slow
def test_kinks_of_the_references(reference):
    known, flow = reference
    expected_times = [kink.time for kink in known.kinks]
    times, log = np.asarray(flow.kinks.time).tolist(), kinks(flow)
    got = [(t, unit, datum, name.split(" to ")[0]) for t, (name, unit, datum) in zip(times, log)]
    assert len(got) == len(known.kinks)
    # Slides of several units on one datum end at one time, in any order.
    together = np.cumsum(np.diff(expected_times, prepend=0) > 1e-7).tolist()
    order = lambda events: [of for _, of in sorted((k, e[1:]) for k, e in zip(together, events))]
    assert order(got) == order(known.kinks)
    np.testing.assert_allclose(times, expected_times, atol=1e-6)


@pytest.mark.slow
@pytest.mark.slow
def test_units_that_are_zero_hold_nothing_up():
    """All their pairs are on kinks, more than one step has room for, and stay there."""
    x = np.linspace(-1, 1, 60)
    risk = gflow.EmpiricalRisk(x[:, None], np.sin(4 * x))
    rng, zeros = np.random.default_rng(0), np.zeros(30)
    w, b, v = (np.concatenate([0.5 * rng.normal(size=10), zeros]) for _ in range(3))
    net = gflow.ShallowNet.from_arrays(w[:, None], b, v, 0.0)
    flow = gflow.solve_flow(risk, net, t1=2.0, ts=[2.0], rtol=1e-4, max_steps=1_000)
    alone = gflow.ShallowNet.from_arrays(w[:10, None], b[:10], v[:10], 0.0)
    alone = gflow.solve_flow(risk, alone, t1=2.0, ts=[2.0], rtol=1e-4)
    assert flow.stats["num_kinks"] == alone.stats["num_kinks"] > 5
    assert flow.stats["num_rejected_steps"] <= alone.stats["num_rejected_steps"] + 10
    assert float(flow.risk[-1]) == pytest.approx(float(alone.risk[-1]), rel=1e-3)
    assert not np.any(flow.final.w[10:]) and not np.any(flow.final.v[10:])


def test_errors_of_the_state_do_not_lead_back_onto_kinks():
    known = reference_flow("sine_d1_w50_n100")
    flow = gflow.solve_flow(known.risk, known.net, t1=known.t1, ts=known.ts, rtol=1e-4)
    # Slides that had just ended would begin and end again, twenty times.
    begun = [kink for kink in known.kinks if kink.kind == "slide begins"]
    assert len(flow.kinks.time) == len(known.kinks)
    assert flow.kinks.counts()["slide begins"] == len(begun)


# ---- orders ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact_end():
    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=12.0, rtol=1e-13, solver=diffrax.Dopri8())
    counts = flow.kinks.counts()
    crossings = counts["cross to active"] + counts["cross to inactive"]
    assert crossings >= 10 and counts["slide begins"] >= 1
    return flow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "order", "sizes"),
    [
        (diffrax.Heun(), 2, (0.02, 0.01, 0.005)),
        (diffrax.Tsit5(), 5, (0.12, 0.06, 0.03)),
        (diffrax.Kvaerno3(), 3, (0.02, 0.01, 0.005)),
    ],
)
def test_full_order_through_kinks_and_slides(solver, order, sizes, exact_end):
    risk, net = small_problem()
    errors = [
        distance(
            gflow.solve_flow(risk, net, t1=12.0, step_size=h, solver=solver).final, exact_end.final
        )
        for h in sizes
    ]
    observed = np.log(errors[0] / errors[-1]) / np.log(sizes[0] / sizes[-1])
    assert observed > order - 0.2, errors


@pytest.mark.slow
def test_gradient_descent_has_order_one_through_crossings_and_slides(exact_end):
    risk, net = small_problem()
    sizes = 0.02 / 2.0 ** np.arange(5)
    ends = [
        gflow.descend(risk, net, step_size=h, num_steps=round(12.0 / h), record=2).final
        for h in sizes
    ]
    order = gflow.observed_order(sizes, [distance(end, exact_end.final) for end in ends])
    assert order.value == pytest.approx(1.0, abs=0.03)


@pytest.mark.slow
def test_the_field_norm_is_the_speed_also_on_slides():
    risk, net = small_problem()
    step, times = 1e-4, np.linspace(0.5, 11.5, 40)
    ts = (times[:, None] + step * np.array([-1, 0, 1])).ravel()
    flow = solve(risk, net, 12.0, ts=ts)
    speeds = [distance(flow[k - 1], flow[k + 1]) / (2 * step) for k in range(1, len(ts), 3)]
    # No kink lies between; relative errors of central differences are here below 2e-8.
    np.testing.assert_allclose(flow.grad_norm[1::3], speeds, rtol=1e-7)
    # The generalized gradient is another field on slides, by 1 % and more.
    sliding = next(k for k in range(len(ts)) if flow.kinks.sliding_at(ts[k]))
    assert norm(gflow.generalized_gradient(risk, flow[sliding])) > 1.01 * flow.grad_norm[sliding]


def test_the_drifts_follow_the_tolerance():
    risk, net = small_problem()
    for rtol in (1e-6, 1e-10):
        flow = gflow.solve_flow(risk, net, t1=12.0, rtol=rtol)
        # Measured are 0.17 rtol and 0.015 rtol.
        assert np.abs(flow.diagnostics.energy).max() < rtol
        assert np.abs(flow.diagnostics.balance).max() < 0.1 * rtol


# ---- the same under transformations ---------------------------------------------------------


@pytest.mark.slow
def test_vmap_gives_the_single_runs():
    risk, _ = small_problem()
    draw = lambda key: gflow.ShallowNet(1, 8, key=key)
    run = lambda net: gflow.solve_flow(risk, net, t1=3.0)
    nets = [draw(key) for key in jax.random.split(KEY, 6)]
    many = jax.tree.map(np.asarray, eqx.filter_jit(eqx.filter_vmap(run))(stacked(nets)))
    for k, net in enumerate(nets):
        single = jax.tree.map(np.asarray, run(net))
        np.testing.assert_allclose(many.risk[k], single.risk, rtol=1e-7)
        count = len(single.kinks)
        # Slides of several units on one datum end at one time, in any order.
        together = np.cumsum(np.diff(single.kinks.time, prepend=0) > 1e-7)
        got, wanted = (
            np.lexsort((u, together)) for u in (many.kinks.unit[k, :count], single.kinks.unit)
        )
        np.testing.assert_array_equal(many.kinks.unit[k, :count][got], single.kinks.unit[wanted])
        np.testing.assert_allclose(many.kinks.time[k, :count], single.kinks.time, atol=1e-6)
        assert np.isinf(many.kinks.time[k, count:]).all()


def test_pieces_and_whole_are_the_same():
    risk, net = small_problem()
    whole, pieces = (solve(risk, net, 5.0, progress=progress) for progress in (False, True))
    np.testing.assert_allclose(whole.params.w, pieces.params.w, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(whole.kinks.kind, pieces.kinks.kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [*KINDS, {"loss": lambda p, t: jnp.sum((p - t) ** 2 + (p - t) ** 4 / 4), "out_size": 2}],
    ids=lambda case: "-".join(case) or "default",
)
def test_descent_converges_to_the_located_flow_for_every_kind_of_problem(case):
    risk, net, trainable = drawn(**case)
    flow = solve(risk, net, 2.0, rtol=1e-8, ts=[2.0], trainable=trainable)
    coarse, fine = (
        gflow.descend(risk, net, step_size=h, num_steps=round(2 / h), record=2, trainable=trainable)
        for h in (3.2e-3, 2e-4)
    )
    gaps = [distance(run.final, flow.final) for run in (coarse, fine)]
    # A sixteenth of the step: chattering along slides makes single ratios rough.
    assert gaps[1] < gaps[0] / 8 + 1e-7
    assert np.abs(flow.diagnostics.energy).max() < 1e-5
