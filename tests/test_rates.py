import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gflow

T = np.append(0.0, np.geomspace(1e-3, 100, 200))


@settings(max_examples=60, deadline=None)
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
    assert fit.law == law
    # Rounding of the limit, 1e-16, against decreases of 1e-14 and more of it.
    assert fit.value == pytest.approx(rate, rel=1e-9 if known else 2e-3)
    assert fit.constant == pytest.approx(constant, rel=1e-8 if known else 0.02)
    assert fit.limit == pytest.approx(0.0 if known else limit * constant, abs=1e-3 * constant)
    start, end = fit.window
    assert start >= 0.09 * end and fit.num_points >= 6


def test_the_fit_can_be_evaluated_and_reads_well():
    fit = gflow.fit_rate(T, 5 * np.exp(-0.25 * T))
    np.testing.assert_allclose(fit([0.0, 4.0]), [5.0, 5.0 * np.exp(-1)], rtol=1e-9)
    assert "Rate: gap ~ exp(-(0.25" in repr(fit) and "t = " in repr(fit)
    noisy = gflow.fit_rate(T[1:], T[1:] ** -1.5 * np.exp(0.05 * np.sin(40 * np.log(T[1:]))))
    assert noisy.formula() == "t^-(1.498 ± 0.009)" and noisy.law == "power"


def test_intervals_cover_as_often_as_they_say_for_independent_deviations():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        gap = 2 * np.exp(-0.3 * T + 0.01 * rng.normal(size=len(T)))
        low, high = gflow.fit_rate(T, gap, window=(1, 20)).interval
        covered += low < 0.3 < high
    assert 0.91 < covered / 300 < 0.99


def test_a_straight_line_is_not_called_a_decay():
    fit = gflow.fit_rate(T, 5 - 0.01 * T, known_limit=False)
    assert fit.law == "undecided" and fit.interval[0] <= 0


def test_too_short_to_tell_is_undecided():
    t = np.linspace(10, 10.1, 20)
    gap = np.exp(-0.1 * t + 1e-4 * np.sin(99 * t))
    assert gflow.fit_rate(t, gap).law == "undecided"


def test_the_window_can_be_chosen():
    gap = np.where(T < 1, 1.0, np.exp(-2 * (T - 1)))
    fit = gflow.fit_rate(T, gap, window=(2, 8))
    assert fit.value == pytest.approx(2, rel=1e-9) and 2 <= fit.window[0] < fit.window[1] <= 8


def test_the_rounding_floor_is_left_out():
    gap = np.exp(-T) + 1e-17
    fit = gflow.fit_rate(T, gap)
    assert fit.value == pytest.approx(1, rel=1e-3) and fit.window[1] < 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((T, T[:-1]), "`ts, gap`: got shapes"),
        ((T[:5], np.ones(5)), "wanted at least 6 with t > 0 and gap > 0"),
        ((T, -np.ones_like(T)), "got 0 usable points"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gflow.fit_rate(*arguments)


def test_a_risk_that_does_not_decrease_has_no_rate():
    with pytest.raises(ValueError, match="a decreasing gap"):
        gflow.fit_rate(T, 1 + T, known_limit=False)
