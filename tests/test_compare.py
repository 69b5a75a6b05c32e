import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow

SIZES = 0.1 / 2 ** np.arange(6)


@pytest.mark.slow
def test_matched_times_give_the_difference_itself(wave, smooth_net):
    gd = gflow.descend(wave, smooth_net, step_size=0.05, num_steps=100)
    flow = gflow.solve_flow(wave, smooth_net, t1=5.0, ts=np.minimum(gd.ts, 5.0))
    comparison = gflow.compare(flow, gd)
    assert (comparison.interpolation_error == 0).all()
    k = len(gd) // 2
    apart = [np.ravel(a - b) for a, b in zip(jax.tree.leaves(gd[k]), jax.tree.leaves(flow[k]))]
    assert comparison.distance[k] == pytest.approx(np.linalg.norm(np.concatenate(apart)), rel=1e-12)
    np.testing.assert_allclose(comparison.risk_difference, gd.risk - flow.risk, atol=1e-15)
    assert f"({len(gd)} saved in both" in repr(comparison)


@pytest.mark.slow
def test_interpolation_is_within_its_estimate(wave, smooth_net, smooth_flow):
    gd = gflow.descend(wave, smooth_net, step_size=0.05, num_steps=200)
    exact = gflow.compare(
        gflow.solve_flow(wave, smooth_net, t1=10.0, ts=np.minimum(gd.ts, 10.0)), gd
    )
    comparison = gflow.compare(smooth_flow, gd)
    # The two flows differ by their tolerance, too.
    assert (
        np.abs(comparison.distance - exact.distance) <= comparison.interpolation_error + 1e-6
    ).all()
    assert comparison.interpolation_error.max() < 1e-4
    assert comparison.interpolation_error[0] == 0


@pytest.mark.slow
def test_kinks_between_saved_times_show_in_the_estimate():
    x = np.linspace(-1, 1, 30)
    risk = gflow.EmpiricalRisk(x[:, None], gflow.piecewise.zigzag()(jnp.asarray(x)))
    net = gflow.ShallowNet(1, 20, key=jax.random.key(1))
    gd = gflow.descend(risk, net, step_size=0.01, num_steps=1000)
    flow, exact = (
        gflow.solve_flow(risk, net, t1=10.0, rtol=1e-5, ts=ts)
        for ts in (None, np.minimum(gd.ts, 10.0))
    )
    comparison, truth = gflow.compare(flow, gd), gflow.compare(exact, gd)
    error = np.abs(comparison.distance - truth.distance)
    assert error.max() > 1e-5
    assert (error <= comparison.interpolation_error + 1e-4).all()


def test_only_times_in_the_span_of_the_flow_are_compared(wave, smooth_net, smooth_flow):
    gd = gflow.descend(wave, smooth_net, step_size=0.1, num_steps=200, record=np.arange(201))
    comparison = gflow.compare(smooth_flow, gd)
    assert len(comparison.ts) == 101 and comparison.ts[-1] == pytest.approx(10.0)


def test_networks_and_times_that_do_not_match_are_refused(wave, smooth_flow):
    other = gflow.ShallowNet(1, 5, key=jax.random.key(0))
    gd = gflow.descend(wave, other, step_size=0.1, num_steps=10)
    with pytest.raises(ValueError, match="a network of 16 parameters, wanted 25"):
        gflow.compare(smooth_flow, gd)
    late = eqx.tree_at(lambda t: t.ts, smooth_flow, smooth_flow.ts + 100)
    with pytest.raises(ValueError, match=r"`other`: got times 100 to 110, wanted .* 0 to 10"):
        gflow.compare(smooth_flow, late)


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


def test_the_interval_of_the_order_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    h = 0.1 / 2 ** np.arange(6)
    covered = 0
    for _ in range(400):
        noisy = 3 * h * np.exp(2 * h + 0.01 * rng.normal(size=6))
        low, high = gflow.observed_order(h, noisy).interval
        covered += low < 1.0 < high
    # 95 % of 400, with a standard deviation of 1.1 %.
    assert 0.91 < covered / 400 < 0.99


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
    slope = np.polyfit(np.log(h), np.log(d), 1)[0]
    assert (
        order.value == pytest.approx(slope, rel=1e-12) and order.interval[0] < 1 < order.interval[1]
    )


def test_networks_of_other_shapes_are_refused():
    risk = lambda net: sum(jnp.sum(a**2) for a in jax.tree.leaves(net))
    flows = [
        gflow.descend(risk, [jnp.ones(shape)], step_size=0.1, num_steps=3)
        for shape in ((2, 3), (3, 2))
    ]
    with pytest.raises(
        ValueError, match=r"`other`: got parameters of shapes \(3, 2\), wanted \(2,"
    ):
        gflow.compare(*flows)


def test_only_trajectories_are_compared(smooth_flow, unchecked_annotations):
    with pytest.raises(ValueError, match="`flow`: got a list, wanted a Trajectory"):
        gflow.compare([smooth_flow], smooth_flow)


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
