"""The order of descent in the step size: exact powers, noise of phases at kinks, partings."""

import numpy as np
import pytest

import gflow

SIZES = 0.1 / 2 ** np.arange(6)
# The step sizes of a main job, in units of the largest, if it is cheap.
FRACTIONS = 1 / np.array([1, 1.25, 2, 2.5, 4, 5, 8, 12.5, 20, 25, 40, 62.5])


@pytest.mark.slow
def test_gradient_descent_has_order_one(wave, smooth_net):
    sharpness = gflow.sharpness(wave, smooth_net)
    flow = gflow.solve_flow(wave, smooth_net, t1=5.0, ts=[0.0, 5.0], rtol=1e-9, atol=1e-11)
    sizes, distances = [], []
    for k in range(5):
        num_steps = 2**k * int(np.ceil(5.0 * sharpness / (2 * 0.2)))
        gd = gflow.descend(
            wave, smooth_net, step_size=5.0 / num_steps, num_steps=num_steps, record=2
        )
        sizes.append(5.0 / num_steps)
        distances.append(gflow.compare(flow, gd).distance[-1])
    order = gflow.observed_order(sizes, distances)
    assert order.value == pytest.approx(1.0, abs=0.02)
    assert order.interval[0] < 1.0 < order.interval[1]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_order_of_exact_powers_with_their_first_correction(p):
    h = 0.1 / 2 ** np.arange(6)
    order = gflow.observed_order(h, 3 * h**p * np.exp(4 * h))
    assert order.value == pytest.approx(p, rel=1e-10)
    assert f"order {p:.3f}" in repr(order)


def test_the_interval_of_the_order_covers_at_least_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = []
    for _ in range(60):
        noisy = 3 * SIZES * np.exp(2 * SIZES + 0.01 * rng.normal(size=6))
        intervals.append(gflow.observed_order(SIZES, noisy).interval)
    # A line with independent noise alone would have length 0.02. Corrections are allowed for, too.
    assert np.sum(contain(intervals, 1.0)) >= 57
    assert np.median(np.diff(intervals)) < 0.08


def contain(intervals: list[tuple[float, float]], p: float) -> np.ndarray:
    low, high = np.transpose(intervals)
    return (low < p) & (high > p)


def past_kinks(rng: np.random.Generator, p: float) -> np.ndarray:
    """Distances C h^p (1 + phases), where t/h modulo 1 decides what happens at a kink at time t.

    The times are between a tenth of the largest step and a thousand of them. The distance is a norm
    of two components, so that it hardly cancels.
    """
    times = 10 ** rng.uniform(-1, 3, size=5)
    phases = times / FRACTIONS[:, None] % 1 - 0.5
    along, across = rng.normal(size=(2, 5)) * 0.3
    factor = np.hypot(1 + phases @ along, phases @ across)
    return 3 * FRACTIONS**p * np.exp(0.1 * FRACTIONS) * factor


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_phases_at_kinks_do_not_pass_for_another_order(p):
    rng = np.random.default_rng(1)
    draws = [past_kinks(rng, p) for _ in range(40)]
    intervals = [gflow.observed_order(FRACTIONS, d).interval for d in draws]
    assert np.sum(contain(intervals, p)) >= 36
    assert p == 1 or np.sum(contain(intervals, 1.0)) <= 4
    assert np.median(np.diff(intervals)) < 0.45


def test_a_kink_within_the_first_step_leaves_the_order_open_and_smaller_steps_close_it():
    # Past a kink at time t in the first step, the distance is 1.1 h - t.
    distance = FRACTIONS * (1.1 - 0.12 / FRACTIONS % 1)
    few, all_sizes = (
        gflow.observed_order(FRACTIONS[:n], distance[:n]).interval for n in (7, len(FRACTIONS))
    )
    assert few[0] < 1 < few[1] and few[1] - few[0] > 1
    assert all_sizes[0] < 1 < all_sizes[1] < few[1]


@pytest.mark.parametrize("arguments", [([0.1, 0.2], [1, 2]), ([0.1, 0.2, 0.3], [1, 2])])
def test_too_few_step_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="`step_sizes`: got .* wanted at least three"):
        gflow.observed_order(*arguments)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([0.1, 0.1, 0.1], "3 step sizes, 1 of them distinct"),
        ([0.1, 0.1 * (1 + 1e-12), 0.2, 0.2], "4 step sizes, 2 of them distinct"),
    ],
)
def test_step_sizes_have_to_be_distinct(sizes, words):
    with pytest.raises(ValueError, match=f"`step_sizes`: got {words}, wanted at least three"):
        gflow.observed_order(sizes, sizes)


def test_there_is_no_correction_below_four_distinct_step_sizes():
    h = np.array([0.1, 0.2, 0.4, 0.1])
    d = np.array([0.1, 0.21, 0.4, 0.1])
    order = gflow.observed_order(h, d)
    # With a correction the middle one could be explained, and the order could be 1.3.
    assert order.value == pytest.approx(1.0, abs=0.01)
    assert 0.7 < order.interval[0] < 1 < order.interval[1] < 1.3


def test_three_distances_do_not_give_a_certain_order():
    h = SIZES[:3]
    low, high = gflow.observed_order(h, h * np.exp(0.2 * h / h[0])).interval
    assert low < 1.0 < high and high - low > 0.1


def described(h, distance, ts=None) -> gflow.Comparison:
    """A comparison with these distances."""
    ts = np.geomspace(0.1, 100, 200) if ts is None else ts
    values = np.broadcast_to(distance(ts, h), ts.shape)
    return gflow.Comparison(ts, values, 0 * ts, 0 * ts)


def test_the_order_of_comparisons_is_that_of_their_typical_distances():
    wavy = lambda t, h: 3 * h**1.5 * (2 + np.sin(t))
    order = gflow.observed_order(SIZES, [described(h, wavy) for h in SIZES])
    assert order.value == pytest.approx(1.5, abs=1e-9) and order.partings == ()
    assert order.until == pytest.approx(100)


def test_comparisons_at_unlike_times_are_interpolated():
    grid = lambda h: np.append(np.geomspace(h, 90, 150), 100.0)
    growing = lambda t, h: h * t**0.5
    order = gflow.observed_order(SIZES, [described(h, growing, grid(h)) for h in SIZES])
    assert order.value == pytest.approx(1.0, abs=1e-9)


def test_a_descent_that_takes_another_branch_is_named_and_does_not_spoil_the_order():
    left = SIZES[4]
    away = lambda t, h: np.where((t > 10) & (h == left), 0.5, h * (1 + 0.1 * np.sin(9 * t)))
    compared = [described(h, away) for h in SIZES]
    assert gflow.observed_order(SIZES, [c.largest for c in compared]).value < 0.8
    order = gflow.observed_order(SIZES, compared)
    (parting,) = order.partings
    assert parting.step_size == left and 10 < parting.time < 10.5
    assert order.value == pytest.approx(1.0, abs=0.01)
    assert order.interval[0] < 1.0 < order.interval[1] < 1.05


def test_nothing_counts_after_half_of_the_descents_have_parted():
    away = lambda t, h: np.where((t > 1) & (h < 0.03), 0.5, h)
    order = gflow.observed_order(SIZES, [described(h, away) for h in SIZES])
    assert order.until is not None and order.until <= 1
    assert len(order.partings) == 4 and order.value == pytest.approx(1.0, abs=1e-6)


def test_errors_of_the_flow_do_not_count_where_descent_has_come_back_to_it():
    back = lambda t, h: h * t * np.exp(-t) + 1e-9
    order = gflow.observed_order(SIZES, [described(h, back) for h in SIZES])
    assert order.value == pytest.approx(1.0, abs=1e-3) and order.until < 20


def test_comparisons_without_a_common_time_are_refused():
    one = lambda t, h: h + 0 * t
    early, late = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    compared = [described(h, one, ts) for h, ts in zip(SIZES, [early, late, late])]
    with pytest.raises(ValueError, match="`distances`: got comparisons without a common time"):
        gflow.observed_order(SIZES[:3], compared)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_which_descents_part_does_not_depend_on_the_order(p):
    away = lambda t, h: np.where((t > 10) & (h == SIZES[4]), 8, 1) * h**p
    order = gflow.observed_order(SIZES, [described(h, away) for h in SIZES])
    assert [parting.step_size for parting in order.partings] == [SIZES[4]]
    assert order.value == pytest.approx(p, abs=1e-6)


def test_distances_in_another_order_and_from_another_start_are_refused():
    h = np.array(SIZES)
    with pytest.raises(ValueError, match="`distances`: got distances that grow as step sizes fall"):
        gflow.observed_order(SIZES, h[::-1])
    ts = np.linspace(0.0, 5.0, 20)
    compared = [described(size, lambda t, h: 1 + h * t, ts) for size in SIZES]
    with pytest.raises(ValueError, match="do not start where the flow does"):
        gflow.observed_order(SIZES, compared)
