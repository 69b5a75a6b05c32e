import itertools

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings, strategies as st

import gflow
from gflow.rates.laws import FORMS
from tests.helpers.known_laws import CASES, Case, correlated

T = np.append(0.0, np.geomspace(1e-3, 100, 200))


# Without shrinking, which takes minutes for fits of some tenths of a second.
@pytest.mark.slow
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    law=st.sampled_from(["exponential", "power"]),
    rate=st.floats(0.05, 3.0),
    constant=st.floats(1e-3, 1e3),
    limit=st.sampled_from([None, 0.0, 1.0]),
)
def test_exact_laws_are_recognised(law, rate, constant, limit):
    with np.errstate(divide="ignore"):
        gap = constant * (np.exp(-rate * T) if law == "exponential" else T**-rate)
    known = limit is None
    fit = gflow.fit_rate(T, gap if known else gap + limit * constant, known_limit=known)
    assert fit.law == law and fit.status is gflow.RateStatus.CALLED
    # Rounding of the limit, 1e-16, against decreases of 1e-10 and more of it.
    assert fit.value == pytest.approx(rate, rel=1e-9 if known else 1e-4)
    assert fit.constant == pytest.approx(constant, rel=1e-8 if known else 0.02)
    assert fit.limit == pytest.approx(0.0 if known else limit * constant, abs=1e-3 * constant)
    assert 0 < fit.window[0] < fit.window[1] <= 100 and fit.num_points >= 6


@pytest.fixture(scope="module")
def fits() -> list[gflow.Rate]:
    """The rates of the published cases; risks of unknown limit are raised by half their start."""
    made = []
    for seed, case in enumerate(CASES):
        gap = case.gap(seed)
        risk = gap if case.known else gap + 0.5 * gap[0]
        made.append(gflow.fit_rate(case.times, risk, known_limit=case.known))
    return made


@pytest.mark.slow
def test_no_published_case_is_called_by_the_other_law(fits):
    called = [fit.law for fit in fits]
    wrong = [case for case, law in zip(CASES, called) if law not in (case.law, "undecided")]
    assert len(CASES) == 40 and not wrong
    assert called.count("undecided") <= 3


@pytest.mark.slow
def test_values_of_the_published_cases_are_close(fits):
    # Deviations of 1 % over 150 points, a third of them independent, allow some 1 %, and decreases
    # a few times as much.
    for case, fit in zip(CASES, fits):
        bound = 0.002 if case.noise <= 1e-4 and case.known else 0.03
        if fit.law == case.law:
            assert fit.value == pytest.approx(case.rate, rel=bound), case


def _random_case(rng, k: int) -> Case:
    """Correlations from 0 to 0.97, deviations from 1e-5 to 1e-2, second terms and offsets."""
    both = {"correlation": rng.uniform(0, 0.97), "noise": 10 ** rng.uniform(-5, -2)}
    if k % 2:
        second = (rng.uniform(0, 3), rng.uniform(0.5, 5))
        length = rng.uniform(6, 20)
        rate = 10 ** rng.uniform(-2, 1)
        return Case("exponential", rate, second, until=length, points=80, **both)
    second = (rng.uniform(-0.5, 1), rng.uniform(0.5, 2))
    offset, until = rng.uniform(0.5, 5), 10 ** rng.uniform(3, 6)
    rate = rng.uniform(0.3, 4)
    return Case("power", rate, second, offset, first=0.1, until=until, points=80, **both)


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(11)
    cases = [_random_case(rng, k) for k in range(72)]
    fits = [gflow.fit_rate(case.times, case.gap(k)) for k, case in enumerate(cases)]
    right = [fit.law == case.law for case, fit in zip(cases, fits)]
    held = [
        ok and fit.interval[0] <= case.rate <= fit.interval[1]
        for ok, case, fit in zip(right, cases, fits)
    ]
    print(f"laws right {np.mean(right):.3f}, intervals that hold the truth {np.mean(held):.3f}")
    assert np.mean(right) >= 0.97
    assert 0.90 <= np.mean(held) <= 0.99


@pytest.mark.parametrize(
    ("predicted", "words"),
    [(0.25, "inside the interval"), (0.24, "4 % below the"), (0.6, "140 % above the fitted rate")],
)
def test_a_prediction_is_compared_with_the_fitted_rate(predicted, words):
    fit = gflow.fit_rate(T, 5 * np.exp(-0.25 * T), predicted=predicted)
    assert f"; the spectrum predicts {predicted}, {words}" in fit.verdict


def test_the_parameters_of_a_law_have_names():
    gap = 5 * np.exp(-0.25 * T) * (1 + 2 * np.exp(-0.5 * T))
    fit = gflow.fit_rate(T, gap).fits["exponential"]
    end, found = fit.window[1], fit.estimate.parameters
    # In units of the last time of the tail, at which the level and the second term are taken.
    assert found.slope == pytest.approx(0.25 * end, rel=1e-6)
    assert found.level == pytest.approx(np.log(5) - 0.25 * end, rel=1e-6)
    assert fit.estimate.law.named(fit.estimate.params) == found
    assert fit.constant == pytest.approx(5, rel=1e-6)


@pytest.mark.parametrize("law", list(itertools.chain(*FORMS.values())), ids=repr)
def test_derivatives_of_laws_are_those_of_their_curves(law):
    u, first, step = np.array([0.2, 0.5, 0.8, 0.99]), 0.2, 1e-6
    p = np.append([0.3, 1.4], law.shape_starts(first)[1 if len(law.parameter_names) > 2 else 0])
    p[2:3] += 0.01  # a second term that is not zero
    _, slope = law.curve(p, u)
    for k, name in enumerate(law.parameter_names):
        shift = step * np.eye(len(p))[k]
        difference = (law.curve(p + shift, u)[0] - law.curve(p - shift, u)[0]) / (2 * step)
        # Central differences: step² from the third derivative, 1e-16/step from rounding.
        np.testing.assert_allclose(slope[:, k], difference, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("floor", [0.0, 1e-13])
def test_a_quadratic_problem_has_twice_its_least_eigenvalue(floor):
    eigenvalues = np.array([0.01, 0.03, 0.1, 0.3, 1, 3, 10])
    t = np.geomspace(1e-2, 1e4, 300)
    gap = np.exp(-2 * eigenvalues * t[:, None]).sum(axis=1)
    gap += floor * np.random.default_rng(0).normal(size=len(t))
    fit = gflow.fit_rate(t, gap, predicted=0.02)
    assert fit.law == "exponential" and fit.value == pytest.approx(0.02, rel=1e-3)
    assert "the spectrum predicts 0.02, " in fit.verdict and fit.predicted == 0.02
    plateau = fit.slopes.rate_plateau
    assert plateau.value == pytest.approx(0.02, rel=0.02) and plateau.length > 10


def test_a_gap_that_is_zero_from_a_finite_time_on():
    t = np.linspace(0, 2, 200)
    fit = gflow.fit_rate(t, np.maximum(1.3 - t, 0) ** 1.5)
    assert fit.law == "finite time" and fit.value == pytest.approx(1.3, rel=1e-9)
    assert fit.exponent == pytest.approx(1.5, rel=1e-6)
    assert fit.constant == pytest.approx(1.0, rel=1e-6)
    assert fit.verdict.startswith("finite time (T - t)^1.5 with T = 1.3")


def test_a_flow_that_stops_on_a_kink_in_finite_time():
    # O2: w = 3 e^-t − 1 until t* = ln 3, and the gap is (w + 1)² / 2 − 1/2; 0 afterwards.
    t = np.linspace(0, 2, 400)
    fit = gflow.fit_rate(t, 0.5 * np.maximum(3 * np.exp(-t), 1) ** 2 - 0.5)
    assert fit.law == "finite time" and fit.value == pytest.approx(np.log(3), rel=1e-4)
    assert fit.exponent == pytest.approx(1, rel=0.02)


def test_the_fit_can_be_evaluated_and_reads_well():
    fit = gflow.fit_rate(T, 5 * np.exp(-0.25 * T))
    np.testing.assert_allclose(fit([0.0, 4.0]), [5.0, 5.0 * np.exp(-1)], rtol=1e-9)
    assert repr(fit).startswith("Rate: exponential exp(-(0.25") and "t = " in repr(fit)
    noisy = gflow.fit_rate(T[1:], T[1:] ** -1.5 * np.exp(0.05 * np.sin(40 * np.log(T[1:]))))
    assert noisy.law == "power" and noisy.value == pytest.approx(1.5, abs=0.01)
    assert noisy.formula().startswith("t^-(1.50")


def test_a_straight_line_is_not_called_a_decay():
    assert gflow.fit_rate(T, 5 - 0.01 * T, known_limit=False).law == "undecided"


def test_a_risk_on_its_way_below_zero_has_not_yet_converged():
    t = np.linspace(1, 50, 100)
    fit = gflow.fit_rate(t, 1.0 - 0.2 * np.log(t), known_limit=False)
    assert fit.law == "undecided" and fit.status is gflow.RateStatus.NOT_YET_CONVERGED
    assert fit.limit < 0 and fit.verdict.startswith("not yet converged: the limit of the better")


def test_a_gap_that_stays_may_not_decay():
    t = np.geomspace(1, 1e4, 100)
    fit = gflow.fit_rate(t, 1 + 1e-3 * correlated(0, 100, 0.5))
    assert fit.law == "undecided" and fit.status is gflow.RateStatus.MAY_NOT_DECAY
    assert fit.interval[0] <= 0 and fit.verdict.startswith("may not decay: the rate may be zero")
    # A law with an exponent that may be zero is not quoted.
    assert not fit.best.is_positive and "best" not in fit.verdict


def test_half_a_decade_is_too_short_to_tell():
    t = np.geomspace(10, 28, 100)
    gap = t**-1.5 * np.exp(1e-3 * correlated(1, 100, 0.5))
    assert gflow.fit_rate(t, gap).law == "undecided"
    t = np.linspace(10, 10.1, 20)
    assert gflow.fit_rate(t, np.exp(-0.1 * t + 1e-4 * np.sin(99 * t))).law == "undecided"


@pytest.mark.parametrize(("size", "later"), [(1.0, 2e4), (4.0, 3e4), (100.0, 1e5)])
def test_a_law_is_not_called_where_another_takes_over(size, later):
    # Both fall like t^-3, the second from t = later on; that is past the floor, at about 2e4.
    t = np.geomspace(1e-2, 1e7, 800)
    gap = 0.1 * np.exp(-0.1 * t) + 0.3 * (t + 100) ** -3 + size * (t + later) ** -3
    rate = gflow.fit_rate(t, gap)
    assert rate.law == "undecided" and "second term" in rate.verdict
    assert rate.status is gflow.RateStatus.UNDECIDED


def test_the_window_can_be_chosen():
    gap = np.where(T < 1, 1.0, np.exp(-2 * (T - 1)))
    fit = gflow.fit_rate(T, gap, window=(2, 8))
    assert fit.value == pytest.approx(2, rel=1e-9) and 2 <= fit.window[0] < fit.window[1] <= 8


@pytest.mark.parametrize("kind", ["constant", "noise", "zero", "negative"])
def test_the_floor_is_left_out(kind):
    noise = 1e-15 * np.random.default_rng(3).normal(size=len(T))
    floor = {"constant": 1e-17, "noise": noise, "zero": 0.0, "negative": -1e-15}[kind]
    gap = np.exp(-T) + floor
    fit = gflow.fit_rate(T, np.where(T > 35, 0.0, gap) if kind == "zero" else gap)
    assert fit.law == "exponential" and fit.window[1] < 40
    assert fit.value == pytest.approx(1, rel=1e-3)


def test_a_risk_that_ends_at_rounding_has_the_rate_of_its_way_there():
    t = np.geomspace(1e-2, 1e4, 300)
    noise = 1e-16 * np.random.default_rng(4).normal(size=300)
    fit = gflow.fit_rate(t, 0.42 + np.exp(-0.05 * t) + noise, known_limit=False)
    assert fit.law == "exponential" and fit.value == pytest.approx(0.05, rel=1e-3)
    assert fit.limit == pytest.approx(0.42, rel=1e-6)


def test_local_slopes_are_level_where_the_law_holds():
    t = np.geomspace(1e-3, 1e5, 200)
    slopes = gflow.fit_rate(t, (1 + 4 * t) ** -1.5).slopes
    late = slopes.ts > 1e3
    np.testing.assert_allclose(slopes.exponent[late], 1.5, rtol=1e-3)
    assert slopes.exponent_plateau.value == pytest.approx(1.5, rel=0.02)
    # Within 5 % from t = 5 on, over four decades and more.
    assert 3.5 < slopes.exponent_plateau.length < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((T, T[:-1]), "`ts, gap`: got shapes"),
        ((T[:5], np.ones(5)), "wanted at least 6 with t > 0 and gap > 0"),
        ((T, -np.ones_like(T)), "200 entries that are zero or negative"),
        ((T[::-1], np.ones_like(T)), "wanted times in order"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gflow.fit_rate(*arguments)


def test_a_risk_that_does_not_decrease_has_no_rate():
    with pytest.raises(ValueError, match="a risk that falls"):
        gflow.fit_rate(T, 1 + T, known_limit=False)


def test_no_law_is_called_on_a_plateau():
    # The escape from a saddle: (uv − 1)² from u = v = 1e-3.
    t = np.linspace(0, 3.4, 400)
    e = 1e-6 * np.exp(4 * t)
    assert gflow.fit_rate(t, (1 - e / (1 - 1e-6 + e)) ** 2).law == "undecided"
    # A wrong limit.
    t = np.linspace(0, 10, 400)
    rate = gflow.fit_rate(t, np.exp(-2 * t) + 1e-3)
    assert rate.law == "undecided" and "limit" in rate.reason
    assert gflow.fit_rate(t, np.ones(400)).law == "undecided"


TIMES = np.linspace(0.1, 10.0, 99)
GAP = np.exp(-TIMES)
SPIKE = np.append(GAP[:-1], 5.0)


@pytest.mark.parametrize(
    ("ts", "gap", "words"),
    [
        (TIMES, 1 / GAP, "`gap`: got a gap that grows, from 1.1"),
        (TIMES, SPIKE, r"`gap`: got .* rises to 5 at t = 10, wanted .*window=\(0.1, 9.899\)"),
        (TIMES, -GAP, "`gap`: got 99 of 99 entries that are zero or negative, down to -0.9"),
        (TIMES, GAP - 0.1, "zero or negative.* a lower limit"),
        (TIMES, np.nan * GAP, "`gap`: got 99 of 99 entries that are NaN"),
        (TIMES, GAP + 0j, "`gap`: got .* complex128, wanted real numbers"),
        (np.datetime64("2020-01-01") + np.arange(99), GAP, "`ts`: got .*datetime.*timedelta64"),
        (TIMES, ["a"] * 99, "`gap`: got .* wanted real numbers"),
        ([1.0, [2.0]], [1.0, 2.0], "`ts`: got .* wanted real numbers"),
        (
            np.ones((3, 9)),
            np.ones((3, 9)),
            r"one shape \(times,\), those of one `trajectory.member",
        ),
        (TIMES[:4], GAP[:4], "`gap`: got 4 points, wanted at least 6"),
    ],
)
def test_gaps_without_a_law_are_told_what_is_wrong(ts, gap, words):
    with pytest.raises(gflow.ArgumentError, match=words):
        gflow.fit_rate(ts, gap)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ((9.0, 1.0), "first < last"),
        ((1.0, np.nan), "first < last"),
        ((1.0, 2.0, 3.0), "two times"),
        ((90.0, 100.0), "holds 0 of the times, wanted at least 6 of those from 0.1 to 10"),
    ],
)
def test_windows_that_hold_no_gap_are_named(window, words, unchecked_annotations):
    with pytest.raises(gflow.ArgumentError, match=f"`window`: got .*{words}"):
        gflow.fit_rate(TIMES, GAP, window=window)


def test_a_window_leaves_out_a_rise_at_the_end():
    rate = gflow.fit_rate(TIMES, SPIKE, window=(0.1, 9.899))
    assert rate.law == "exponential" and rate.value == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "2 of 99 entries that are NaN"), (-1e-3, "2 of 99 entries that are zero or neg")],
)
def test_entries_that_are_left_out_are_counted(value, words):
    gap = np.where(np.isin(np.arange(99), (10, 20)), value, GAP)
    with pytest.warns(UserWarning, match=f"`gap`: left out {words}") as caught:
        rate = gflow.fit_rate(TIMES, gap)
    assert len(caught) == 1 and rate.value == pytest.approx(1.0, rel=1e-9)


def test_risks_of_unknown_limit_that_grow_are_refused():
    with pytest.raises(gflow.ArgumentError, match="`gap`: got 0 decreases, from 1.1"):
        gflow.fit_rate(TIMES, 1 / GAP, known_limit=False)


def test_traced_gaps_are_refused():
    with pytest.raises(gflow.ArgumentError, match="`gap`: got traced numbers"):
        jax.jit(lambda gap: gflow.fit_rate(TIMES, gap).value)(GAP)


def test_a_trajectory_brings_its_kinks_and_its_tolerance(smooth_flow, wave):
    gap = smooth_flow.risk - gflow.refine(wave, smooth_flow.final, throw=False).risk
    given = {"kinks": smooth_flow.kinks, "rtol": smooth_flow.stats["rtol"]}
    found = gflow.fit_rate(smooth_flow, smooth_flow.risk, known_limit=False)
    same = gflow.fit_rate(smooth_flow.ts, smooth_flow.risk, known_limit=False, **given)
    assert repr(found) == repr(same)
    with pytest.raises(gflow.ArgumentError, match="`rtol`: got -1"):
        gflow.fit_rate(smooth_flow.ts, gap, rtol=-1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4711009, 4711010, 4711002])
def test_many_saved_times_do_not_hide_the_error_of_the_solver(seed):
    # At gaps of 1e-12 log gap is off by 0.002, evenly: without `rtol` the intervals miss the truth.
    rng = np.random.default_rng(seed)
    risk = gflow.EmpiricalRisk(rng.normal(size=(12, 2)), rng.normal(size=12))
    net = gflow.ShallowNet(2, 6, key=jax.random.key(seed), activation="tanh")
    flow = gflow.solve_flow(risk, net, t1=1e5, ts=np.geomspace(1e-3, 1e5, 800))
    point = gflow.refine(risk, flow.final, approach=flow)
    low, high = gflow.fit_rate(flow, flow.risk - point.risk).asymptotic.interval
    assert point.rate is not None and low <= point.rate <= high
    assert high < 1.01 * point.rate
