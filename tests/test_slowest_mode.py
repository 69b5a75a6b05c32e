"""The rate for t → ∞, gaps outside the laws, predictions, and tails after the last kink."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gflow
from benchmarks import gap_families, rate_coverage
from gflow.rates.misfit import is_noise
from gflow.rates.slowest_mode import MIN_WEIGHT, SMALLEST_DEVIATION
from gflow.rates.sums import Sums
from tests.helpers.known_laws import correlated

T = np.linspace(0, 30, 200)


def holds(rate: gflow.Rate, truth: float) -> bool:
    low, high = rate.asymptotic.interval
    return low <= truth <= high


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    ratio=st.floats(1.02, 3.0),
    weight=st.floats(0.05, 100.0),
    unit=st.floats(1e-3, 1e3),
)
def test_the_slower_of_two_modes_is_in_the_interval(ratio, weight, unit):
    gap = np.exp(-T) + weight * np.exp(-ratio * T)
    share = 1 / (1 + weight * np.exp(-(ratio - 1) * T[-1]))
    rate = gflow.fit_rate(T / unit, gap)
    if share >= MIN_WEIGHT:
        assert holds(rate, unit)


def test_a_mode_that_leads_late_is_found_before_it_leads():
    rate = gflow.fit_rate(T, np.exp(-T) + 100 * np.exp(-1.1 * T))
    # The rate of the gap at the end of its tail is still 1.08, and the slower mode is seen.
    assert rate.law == "exponential" and holds(rate, 1.0) and rate.asymptotic.interval[1] < 1.01
    assert rate.tail_interval[0] > 1.05
    assert "for t → ∞ the rate is between 0.9" in rate.verdict


def test_slower_modes_that_cannot_be_seen_yet_leave_the_rate_open():
    rates = np.geomspace(1, 100, 30)
    t = np.linspace(0, 4, 200)
    rate = gflow.fit_rate(t, np.exp(-np.outer(t, rates)).sum(axis=1))
    assert rate.law == "undecided" and holds(rate, 1.0)
    assert rate.asymptotic.interval[0] < 0.5 and not np.isnan(rate.asymptotic.value)


def test_the_interval_of_a_power_law_starts_at_zero():
    t = np.geomspace(0.1, 1e4, 150)
    rate = gflow.fit_rate(t, (1 + t) ** -1.5)
    assert rate.law == "power" and rate.asymptotic.interval[0] == 0.0


def test_a_rate_that_is_approached_from_below():
    # Terms of third order: e^{−2t} (1 − e^{−t})², whose slope grows to 2.
    t = np.linspace(0.5, 12, 120)
    rate = gflow.fit_rate(t, (np.exp(-t) * (1 - 0.8 * np.exp(-0.5 * t))) ** 2)
    assert rate.law == "exponential" and holds(rate, 2.0)
    assert rate.asymptotic.interval[1] < 2.02 and rate.asymptotic.interval[0] > 1.8


def test_sums_are_fitted_to_their_rounding():
    u = np.linspace(0.02, 1, 120)[:, None]
    logs = np.log(np.exp(-20 * u[:, 0]) + 0.3 * np.exp(-31 * u[:, 0]) + 2 * np.exp(-70 * u[:, 0]))
    found = Sums(u, logs).best(20.0, MIN_WEIGHT)
    assert np.sqrt(found.square / len(u)) < 0.1 * SMALLEST_DEVIATION
    # Weights are fractions of the gap at the end.
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-4)
    late = Sums(u, logs).best(21.0, MIN_WEIGHT)
    assert np.sqrt(late.square / len(u)) > 100 * SMALLEST_DEVIATION


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.97])
def test_processes_are_noise_and_curves_are_not(correlation):
    assert is_noise(correlated(3, 100, correlation))
    assert not is_noise(np.sin(np.linspace(0, 12, 100)) + 0.01 * correlated(3, 100, 0.0))


T_LOG = np.geomspace(0.1, 1e6, 200)


@pytest.mark.parametrize(
    "gap",
    [
        1 / np.log(2 + T_LOG),
        np.log(3 + T_LOG) / (1 + T_LOG),
        np.exp(-((T_LOG / 1e5) ** 0.4)),
        (1 + T_LOG) ** -1.0 * (1 + 0.5 * np.cos(2 * np.log(1 + T_LOG))),
    ],
    ids=["logarithm", "power with logarithm", "stretched", "oscillating"],
)
def test_gaps_outside_the_laws_are_not_called(gap):
    rate = gflow.fit_rate(T_LOG, gap)
    assert rate.law == "undecided" and rate.reason


def test_a_systematic_misfit_is_told():
    rate = gflow.fit_rate(T_LOG, np.log(3 + T_LOG) / (1 + T_LOG))
    assert rate.status is gflow.RateStatus.NO_LAW_FITS
    assert rate.verdict.startswith("no law fits: ")


@pytest.mark.parametrize("count", [8, 10, 12])
def test_few_points_are_no_law(count):
    t = np.linspace(0.1, 20, count)
    rate = gflow.fit_rate(t, np.exp(-np.sqrt(t)))
    assert rate.law == "undecided"


def test_the_rounding_floor_of_a_risk_is_found():
    t = np.linspace(0, 1e4, 400)
    noise = 1e-30 * np.random.default_rng(0).normal(size=400)
    rate = gflow.fit_rate(t, 0.1 * np.exp(-0.023 * t) + noise, known_limit=False)
    assert rate.law == "exponential" and rate.value == pytest.approx(0.023, rel=1e-6)


def test_a_last_gap_of_zero_is_told():
    gap = np.exp(-T[:120]) + 0.3
    with pytest.warns(UserWarning, match="`gap`: the last entry is 0 by construction"):
        rate = gflow.fit_rate(T[:120], gap - gap[-1])
    assert rate.law == "exponential" and rate.value == pytest.approx(1.0, rel=1e-5)
    assert rate.limit == pytest.approx(-np.exp(-T[119]), rel=1e-2)


@pytest.mark.parametrize(
    ("ts", "curve"),
    [
        (np.linspace(0, 10, 150), lambda t: 3 * np.exp(-2 * t) + np.exp(-5 * t)),
        # The faster mode is not yet gone at the end: the gap falls faster than by the slower one.
        (np.linspace(0, 9, 150), lambda t: np.exp(-t) + 10 * np.exp(-1.9 * t)),
        (np.linspace(0, 26, 150), lambda t: np.exp(-t) + np.exp(-1.044 * t)),
        (np.geomspace(0.1, 1e4, 150), lambda t: (2 + t) ** -1.5),
        (np.linspace(0, 1.29, 150), lambda t: np.maximum(1.3 - t, 0) ** 1.5),
    ],
    ids=["exponential", "two modes", "two close modes", "power", "finite time"],
)
def test_the_gap_a_decade_ahead_is_predicted(ts, curve):
    rate = gflow.fit_rate(ts, curve(ts))
    later = ts[-1] * np.array([1.5, 3.0, 10.0])
    found, truth = rate.predict(later), curve(later)
    assert rate.status is gflow.RateStatus.CALLED
    assert np.all((found.low <= truth * (1 + 1e-6)) & (truth <= found.high * (1 + 1e-6) + 1e-300))
    assert np.all(found.low <= found.high)


@pytest.mark.parametrize(("p", "q"), [(2.0, 3.0), (3.0, -1.5), (1.0, 0.5)])
def test_powers_beside_logarithms_are_held_for_late_times(p, q):
    t = np.geomspace(0.1, 1e5, 200)
    rate = gflow.fit_rate(t, (t + 1) ** -p * np.log(t + 5) ** q)
    low, high = rate.interval
    assert rate.better == "power" and low <= p <= high
    assert low <= rate.tail_interval[0] and rate.tail_interval[1] <= high


@pytest.mark.parametrize("p", [0.5, 2.0])
def test_pure_powers_leave_nothing_open(p):
    t = np.geomspace(0.1, 1e4, 150)
    rate = gflow.fit_rate(t, (t + 1) ** -p)
    assert rate.still_open <= 1e-4 and rate.value == pytest.approx(p, rel=1e-4)


def test_an_open_prediction_holds_a_gap_that_stays():
    t = np.geomspace(0.1, 1e4, 150)
    rate = gflow.fit_rate(t, 1 / np.log(2 + t))
    assert rate.status is not gflow.RateStatus.CALLED
    assert rate.predict(1e5).high[0] >= rate(t[-1])[()] * (1 - 1e-9)


def test_the_tail_begins_after_the_last_kink():
    # Rate 3 until t = 2, rate 1 after it.
    t = np.linspace(0, 20, 300)
    gap = np.exp(-3 * np.minimum(t, 2) - np.maximum(t - 2, 0))
    for chosen in ({"kinks": [0.5, 2.0]}, {"since": 2.0}):
        rate = gflow.fit_rate(t, gap, **chosen)
        assert rate.law == "exponential" and rate.window[0] >= 2 and rate.patterns == 1
        assert rate.value == pytest.approx(1.0, rel=1e-9)


def test_a_gap_that_passes_through_patterns_to_its_end_says_so():
    t = np.linspace(0, 20, 300)
    rate = gflow.fit_rate(t, np.exp(-t), kinks=np.linspace(1, 19.9, 40))
    assert rate.law == "undecided" and rate.patterns > 30
    assert "patterns" in rate.reason and "at t = 19.9" in rate.reason


@pytest.mark.slow
def test_the_kinks_of_a_flow_are_taken():
    flow = gflow.solve_flow(
        gflow.EmpiricalRisk(jnp.array([[-1.0], [0.5], [1.0]]), jnp.array([0.0, 0.3, 1.0])),
        gflow.ShallowNet.from_arrays([[0.5], [-0.3]], [0.1, 0.2], [0.7, -0.4], 0.0),
        t1=200.0,
    )
    rate = gflow.fit_rate(flow.ts, flow.risk, known_limit=False, kinks=flow.kinks)
    assert flow.kinks is not None
    felt = np.asarray(flow.kinks.time)[~np.asarray(flow.kinks.passed)]
    assert rate.patterns > 1 or not np.any(felt > rate.window[0])


def test_kinks_that_are_no_times_are_refused():
    with pytest.raises(gflow.ArgumentError, match="`kinks`: got .*trajectory.kinks, or times"):
        gflow.fit_rate(T, np.exp(-T), kinks=["a"])


@pytest.mark.slow
def test_intervals_for_late_times_hold_the_slowest_mode():
    rng = np.random.default_rng(17)
    gaps = [gap_families.quadratic(rng, 30.0) for _ in range(8)]
    gaps += [gap_families.two_exponentials(rng) for _ in range(8)]
    row = rate_coverage.coverage("both", gaps)
    assert row["held"] >= 0.92 and row["width / rate"] <= 0.1 and row["called"] >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", gap_families.KINDS)
def test_what_is_called_outside_the_laws_predicts_the_next_decade(kind):
    rng = np.random.default_rng(18)
    gaps = [gap_families.lawless(rng, kind) for _ in range(8)]
    assert rate_coverage.outside(kind, gaps)["wrong"] == 0
