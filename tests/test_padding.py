"""Networks and tables in padded shapes: the same flow, and few programs."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gflow
import gflow.flow.solve
from gflow.nonsmooth.recognition import padded, pattern_risk_of, without_padding
from gflow.nonsmooth.shallow import padding
from gflow.parameters import UNSCALED, flat, split_trainable
from tests.helpers.kink_problems import KINDS, drawn, kinks, solve


def problem(width: int, rows: int, **options):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, 3))
    risk = gflow.EmpiricalRisk(x, np.sin(2 * x[:, 0]))
    return risk, gflow.ShallowNet(3, width, key=jax.random.key(5), **options)


@pytest.fixture
def without(monkeypatch):
    """Turns padding off from here on."""
    return lambda: monkeypatch.setattr(gflow.flow.solve, "padded", lambda *_: None)


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("options", KINDS)
def test_risk_field_and_jacobian_are_those_of_the_network_and_zero_in_what_is_added(
    options, repeat
):
    risk, net, trainable = drawn(repeat=repeat, **options)
    trained, frozen = split_trainable(net, trainable)
    plain = pattern_risk_of(risk, trained, frozen, UNSCALED)
    wide = padded(risk, plain)
    assert wide is not None and plain is not None
    theta, wide_theta = flat(trained), flat(wide.parts[0])
    added = np.asarray(wide.pattern_risk.padding)
    assert wide_theta.shape != theta.shape and not np.asarray(wide_theta)[added].any()
    assert np.array_equal(np.asarray(wide_theta)[~added], theta)
    assert np.isclose(wide.risk(eqx.combine(*wide.parts)), risk(net), rtol=1e-14)

    def looked_at(pattern_risk, theta):
        pattern = pattern_risk.start(theta)
        now = pattern_risk.evaluate(theta, pattern)
        jacobian = pattern_risk.jacobian(0.0, jnp.append(theta, 0.0), pattern)
        return now.field, now.value, jacobian

    field, value, jacobian = looked_at(plain, theta)
    wide_field, wide_value, wide_jacobian = map(
        np.asarray, looked_at(wide.pattern_risk, wide_theta)
    )
    some = np.append(~added, True)
    assert np.isclose(wide_value, value, rtol=1e-14)
    assert np.allclose(wide_field[some], field, rtol=1e-13, atol=1e-15)
    assert np.allclose(wide_jacobian[np.ix_(some, some)], jacobian, rtol=1e-12, atol=1e-14)
    assert not wide_field[~some].any()
    assert not wide_jacobian[~some].any() and not wide_jacobian[:, ~some].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"out_size": 2, "repeat": True}, {"use_bias": False, "output_scale": 0.5}],
)
def test_the_flow_is_the_same_and_has_the_shapes_of_the_network(options, without):
    risk, net, trainable = drawn(**options)
    wide = solve(risk, net, 10.0, trainable=trainable, ts=[0.5, 3.0, 10.0])
    without()
    plain = solve(risk, net, 10.0, trainable=trainable, ts=[0.5, 3.0, 10.0])
    assert jax.tree.structure(wide.params) == jax.tree.structure(plain.params)
    assert len(plain.kinks) > 1 and kinks(wide) == kinks(plain)
    assert np.allclose(wide.kinks.time, plain.kinks.time, rtol=1e-9)
    assert wide.stats["num_steps"] == plain.stats["num_steps"]
    assert wide.stats["atol"] == plain.stats["atol"]
    pairs = zip(jax.tree.leaves(wide), jax.tree.leaves(plain), strict=True)
    assert all(a.shape == b.shape for a, b in pairs)
    assert wide.diagnostics.balance.shape == (3, net.width)
    for a, b in zip(jax.tree.leaves(wide.params), jax.tree.leaves(plain.params)):
        assert np.allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_stiff_flows_in_padded_shapes_change_their_solver_and_arrive(without):
    risk, net = problem(5, 12)
    wide = gflow.solve_flow(risk, net, t1=3e3, rtol=1e-6)
    without()
    plain = gflow.solve_flow(risk, net, t1=3e3, rtol=1e-6)
    assert wide.switches and wide.succeeded
    assert np.isclose(wide.risk[-1], plain.risk[-1], rtol=1e-4)


def test_neighbouring_shapes_and_output_scales_share_their_programs(compilations):
    options = {"t1": 0.5, "ts": [0.25, 0.5], "rtol": 1e-4, "solver": diffrax.Tsit5()}
    first = gflow.solve_flow(*problem(16, 64, init="ntk"), **options)
    others = [problem(15, 61, init="ntk"), problem(15, 61, init="mean_field"), problem(10, 58)]
    with compilations() as names:
        flows = [gflow.solve_flow(*other, **options) for other in others]
    assert names == []
    assert first.params.w.shape == (2, 16, 3)
    assert [flow.params.w.shape[1] for flow in flows] == [15, 15, 10]
    assert flows[1].final.output_scale == 1 / 15


def test_few_widths_and_the_sizes_that_people_choose():
    of = lambda width: padding._next(padding._WIDTHS, width)
    assert len({of(width) for width in range(8, 65)}) == 6
    assert [of(width) for width in (8, 16, 50, 64)] == [8, 16, 50, 64]
    assert of(65) is None and padding._next(padding._ROWS, 513) is None
    assert padding._next(padding._ROWS, 61) == padding._next(padding._ROWS, 64)


@given(st.integers(1, 64), st.integers(1, 3), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_padding_is_undone(width, outs, biases, seed):
    rng = np.random.default_rng(seed)
    b, c = (rng.normal(size=width), rng.normal(size=outs)) if biases else (None, None)
    w, v = rng.normal(size=(width, 2)), rng.normal(size=(width, outs))
    net = gflow.ShallowNet.from_arrays(w, b, v, c, output_scale=0.3)
    risk = gflow.EmpiricalRisk(rng.normal(size=(5, 2)), rng.normal(size=(5, outs)))
    trained, frozen = split_trainable(net)
    wide = padded(risk, pattern_risk_of(risk, trained, frozen, UNSCALED))
    along = jax.tree.map(lambda a: np.asarray(a)[None], eqx.combine(*wide.parts))
    again = without_padding(along, net)
    assert jax.tree.structure(again) == jax.tree.structure(net)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(net)):
        assert np.array_equal(a[0], b)


def test_what_is_large_observed_or_in_other_hands_keeps_its_shapes():
    risk, net = problem(3, 7)
    trained, frozen = split_trainable(net)
    pattern_risk = pattern_risk_of(risk, trained, frozen, UNSCALED)

    class Doubled(gflow.EmpiricalRisk):
        def __call__(self, net):
            return 2 * super().__call__(net)

    assert padded(risk, pattern_risk) is not None
    assert padded(Doubled(risk.x, risk.y), pattern_risk) is None
    assert padded(lambda net: 0.0, None) is None
    large, wide_net = problem(65, 7)
    wide = pattern_risk_of(large, *split_trainable(wide_net), UNSCALED)
    assert padded(large, wide) is None
    seen = []
    observe = {"width": lambda net: seen.append(net.width) or net.c}
    gflow.solve_flow(risk, net, t1=0.1, rtol=1e-3, observe=observe)
    assert set(seen) == {3}


def test_a_loss_that_is_not_finite_everywhere_is_evaluated_at_the_data_alone():
    x = np.array([[1.0], [2.0], [3.0]])
    risk = gflow.EmpiricalRisk(x, np.array([1, 2, 1]), loss=lambda n, y: -y * jax.numpy.log(n) + n)
    net = gflow.ShallowNet.from_arrays([[1.0], [0.5]], [0.1, 0.2], [1.0, 1.0], 0.1)
    flow = gflow.solve_flow(risk, net, t1=0.5, rtol=1e-5)
    assert flow.succeeded and np.isfinite(flow.risk).all() and flow.risk[-1] < flow.risk[0]
