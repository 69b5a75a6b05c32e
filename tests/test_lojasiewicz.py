"""Rates of flows whose law is known, and their Łojasiewicz inequalities."""

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import gflow
from gflow import plots


class Product(eqx.Module):
    """x -> w_K relu(... relu(w_1 x)) for positive weights and x: their product, times x."""

    w: jax.Array

    def __call__(self, x):
        z = x[0]
        for k in range(self.w.shape[0]):
            z = jax.nn.relu(self.w[k] * z)
        return z


def to_zero(net):
    return net(jnp.ones(1)) ** 2 / 2


def to_one(net):
    return (net.w[0] * net.w[1] - 1) ** 2


@pytest.fixture(
    scope="module", params=[2, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (3, 4))]
)
def chain(request):
    """A ReLU chain of equal weights, whose risk is (w_0^{-(2K-2)} + (2K-2) t)^{-K/(K-1)} / 2."""
    flow = gflow.solve_flow(to_zero, Product(jnp.full(request.param, 0.8)), t1=1e6)
    return request.param, flow


@pytest.mark.slow
def test_relu_chains_follow_their_power_law(chain):
    depth, flow = chain
    rate = gflow.fit_rate(flow.ts, flow.risk)
    power = depth / (depth - 1)
    assert rate.law == "power" and rate.value == pytest.approx(power, rel=1e-3)
    assert rate.interval[0] <= power <= rate.interval[1]


def test_lojasiewicz_exponents_of_chains(chain):
    depth, flow = chain
    found = gflow.lojasiewicz(flow, 0.0, Product(jnp.zeros(depth)))
    # With N = w^K: L = N²/2 and ‖G‖ = √K w^{2K-1}, so that L^{1-1/(2K)} = 2^{1/(2K)-1}/√K ‖G‖.
    assert found.exponent == pytest.approx(1 - 1 / (2 * depth), rel=1e-9)
    constant = 2 ** (1 / (2 * depth) - 1) / np.sqrt(depth)
    assert found.constant == pytest.approx(constant, rel=1e-6)
    assert found.implied_law == "power" and found.agree and found.implied is not None
    assert found.implied.value == pytest.approx(depth / (depth - 1), rel=1e-8)
    # sup (1+t) L from the closed form, on the saved times; ‖Θ‖ = √K w ~ t^{-1/(2K-2)}.
    m = 2 * depth - 2
    ts = np.asarray(flow.ts)
    exact = (1 + ts) * (0.8**-m + m * ts) ** (-2 * depth / m) / 2
    assert found.risk_bound.constant == pytest.approx(exact.max(), rel=1e-6)
    assert found.risk_bound.falling and found.risk_bound.exponent == 1
    assert found.distance_bound.exponent == pytest.approx(1 / m, rel=1e-4)
    assert "agrees" in repr(found) and "gap ≤" in repr(found)


def test_a_hyperbola_closes_at_the_rate_of_its_spectrum():
    # O11: u² − v² = 1.12 is conserved, and near u v = 1 the gap has the rate 4 (u² + v²) there.
    flow = gflow.solve_flow(to_one, Product(jnp.array([1.6, 1.2])), t1=5.0)
    exact = 4 * np.sqrt(1.12**2 + 4)
    rate = gflow.fit_rate(flow.ts, flow.risk, predicted=exact)
    assert rate.law == "exponential" and rate.value == pytest.approx(exact, rel=1e-2)
    assert rate.interval[0] <= exact <= rate.interval[1]
    assert "inside the interval" in rate.verdict
    found = gflow.lojasiewicz(flow, 0.0, flow.final)
    assert found.exponent == pytest.approx(0.5, abs=1e-3)
    assert found.implied_law == "exponential" and found.agree and found.implied is not None
    assert found.implied.value == pytest.approx(exact, rel=0.02)


def test_a_deep_linear_mode_closes_at_its_rate():
    # O10 with s = 1 and this risk: (u − 1)' → −4 (u − 1), so that the gap has the rate 8.
    flow = gflow.solve_flow(to_one, Product(jnp.array([0.1, 0.1])), t1=5.0)
    rate = gflow.fit_rate(flow.ts, flow.risk)
    assert rate.law == "exponential" and rate.value == pytest.approx(8, rel=1e-2)
    assert rate.interval[0] <= 8 <= rate.interval[1]


@pytest.mark.slow
def test_one_neuron_and_its_gaussian_teacher():
    # O13: L ~ e^-t for the risk with a factor of one half, so e^-2t for this one.
    teacher = gflow.ShallowNet.from_arrays([[1.0, 0.0]], None, [1.0], None)
    student = gflow.ShallowNet.from_arrays([[0.3, 0.8]], None, [1.0], None)
    risk = gflow.GaussianRisk(teacher)
    flow = gflow.solve_flow(risk, student, t1=60.0, trainable=("w",))
    rate = gflow.fit_rate(flow.ts, flow.risk)
    assert rate.law == "exponential" and rate.value == pytest.approx(2, rel=1e-2)
    assert rate.interval[0] <= 2 <= rate.interval[1]


def bowl(net):
    return net.w[0] ** 2 + 1.3 * net.w[1] ** 2


@pytest.mark.slow
def test_an_exponential_rate_is_implied_by_the_constant_of_one_half():
    # Two modes that are not apart yet, so that α is fitted next to 1/2, where C is another one.
    flow = gflow.solve_flow(bowl, Product(jnp.array([0.1, 1.0])), t1=5.0)
    found = gflow.lojasiewicz(flow, 0.0)
    assert found.exponent != pytest.approx(0.5, abs=1e-3) and found.implied is not None
    # ‖G‖² = −L' and L = 0.01 e^-4t + 1.3 e^-5.2t: their ratio falls, and is least at the end.
    slow, fast = 0.01 * np.exp(-4 * 5.0), 1.3 * np.exp(-5.2 * 5.0)
    least = (4 * slow + 5.2 * fast) / (slow + fast)
    assert found.implied_law == "exponential"
    assert found.implied.value == pytest.approx(least, rel=1e-3)


def test_limits_of_other_shapes_are_named(chain):
    depth, flow = chain
    with pytest.raises(ValueError, match="`limit_net`: got a network of other shapes"):
        gflow.lojasiewicz(flow, 0.0, Product(jnp.zeros(depth + 1)))


def test_figures_mark_the_tail_and_the_plateau(chain):
    _, flow = chain
    rate = gflow.fit_rate(flow.ts, flow.risk)
    fig = plots.rate_figure(flow.ts, flow.risk, rate)
    log_log, log_linear, powers, rates = fig.axes
    assert log_log.get_xscale() == "log" and log_linear.get_xscale() == "linear"
    assert log_log.get_yscale() == log_linear.get_yscale() == "log"
    labels = [text.get_text() for text in powers.get_legend().get_texts()]
    assert labels[0].startswith("plateau") and labels[1].startswith("fit")
    # No stretch of a power law of this length is exponential.
    assert rates.get_legend() is None or "fit" not in rates.get_legend().get_texts()[0].get_text()
    plt.close(fig)
