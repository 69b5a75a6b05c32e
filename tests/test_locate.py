"""Located kinks: oracles with exact times, trusted trajectories, orders, awkward inputs."""

from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow

KEY = jax.random.key(0)
DATA = Path(__file__).parent / "data"


def single_unit(w0: float) -> gflow.ShallowNet:
    """relu(w x), of which w is trained."""
    return gflow.ShallowNet.from_arrays([[w0]], None, [1.0], None)


def data(*pairs) -> gflow.EmpiricalRisk:
    x, y = zip(*pairs)
    return gflow.EmpiricalRisk(np.array(x, dtype=float).reshape(len(pairs), -1), np.array(y, float))


def solve(risk, net, t1, **options):
    return gflow.solve_flow(risk, net, t1=t1, **({"rtol": 1e-10} | options))


def kinks(flow) -> list[tuple[str, int, int]]:
    log = flow.kinks
    return list(zip(log.names, np.asarray(log.unit).tolist(), np.asarray(log.datum).tolist()))


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
    # The line w_1 = 0 is the kink of two data: the first hands the slide over to the second when
    # w_2 = 3, and the second ends it when w_2 = 4.
    ends = [float(time) for time, name in zip(flow.kinks.time, flow.kinks.names) if "ends" in name]
    assert ends == pytest.approx([np.log(1.25), end], abs=1e-8)
    np.testing.assert_allclose(w[-1], [-2 / 3, 16 / 3], atol=1e-8)
    assert w[t > 1, 0].max() < 0
    assert len(flow.kinks_at(0.5)) == 1 and flow.kinks_at(1.0) == set()


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
    expected = list(zip(r["event_neuron"], r["event_datum"], [kind[k] for k in r["event_kind"]]))
    got = [(unit, datum, name) for name, unit, datum in kinks(flow)]
    assert len(got) == len(expected)
    # Slides of several units on one datum end together: those within 1e-4 come in any order.
    ranks = np.searchsorted(r["event_t"], r["event_t"] - 1e-4)
    by_time = lambda rows: sorted(zip(ranks, rows), key=lambda pair: (pair[0], pair[1]))
    for (_, (unit, datum, name)), (_, (u, d, k)) in zip(by_time(got), by_time(expected)):
        assert (unit, datum) == (u, d) and name.startswith(k)
    # The error of a time is that of the parameters, 1e-9, by the speed at which the kink is met;
    # the slowest, and slides that end with none, are known to some 1e-5 only.
    late = np.abs(np.sort(np.asarray(flow.kinks.time)) - r["event_t"])
    assert np.median(late) < 1e-7 and late.max() < 1e-4


# ---- orders ---------------------------------------------------------------------------------


def small_problem():
    x = np.linspace(-1, 1, 12)
    risk = gflow.EmpiricalRisk(x[:, None], np.sin(3 * x))
    return risk, gflow.ShallowNet(1, 8, key=jax.random.key(4))


@pytest.fixture(scope="module")
def exact_end():
    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=12.0, rtol=1e-13, solver=diffrax.Dopri8())
    counts = flow.kinks.counts()
    crossings = counts["cross to active"] + counts["cross to inactive"]
    assert crossings >= 10 and counts["slide begins"] >= 1
    return flow


def distance(one, two) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two))
    return float(jnp.sqrt(sum(jnp.sum((a - b) ** 2) for a, b in pairs)))


@pytest.mark.parametrize(
    ("solver", "order", "sizes"),
    [
        (diffrax.Heun(), 2, (0.02, 0.01, 0.005)),
        (diffrax.Bosh3(), 3, (0.04, 0.02, 0.01)),
        (diffrax.Tsit5(), 5, (0.12, 0.06, 0.03)),
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
    assert observed > order - 0.4, errors


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
        np.testing.assert_array_equal(many.kinks.unit[k, :count], single.kinks.unit)
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


# ---- awkward inputs -------------------------------------------------------------------------


def test_equal_rows_are_one_kink():
    x, y = np.array([[-1.0], [0.2], [0.2], [1.0]]), np.array([1.0, -1.0, 0.0, 0.5])
    net = gflow.ShallowNet(1, 6, key=jax.random.key(2))
    repeated = solve(gflow.EmpiricalRisk(x, y), net, 20.0)
    merged = solve(
        gflow.EmpiricalRisk(x[[0, 1, 3]], y[[0, 1, 3]] + [0, 0.5, 0], [1, 2, 1]), net, 20.0
    )
    # The same gradient: the mean of two targets with twice the weight.
    np.testing.assert_allclose(repeated.params.w, merged.params.w, rtol=1e-8, atol=1e-8)
    assert 2 not in np.asarray(repeated.kinks.datum)


@pytest.mark.parametrize("seed", range(4))
def test_whole_number_columns(seed):
    rng = np.random.default_rng(seed)
    risk = gflow.EmpiricalRisk(rng.integers(0, 2, (20, 4)).astype(float), rng.normal(size=20))
    net = gflow.ShallowNet(4, 8, key=jax.random.key(seed))
    flow = solve(risk, net, 10.0)
    assert flow.succeeded and np.abs(flow.diagnostics.energy).max() < 1e-7
    assert (np.diff(flow.risk) <= 1e-12).all()


def test_units_that_are_zero_stay_zero():
    net = gflow.ShallowNet(2, 3, key=KEY)
    net = eqx.tree_at(lambda n: (n.w, n.b), net, (net.w.at[1].set(0), net.b.at[1].set(0)))
    x = jax.random.normal(KEY, (9, 2))
    flow = solve(gflow.EmpiricalRisk(x, x[:, 0]), net, 3.0)
    assert (flow.params.w[:, 1] == 0).all() and (flow.params.v[:, 1] == net.v[1]).all()


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_datum_at_the_origin_one_datum_and_one_unit(use_bias):
    net = gflow.ShallowNet(2, 1, key=KEY, use_bias=use_bias)
    for risk in (data(((0, 0), 1), ((1, 2), -1)), data(((1, 2), 3))):
        flow = solve(risk, net, 5.0)
        assert flow.succeeded and np.abs(flow.diagnostics.energy).max() < 1e-8


def test_a_start_on_kinks_takes_the_side_that_the_field_points_to():
    # At w = 0 the inactive side's field of the first datum's kink points to the active side.
    net = gflow.ShallowNet.from_arrays([[1.0], [-1.0]], [-0.5, 0.5], [1.0, 1.0], 0.0)
    risk = data((0.5, 2.0), (1.0, 2.0), (0.0, -1.0))
    flow = solve(risk, net, 10.0)
    assert flow.succeeded and np.abs(flow.diagnostics.energy).max() < 1e-8
    assert flow.risk[-1] < flow.risk[0]


# ---- budgets and stops ----------------------------------------------------------------------


def test_spent_budgets_keep_what_was_computed():
    risk, net = small_problem()
    for option, name in (({"max_kinks": 3}, "max_kinks"), ({"max_steps": 25}, "max_steps")):
        flow = solve(risk, net, 12.0, throw=False, **option)
        assert flow.result_name == f"{name}_reached" and 0 < flow.ts[-1] < 12
        assert np.isfinite(flow.risk).all() and np.isfinite(flow.grad_norm).all()
        with pytest.raises(gflow.TrajectoryError, match=f"budget.*`{name}`"):
            solve(risk, net, 12.0, **option)
    assert len(solve(risk, net, 12.0, throw=False, max_kinks=3).kinks) == 3


def test_stop_on_the_minimal_norm_subgradient():
    # O2 ends at a kink, where the subgradient of least norm is zero.
    risk, net = data((1, -1), (-1, -1)), single_unit(1.0)
    flow = solve(risk, net, 1e3, trainable=("w",), stop=gflow.Stop(grad_norm=1e-6))
    assert flow.result_name == "reached_grad_norm"
    assert flow.ts[-1] == pytest.approx(np.log(2), abs=1e-8)


def test_smooth_activations_pay_nothing(wave, smooth_net):
    flow = gflow.solve_flow(wave, smooth_net, t1=1.0)
    assert flow.kinks is None and flow.kinks_at(1.0) == set()


def test_the_log_survives_storage(tmp_path):
    from gflow.store import load_trajectory, save_trajectory

    risk, net = small_problem()
    flow = gflow.solve_flow(risk, net, t1=12.0, rtol=1e-6)
    save_trajectory(flow, tmp_path / "flow.zarr")
    again = load_trajectory(tmp_path / "flow.zarr")
    assert kinks(again) == kinks(flow)
    np.testing.assert_array_equal(again.kinks.time, flow.kinks.time)
    assert "crossings" in repr(flow)


def test_a_start_on_a_repelling_kink_is_said_to_be_one():
    # z = 2 − 2x is 0 at x = 1, where N is below the target: an active unit would be pulled up. The
    # datum at x = ½, where N is above, moves the kink away from the other side, too.
    risk = gflow.EmpiricalRisk(jnp.array([[1.0], [0.5]]), jnp.array([3.0, -1.0]))
    net = gflow.ShallowNet.from_arrays([[-2.0]], [2.0], [1.0], None)
    flow = gflow.solve_flow(risk, net, t1=0.1, trainable=("w", "b"))
    assert flow.succeeded and flow.result_name == "repelled_start"
    assert "inactive side" in flow.message
    assert float(flow.final.preactivations(risk.x[0])[0]) < 0
    raised = eqx.tree_at(lambda n: n.b, net, net.b + 1e-9)
    other = gflow.solve_flow(risk, raised, t1=0.1, trainable=("w", "b"))
    assert other.result_name == "successful"
    assert float(other.final.preactivations(risk.x[0])[0]) > 0


def test_ignored_kinks_say_how_many_steps_were_rejected():
    x = jnp.linspace(-1.0, 1.0, 40)
    risk = gflow.EmpiricalRisk(x[:, None], jnp.sin(3 * x))
    net = gflow.ShallowNet(1, 30, key=jax.random.key(0))
    with pytest.warns(UserWarning, match=r"of .* steps were rejected; kinks=\"locate\""):
        flow = gflow.solve_flow(risk, net, t1=20.0, rtol=1e-7, kinks="ignore")
    assert f"{int(flow.stats['num_rejected_steps']):,} of" in flow.summary()["kinks"]
    located = gflow.solve_flow(risk, net, t1=20.0, rtol=1e-7)
    assert located.advice() is None and "crossings" in located.summary()["kinks"]


def test_small_starts_are_followed_to_the_relative_tolerance():
    # Units of size 1e-8 that grow to 1: kinks are located by the units' own sizes, and errors of
    # the start grow with the units.
    x = jnp.linspace(-1.0, 1.0, 40)
    risk = gflow.EmpiricalRisk(x[:, None], jnp.sin(3 * x))
    options = {"init": "standard_normal", "scale": 1e-8}
    net = gflow.ShallowNet(1, 20, key=jax.random.key(1), **options)
    flow = gflow.solve_flow(risk, net, t1=60.0)
    other = gflow.solve_flow(risk, net, t1=60.0, rtol=1e-10)
    assert flow.kinks.counts() == other.kinks.counts()
    # Atol is the rounding of the field, 2e-16, so 2e-8 of the start, and half the units matter.
    assert gflow.compare(flow, other).largest < 3e-6


def test_slides_of_biases_alone_end():
    # One row holds a unit whose bias alone is trained, and yet the unit is not degenerate.
    rng = np.random.default_rng(13)
    x, y = np.linspace(-1, 1, 6)[:, None], 2 * rng.normal(size=6)
    net = gflow.ShallowNet.from_arrays(
        rng.normal(size=(2, 1)), rng.normal(size=2), rng.normal(size=2), 0.0
    )
    risk, trainable = gflow.EmpiricalRisk(x, y), ("b",)
    flow = gflow.solve_flow(risk, net, t1=20.0, trainable=trainable)
    assert flow.kinks.counts()["slide ends to active"] == 1
    clarke = gflow.clarke_gradient(risk, flow.final, trainable=trainable).b
    assert float(flow.grad_norm[-1]) == pytest.approx(float(jnp.linalg.norm(clarke)), rel=1e-6)


def test_fixed_steps_that_blow_up_say_so():
    x = np.linspace(-1, 1, 20)[:, None]
    risk = gflow.EmpiricalRisk(x, np.sin(3 * x[:, 0]))
    net = gflow.ShallowNet(1, 4, key=jax.random.key(0))
    flow = gflow.solve_flow(risk, net, t1=10.0, step_size=20.0, throw=False)
    assert flow.result_name == "nonfinite"
