"""Located kinks: oracles with exact times, trusted trajectories, orders, transformations."""

from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from located import KEY, data, distance, kinks, single_unit, small_problem, solve

import gflow

DATA = Path(__file__).parent / "data"


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


def test_sliding_and_its_end_from_a_start_on_two_kinks():
    # O4, in which the mean of four squares runs at half the speed of half their sum.
    risk = data(((1, 0), -1), ((-1, 0), -1), ((1, 1), 3), ((0, 1), 7))
    net = gflow.ShallowNet.from_arrays([[0.0, 2.5]], None, [1.0], None)
    flow = solve(risk, net, 40.0, trainable=("w",), ts=np.linspace(0, 40, 401))
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
    assert flow.kinks.sliding_at(0.5) == {(0, 0), (0, 1)} and flow.kinks.sliding_at(1.0) == set()


# ---- trusted trajectories -------------------------------------------------------------------

REFERENCES = ("diabetes_w16_n60", "sine_d1_w20_n40", "sine_d1_w50_n100", "sine_d2_w30_n80")


@pytest.fixture(scope="module", params=REFERENCES)
def reference(request):
    r = np.load(DATA / f"{request.param}.npz")
    net = gflow.ShallowNet.from_arrays(r["w0"], r["b0"], r["v0"], r["c0"])
    risk = gflow.EmpiricalRisk(r["X"], r["y"])
    return r, gflow.solve_flow(risk, net, t1=float(r["t"][-1]), ts=r["t"], rtol=1e-10)


def test_parameters_of_the_references(reference):
    r, flow = reference
    for k in range(len(r["t"])):
        got = [np.ravel(getattr(flow.params, name)[k]) for name in "wbvc"]
        expected = [np.ravel(r[name][k]) for name in "wbvc"]
        apart = np.linalg.norm(np.concatenate(got) - np.concatenate(expected))
        assert apart < 1e-7 * np.linalg.norm(np.concatenate(expected))
    np.testing.assert_allclose(flow.risk, r["risk"], rtol=1e-7)
    assert np.abs(flow.diagnostics.energy).max() < 1e-7


def test_kinks_of_the_references(reference):
    r, flow = reference
    kind = {"cross": "cross", "slide": "slide begins", "exit": "slide ends"}
    expected = [
        (time, unit, datum, kind[name])
        for time, unit, datum, name in zip(
            *(r[f"event_{of}"].tolist() for of in ("t", "neuron", "datum", "kind"))
        )
    ]
    times, log = np.asarray(flow.kinks.time).tolist(), kinks(flow)
    got = [(t, unit, datum, name.split(" to ")[0]) for t, (name, unit, datum) in zip(times, log)]
    assert len(got) == len(expected)
    # Slides of several units on one datum end at one time, in any order.
    together = np.cumsum(np.diff(r["event_t"], prepend=0) > 1e-7).tolist()
    order = lambda events: [of for _, of in sorted((k, e[1:]) for k, e in zip(together, events))]
    assert order(got) == order(expected)
    np.testing.assert_allclose(times, r["event_t"], atol=1e-6)


def test_errors_of_the_state_do_not_lead_back_onto_kinks():
    r = np.load(DATA / "sine_d1_w50_n100.npz")
    net = gflow.ShallowNet.from_arrays(r["w0"], r["b0"], r["v0"], r["c0"])
    risk = gflow.EmpiricalRisk(r["X"], r["y"])
    flow = gflow.solve_flow(risk, net, t1=float(r["t"][-1]), ts=r["t"], rtol=1e-4)
    # Slides that had just ended would begin and end again, twenty times.
    assert len(flow.kinks.time) == len(r["event_t"])
    assert flow.kinks.counts()["slide begins"] == np.sum(r["event_kind"] == "slide")


# ---- orders ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact_end():
    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=12.0, rtol=1e-13, solver=diffrax.Dopri8())
    counts = flow.kinks.counts()
    crossings = counts["cross to active"] + counts["cross to inactive"]
    assert crossings >= 10 and counts["slide begins"] >= 1
    return flow


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


def test_gradient_descent_has_order_one_through_crossings_and_slides(exact_end):
    risk, net = small_problem()
    sizes = 0.02 / 2.0 ** np.arange(5)
    ends = [
        gflow.descend(risk, net, step_size=h, num_steps=round(12.0 / h), record=2).final
        for h in sizes
    ]
    order = gflow.observed_order(sizes, [distance(end, exact_end.final) for end in ends])
    assert order.value == pytest.approx(1.0, abs=0.03)


def test_the_field_norm_is_the_speed_and_the_energy_drift_follows_the_tolerance():
    risk, net = small_problem()
    drifts = []
    for rtol in (1e-6, 1e-10):
        flow = gflow.solve_flow(risk, net, t1=12.0, rtol=rtol)
        drifts.append(float(np.abs(flow.diagnostics.energy).max()))
        assert np.abs(flow.diagnostics.balance).max() < 1e3 * rtol
    assert drifts[1] < 1e-8 < 1e-4 > drifts[0] and drifts[1] < 1e-2 * drifts[0]


# ---- the same under transformations ---------------------------------------------------------


def test_vmap_gives_the_single_runs():
    risk, _ = small_problem()
    draw = lambda key: gflow.ShallowNet(1, 8, key=key)
    run = lambda net: gflow.solve_flow(risk, net, t1=3.0, max_kinks=200)
    nets = [draw(key) for key in jax.random.split(KEY, 16)]
    many = eqx.filter_jit(eqx.filter_vmap(run))(jax.tree.map(lambda *a: jnp.stack(a), *nets))
    for k, net in enumerate(nets):
        single = run(net)
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


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"activation": "leaky_relu(0.2)"},
        {"out_size": 2},
        {"loss": "logistic"},
        {"loss": lambda p, t: jnp.sum((p - t) ** 2 + (p - t) ** 4 / 4), "out_size": 2},
        {"trainable": ("w", "b")},
        {"trainable": ("b", "v")},
        {"trainable": ("w", "c"), "activation": "leaky_relu(0.2)"},
        {"use_bias": False, "output_scale": 0.5},
    ],
    ids=lambda case: "-".join(case) or "default",
)
def test_descent_converges_to_the_located_flow_for_every_kind_of_problem(case):
    rng = np.random.default_rng(3)
    case = {"out_size": "scalar", "loss": "squared", "trainable": None} | case
    out_size, loss, trainable = (case.pop(name) for name in ("out_size", "loss", "trainable"))
    x = rng.normal(size=(8, 2))
    y = rng.normal(size=(8,) if out_size == "scalar" else (8, 2))
    risk = gflow.EmpiricalRisk(
        x, np.sign(y) if loss == "logistic" else y, rng.uniform(0.5, 1, 8), loss
    )
    net = gflow.ShallowNet(2, 5, out_size, key=KEY, **case)
    flow = solve(risk, net, 2.0, rtol=1e-8, ts=[2.0], trainable=trainable)
    coarse, fine = (
        gflow.descend(risk, net, step_size=h, num_steps=round(2 / h), record=2, trainable=trainable)
        for h in (3.2e-3, 2e-4)
    )
    gaps = [distance(run.final, flow.final) for run in (coarse, fine)]
    # A sixteenth of the step: chattering along slides makes single ratios rough.
    assert gaps[1] < gaps[0] / 8 + 1e-7
    assert np.abs(flow.diagnostics.energy).max() < 1e-5
