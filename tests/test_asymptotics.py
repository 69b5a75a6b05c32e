"""Where flows go: exact laws on the way to infinity, limits of flows that converge, and neither."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from benchmarks import asymptotics as known
from gflow.limits.far import LATEST, Continuation, far_path
from gflow.limits.growth import NormLaw, decades_of_power, growth, growth_of_logarithm
from gflow.limits.path import Path
from gflow.limits.values import RiskLimit, lower_bound, risk_law, risk_limit


def path_of(norm, risk=None, speed=None, t=None):
    """A path along one direction, of which the speed is the derivative of the norm."""
    t = np.geomspace(1.0, 1e8, 400) if t is None else t
    value = norm(t)
    # d/dt = (1/t) d/d log t.
    speed = np.abs(np.gradient(value, np.log(t))) / t if speed is None else speed(t)
    risk = np.ones_like(t) if risk is None else risk(t)
    return Path(t, value[:, None], np.abs(value), risk, speed)


# Those that `python -m benchmarks.asymptotics` alone follows.
SLOW_FAMILIES = ("classifier with decay", "ReLU on a line", "softplus(-x) + y²")


@pytest.mark.parametrize("p", [0.05, 0.25, 1.0])
def test_powers_of_time_are_found(p):
    found = growth(path_of(lambda t: t**p + 0.1))
    assert found.law is NormLaw.POWER
    # The 0.1 changes the local exponent by a fraction of 0.1 t^-p, at most 4 %.
    assert found.exponent == pytest.approx(p, rel=0.04)


@pytest.mark.parametrize("end", [1e5, 1e8, 1e12])
def test_powers_beside_logarithms_are_in_the_intervals(end):
    # ‖θ‖ ~ t^½ / log t; L = 1/log t falls to 0.
    t = np.geomspace(1.0, end, 400)
    logs = lambda t: np.log(t) + 2
    path = path_of(
        lambda t: t**0.5 / logs(t),
        lambda t: 1 / logs(t),
        lambda t: 1 / (np.sqrt(t) * logs(t)),
        t,
    )
    found = growth(path)
    assert found.law is NormLaw.POWER and found.interval[0] <= 0.5 <= found.interval[1]
    limit = risk_limit(path, -np.inf)
    assert limit.interval[0] <= 0 <= limit.interval[1]
    law = risk_law(path, limit, found)
    assert law.interval[0] <= 0 < law.power


@pytest.mark.parametrize("p", [0.05, 0.25, 1.0])
def test_exponents_of_pure_powers_have_short_intervals(p):
    path = path_of(lambda t: t**p, lambda t: 1 + t**-p, lambda t: np.sqrt(p / t ** (1 + p)))
    found, limit = growth(path), risk_limit(path, -np.inf)
    for law in (found, risk_law(path, limit, found)):
        assert law.interval[0] <= p <= law.interval[1] <= law.interval[0] + 0.02


def test_the_law_of_a_gap_that_is_lost_in_roundings_comes_from_its_slope():
    t = np.geomspace(1.0, 1e20, 800)
    path = path_of(lambda t: t**0.5, lambda t: 1 + 1 / t, lambda t: 1 / t, t)
    law = risk_law(path, risk_limit(path, 0.0), growth(path))
    assert path.risk[-1] == 1 and law.interval == pytest.approx((1.0, 1.0), abs=1e-4)


@pytest.mark.parametrize("q", [1.0, 0.5, 1 / 3])
def test_powers_of_the_logarithm_are_found(q):
    found = growth(path_of(lambda t: (np.log(t) + 2) ** q))
    assert found.law is NormLaw.LOGARITHM
    assert found.exponent == pytest.approx(q, rel=0.01)
    late = np.geomspace(1e10, 1e220, 400)
    found = growth_of_logarithm(path_of(lambda t: (np.log(t) + 2) ** q, t=late))
    assert found is not None and found.exponent == pytest.approx(q, rel=1e-3)


@pytest.mark.parametrize(
    "norm",
    [
        lambda t: 2 - (1 + t) ** -0.5,
        lambda t: 2 - np.exp(-1e-7 * t),
        lambda t: 2 - (1 + t) ** -0.1,
        lambda t: 3 + np.sin(np.log(t)),
        lambda t: 2 + 0 * t,
    ],
)
def test_bounded_norms_do_not_grow_to_infinity(norm):
    assert growth(path_of(norm)).law is NormLaw.NONE


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0])
def test_the_limit_of_a_risk_from_its_slope(p):
    # L = 0.3 + t^−p, of which −dL/dt = p t^−p−1 is the squared speed.
    slope = lambda t: np.sqrt(p * t ** (-p - 1))
    found = risk_limit(path_of(lambda t: t, lambda t: 0.3 + t**-p, slope), -np.inf)
    assert found.value == pytest.approx(0.3, abs=1e-6)
    assert found.interval[0] <= 0.3 + 1e-12 and found.interval[1] >= 0.3 - 1e-12


@pytest.fixture(scope="module")
def valley():
    """softplus(−x) + y², with x ~ log t and L ~ 1/t."""
    flow = known.softplus_valley(0, 1e5)
    return flow.risk, gflow.solve_flow(flow.risk, flow.net, t1=flow.t1)


def test_a_logarithm_is_followed_to_the_end(valley):
    risk, flow = valley
    found = gflow.asymptotics(flow, risk)
    assert found.behaviour is gflow.Behaviour.DIVERGES and found.norm_law is NormLaw.LOGARITHM
    assert found.norm_log_exponent == pytest.approx(1.0, abs=1e-3) and found.norm_exponent == 0
    low, high = found.risk_limit_interval
    assert low <= 0 <= high and found.point is None and found.length == np.inf
    # x grows alone.
    assert float(found.direction.x) == pytest.approx(1.0, abs=1e-6)
    assert abs(float(found.direction.y)) <= 1e-6
    assert (
        "lim inf" in repr(found) and "diverges" in found.verdict and "<table" in found._repr_html_()
    )


def test_the_flow_at_late_times_obeys_its_law(valley):
    risk, flow = valley
    far = far_path(Continuation(risk, 0.0, lambda net: net, None), flow, LATEST)
    # x' = 1/(1 + eˣ), so that eˣ + x = t + const.
    assert far is not None and far.end > 1e139
    np.testing.assert_allclose(far.norm, far.log_t, rtol=1e-5)


def test_a_flow_that_ends_early_is_undecided(valley):
    risk, flow = valley
    early = flow[: int(np.searchsorted(flow.ts, 10.0))]
    found = gflow.asymptotics(early, risk, follow=1.0)
    assert found.behaviour is gflow.Behaviour.UNDECIDED and np.isnan(found.length)
    assert found.verdict.startswith("Undecided: ") and found.direction is None
    assert len(found.trajectory) == len(early)


def test_a_flow_is_followed_until_it_is_decided():
    flow = known.product(0, 0.5)
    run = gflow.solve_flow(flow.risk, flow.net, t1=flow.t1)
    found = gflow.asymptotics(run, flow.risk)
    assert found.behaviour is gflow.Behaviour.CONVERGES
    assert flow.t1 < float(found.trajectory.ts[-1]) <= 1e3 * flow.t1
    assert np.all(np.diff(np.asarray(found.trajectory.ts)) > 0)
    # θ(t) is the same as by one solve.
    again = gflow.solve_flow(flow.risk, flow.net, t1=float(found.trajectory.ts[-1]))
    assert float(again.final.x) == pytest.approx(float(found.trajectory.final.x), rel=1e-6)


def flat_on_the_way(end):
    """1/x + 1e-9 x + y² from x = 1.5: x ~ t^{1/3} up to the minimum at x = √1e9, at t ~ 1e13."""
    risk = lambda p: 1 / p["x"] + 1e-9 * p["x"] + p["y"] ** 2
    start = {"x": jnp.array(1.5), "y": jnp.array(0.5)}
    return risk, gflow.solve_flow(risk, start, t1=end)


def test_a_power_that_ends_after_eight_decades_leads_to_its_minimum(capfd, monkeypatch):
    monkeypatch.setattr("gflow.progress._SECONDS_BETWEEN_LINES", 0.0)
    risk, flow = flat_on_the_way(1e5)
    found = gflow.asymptotics(flow, risk, progress=True)
    assert found.behaviour is gflow.Behaviour.CONVERGES and found.point is not None
    assert float(found.point.net["x"]) == pytest.approx(1e9**0.5, rel=1e-6)
    assert found.risk_limit == pytest.approx(2 * 1e-9**0.5, rel=1e-9)
    assert "looking for a limit" in capfd.readouterr().err


def test_a_power_that_is_not_followed_is_open():
    risk, flow = flat_on_the_way(1e5)
    found = gflow.asymptotics(flow, risk, follow=1e5)
    assert found.behaviour is gflow.Behaviour.UNDECIDED and "not followed" in found.reason
    # The turn is beyond `follow`, and seen.
    found = gflow.asymptotics(flow, risk, follow=2e5)
    assert found.behaviour is gflow.Behaviour.UNDECIDED and "but not so to" in found.reason


def test_how_long_a_power_has_lasted():
    assert decades_of_power(path_of(lambda t: t**0.25)) == 8
    # A turn after t = 1e6 leaves the last decades, of another power.
    assert decades_of_power(path_of(lambda t: t**0.25 + 1e-5 * t)) in range(1, 4)
    assert decades_of_power(path_of(lambda t: 3 + t**0.25)) in range(2, 5)


def test_lower_bounds_of_risks():
    x, y = np.ones((3, 1)), np.ones(3)
    squares = gflow.EmpiricalRisk(x, y)
    signed = gflow.EmpiricalRisk(x, y, loss=lambda prediction, target: prediction - target)
    assert lower_bound(squares) == lower_bound(gflow.PenalisedRisk(squares, weight_decay=0.1)) == 0
    for risk in (signed, gflow.PenalisedRisk(squares, lambda net: -jnp.sum(net.w)), jnp.sum):
        assert lower_bound(risk) == -np.inf


def test_a_limit_is_in_its_interval_and_not_below_the_bound():
    # Exact risks are 0 up to roundings of either sign.
    found = RiskLimit.at(-3e-14, 1e-15, 0.0)
    assert found.value == 0 and found.interval == (0, 0)
    assert RiskLimit.at(-3e-14, 1e-15, -np.inf).value == -3e-14


def test_the_spectrum_is_that_along_the_kinks_of_the_slide():
    # Both kinks of the limit are weakly active; from the end alone the rate is 0.0851.
    x = np.linspace(-1, 1, 12)
    risk, net = (
        gflow.EmpiricalRisk(x[:, None], np.sin(3 * x)),
        gflow.ShallowNet(1, 4, key=jax.random.key(5)),
    )
    flow = gflow.solve_flow(risk, net, t1=1e4)
    found = gflow.asymptotics(flow, risk)
    assert found.point is not None and found.point.rate == pytest.approx(0.07643, abs=1e-5)
    assert found.point.modes is not None and found.point.modes.num_kinks_along == 2
    assert "along 2 further kinks" in found.rate_agreement
    assert "agrees" in found.rate_agreement and "on which the flow slides" in repr(found.point)


def test_what_happens_far_away_counts_to_the_end():
    # x ~ log t up to the minimum at x = 15, reached at t ~ e^15.
    risk = lambda p: jnp.exp(-p["x"]) + jnp.exp(p["x"] - 30) + p["y"] ** 2
    flow = gflow.solve_flow(risk, {"x": jnp.array(0.0), "y": jnp.array(1.0)}, t1=1e5)
    found = gflow.asymptotics(flow, risk, follow=2e5)
    assert found.behaviour is gflow.Behaviour.UNDECIDED


def test_the_numbers_of_the_rate_theorem():
    # x² + 25 y² from (1, 1), with the origin moved: all are those of two exponentials.
    risk = lambda p: (p.x - 1) ** 2 + 25 * (p.y + 1) ** 2
    net = known.Point(jnp.asarray(2.0), jnp.asarray(0.0))
    found = gflow.asymptotics(gflow.solve_flow(risk, net, t1=12.0), risk)
    assert found.behaviour is gflow.Behaviour.CONVERGES and found.norm_law is NormLaw.NONE
    assert found.risk_limit == pytest.approx(0.0, abs=1e-14)
    theorem = found.theorem
    assert theorem is not None and theorem.exponent == pytest.approx(0.5, abs=1e-3)
    t = np.linspace(0, 2, 20001)
    gap = np.exp(-4 * t) + 25 * np.exp(-100 * t)
    assert theorem.risk_bound.constant == pytest.approx(np.max((1 + t) * gap), rel=1e-3)
    s = np.linspace(0, 12, 400001)
    length = np.trapezoid(np.hypot(2 * np.exp(-2 * s), 50 * np.exp(-50 * s)), s)
    # The saved points make a polygon.
    assert found.length == pytest.approx(length, rel=1e-2)
    assert found.risk_rate is not None and found.risk_rate.value == pytest.approx(4.0, rel=1e-3)
    assert "agree" in found.rate_agreement or "inside" in found.rate_agreement


def test_weight_decay_keeps_flows_bounded():
    flow = known.decayed_classifier(0, 3e3)
    run = gflow.solve_flow(flow.risk, flow.net, t1=flow.t1)
    found = gflow.asymptotics(run, flow.risk, follow=flow.t1)
    assert found.behaviour is not gflow.Behaviour.DIVERGES


def test_a_pass_by_a_saddle_is_not_its_limit():
    flow = known.cubic_pass(0)
    run = gflow.solve_flow(flow.risk, flow.net, t1=flow.t1)
    assert float(run.grad_norm[-1]) < 1e-5
    found = gflow.asymptotics(run, flow.risk, follow=flow.t1)
    assert found.behaviour is gflow.Behaviour.UNDECIDED


def test_what_cannot_be_used(valley):
    risk, flow = valley
    with pytest.raises(gflow.ArgumentError, match="at least 10 saved times"):
        gflow.asymptotics(flow[:5], risk)
    with pytest.raises(gflow.ArgumentError, match="follow"):
        gflow.asymptotics(flow, risk, follow=-1.0)
    for other in (
        replace(flow, stats=flow.stats | {"time_scale_x": jnp.ones(())}),
        replace(flow, observed={"flow_time": flow.ts}),
    ):
        with pytest.raises(gflow.ArgumentError, match="in another time, or with time scales"):
            gflow.asymptotics(other, risk)


@pytest.mark.slow
def test_the_jump_target_diverges_by_its_exact_laws():
    assert not [row for row in known.of_the_jump_target() if "error" in row]


@pytest.mark.slow
def test_separable_data_lead_to_the_margin_problem():
    assert not [row for row in known.of_classifiers(0) if "error" in row]


@pytest.mark.slow
def test_rows_without_an_active_unit_do_not_make_a_point_at_infinity_critical():
    # The units are active on two of the rows, whose risk falls like 1/(t log t), as the norm of
    # two layers grows like √log t; the others keep their log 2.
    x = np.array([[-2.0], [-1.0], [0.5], [1.5]])
    risk = gflow.EmpiricalRisk(x, np.sign(x[:, 0]), loss="logistic")
    net = gflow.ShallowNet.from_arrays(jnp.array([[1.0], [0.5]]), None, jnp.array([0.8, 0.6]), None)
    flow = gflow.solve_flow(risk, net, t1=1e3)
    size = np.sqrt(sum(np.sum(np.square(a)) for a in (flow.final.w, flow.final.v)))
    with pytest.raises(gflow.NotFoundError, match="still falls"):
        gflow.refine(risk, flow.final, radius=5 * float(size))
    found = gflow.asymptotics(flow, risk)
    assert found.behaviour is gflow.Behaviour.DIVERGES
    assert found.risk_limit == pytest.approx(np.log(2) / 2, abs=1e-12)
    assert found.norm_log_exponent == pytest.approx(0.5, abs=0.005)
    assert found.risk_law.startswith("t^-1 (log t)^-(1 ±")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in known.FAMILIES if name not in SLOW_FAMILIES])
def test_no_flow_is_called_the_opposite_of_its_fate(name):
    row = known.fates(name, 1, 0)
    assert row["opposite"] == 0 and (known.FAMILIES[name].early or row["called"] == 1)
