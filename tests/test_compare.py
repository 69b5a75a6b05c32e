import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow


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
