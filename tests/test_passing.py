"""Kinks that the tolerance cannot feel are passed, and what they do to the flow is made good."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from benchmarks.reference_flows import reference_flow
from gflow.flow import loop
from gflow.parameters import flat, split_trainable

T1 = 6.0
TS = np.linspace(0.02, T1, 150)


def theta(net):
    return np.asarray(flat(split_trainable(net)[0]))


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(70, 4))
    y = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.3 * rng.normal(size=70)
    return gflow.EmpiricalRisk(x, y), gflow.ShallowNet(4, 14, key=jax.random.key(3))


@pytest.fixture(scope="module")
def solve(table):
    def solve(rtol, kinks="locate", **options):
        options = {"ts": TS, "solver": diffrax.Tsit5(), **options}
        return gflow.solve_flow(*table, t1=T1, rtol=rtol, kinks=kinks, **options)

    return solve


@pytest.fixture(scope="module")
def exact(solve):
    return solve(1e-10, "all")


def path(flow):
    return np.stack([theta(net) for net in flow])


def distances(flow, other):
    return np.linalg.norm(path(flow) - path(other), axis=1) / np.linalg.norm(path(other), axis=1)


def pairs(log):
    return list(zip(log.unit.tolist(), log.datum.tolist(), log.names))


@pytest.mark.parametrize(("rtol", "most"), [(1e-3, 2e-3), (1e-5, 2e-5), (1e-7, 2e-7)])
def test_the_error_follows_the_tolerance_at_every_saved_time(solve, exact, rtol, most):
    """Also within steps that passed kinks, where states are corrected for those met by then."""
    flow = solve(rtol)
    assert distances(flow, exact).max() < most
    np.testing.assert_allclose(flow.grad_norm, exact.grad_norm, rtol=100 * rtol)
    np.testing.assert_allclose(flow.risk, exact.risk, rtol=10 * rtol)


def test_loose_tolerances_pass_most_kinks_and_save_most_steps(solve, exact):
    loose, each = solve(1e-3), solve(1e-3, "all")
    assert np.mean(np.asarray(loose.kinks.passed)) > 0.5
    assert not np.asarray(each.kinks.passed).any() and not np.asarray(exact.kinks.passed).any()
    assert loose.stats["num_steps"] < 0.65 * each.stats["num_steps"]
    met = {pair[:2] for pair in pairs(exact.kinks)}
    assert len({pair[:2] for pair in pairs(loose.kinks)} ^ met) < 0.1 * len(met)


def test_tight_tolerances_leave_the_log_of_all_kinks(solve, exact):
    log = solve(1e-9).kinks
    assert pairs(log) == pairs(exact.kinks)
    np.testing.assert_allclose(log.time, exact.kinks.time, atol=1e-5)
    slides = [name for name in log.names if name.startswith("slide")]
    assert len(slides) > 5


def test_the_part_that_is_located_grows_as_the_tolerance_falls(solve):
    located = [1 - np.mean(np.asarray(solve(rtol).kinks.passed)) for rtol in (1e-3, 1e-4, 1e-9)]
    assert located[0] < 0.5 < located[1] < 0.9 < located[2]


def test_the_log_is_in_the_order_of_time(solve):
    times = np.asarray(solve(1e-3).kinks.time)
    assert (np.diff(times) >= 0).all() and times[0] > 0 and times[-1] <= T1


def test_energy_and_balance_hold_through_passed_kinks(solve, table):
    flow = solve(1e-3)
    assert np.mean(np.asarray(flow.kinks.passed)) > 0.5
    assert np.abs(flow.diagnostics.energy).max() < 1e-3 * float(flow.risk[0])
    assert np.abs(flow.diagnostics.balance).max() < 2e-4


def test_a_step_with_more_pairs_than_its_list_holds_is_shortened(table, exact, monkeypatch):
    monkeypatch.setattr(loop, "_FEW_PAIRS", 2)
    monkeypatch.setattr(loop, "_PAIRS_FOR_EACH", 1000)
    # Another number of times compiles another program, with the short list.
    flow = gflow.solve_flow(*table, t1=T1, rtol=1e-3, ts=TS[::2], solver=diffrax.Tsit5())
    assert distances(flow, exact[::2]).max() < 2e-3


@pytest.mark.parametrize("solver", [gflow.ROCK4(), diffrax.Bosh3(), gflow.BDF5()])
def test_other_solvers_pass_kinks(table, exact, solver):
    flow = gflow.solve_flow(*table, t1=T1, rtol=1e-4, ts=TS, solver=solver)
    assert np.asarray(flow.kinks.passed).any()
    assert distances(flow, exact).max() < 1e-3


def test_leaky_slopes_several_outputs_and_weights(exact):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    risk = gflow.EmpiricalRisk(x, y, weights=rng.uniform(0.5, 1.5, 40) / 40)
    net = gflow.ShallowNet(
        3, 9, out_size=2, key=jax.random.key(1), activation="leaky_relu(0.2)", use_bias=True
    )
    each, loose = (
        gflow.solve_flow(risk, net, t1=4.0, rtol=rtol, kinks=kinks, solver=diffrax.Tsit5())
        for rtol, kinks in ((1e-10, "all"), (1e-4, "locate"))
    )
    assert np.asarray(loose.kinks.passed).sum() > 5
    assert distances(loose, each).max() < 3e-4


def test_rows_that_share_kinks_are_located():
    x = jnp.array([[1.0, 0.5], [-1.0, -0.5], [0.3, -1.0], [0.6, -2.0], [0.2, 0.9]])
    risk = gflow.EmpiricalRisk(x, jnp.array([1.0, -0.5, 0.3, 0.1, -1.0]))
    net = gflow.ShallowNet(2, 5, key=jax.random.key(0), use_bias=False)
    flow = gflow.solve_flow(risk, net, t1=5.0, rtol=1e-3)
    assert len(flow.kinks) and not np.asarray(flow.kinks.passed).any()


def test_fixed_steps_keep_their_size_whatever_they_leave_behind(table, exact, monkeypatch):
    monkeypatch.setattr(loop, "_FEW_PAIRS", 3)
    monkeypatch.setattr(loop, "_PAIRS_FOR_EACH", 1000)
    flow = gflow.solve_flow(*table, t1=T1, ts=TS[::3], step_size=0.05, solver=diffrax.Tsit5())
    cut = int(flow.stats["num_shortened_steps"])
    arrivals = len(np.unique(np.asarray(flow.kinks.time)))
    assert flow.stats["num_steps"] <= round(T1 / 0.05) + cut + arrivals + 1
    assert distances(flow, exact[::3]).max() < 1e-4


def test_the_ends_of_slides_have_times_as_accurate_as_the_flow():
    """Also in steps that end at another kink."""
    known = reference_flow("diabetes_w16_n60")
    log = gflow.solve_flow(known.risk, known.net, t1=known.t1, rtol=1e-6).kinks
    ends = [kink for kink in known.kinks if kink.kind == "slide ends"]
    found = [(pair, time) for pair, time in zip(pairs(log), log.time) if "slide ends" in pair[2]]
    assert len(found) == len(ends) > 20
    for (unit, datum, _), time in found:
        near = min(abs(time - e.time) for e in ends if (e.unit, e.datum) == (unit, datum))
        assert near < 1e-4 * time
