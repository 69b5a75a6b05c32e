import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from tests.helpers.networks_as_vectors import inner, stacked


def shallow_kernel(net, x):
    """K of a shallow tanh net, written out for each pair of rows."""
    w, b, v = (np.asarray(a) for a in (net.w, net.b, net.v))
    z = x @ w.T + b
    s, a, d = net.output_scale, np.tanh(z), 1 - np.tanh(z) ** 2
    inputs = x @ x.T + 1
    return s**2 * (((d * v) @ (d * v).T) * inputs + a @ a.T) + 1


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 3)), rng.normal(size=5)


def test_the_kernel_is_the_formula(data):
    x, y = data
    net = gflow.ShallowNet(3, 7, key=jax.random.key(1), activation="tanh", init="ntk")
    risk = gflow.EmpiricalRisk(x, y)
    kernel = jax.jit(gflow.tangent_kernel)(risk, net)
    np.testing.assert_allclose(kernel, shallow_kernel(net, x), rtol=1e-12)
    least = np.linalg.eigvalsh(shallow_kernel(net, x))[0]
    assert gflow.tangent_kernel_min_eigenvalue(risk, net) == pytest.approx(least, rel=1e-9)
    # Trained parameters only: the bias c alone gives a matrix of ones.
    only_c = gflow.tangent_kernel(risk, net, ("c",))
    np.testing.assert_array_equal(only_c, np.ones((5, 5)))
    assert gflow.tangent_kernel_min_eigenvalue(risk, net, ("c",)) == 0


@pytest.mark.slow
def test_many_outputs_and_batches(data):
    x, _ = data
    y = np.zeros((5, 2))
    risk = gflow.EmpiricalRisk(x, y)
    nets = [eqx.nn.MLP(3, 2, 4, 2, activation=jnp.tanh, key=jax.random.key(k)) for k in (0, 1)]
    kernels = eqx.filter_vmap(lambda net: gflow.tangent_kernel(risk, net))(stacked(nets))
    assert kernels.shape == (2, 10, 10)
    # Rows of one datum together: entry (2k + o, 2l + p) is the product of two gradients.
    gradient = lambda k, o: eqx.filter_grad(lambda net: net(jnp.asarray(x[k]))[o])(nets[1])
    assert kernels[1, 7, 0] == pytest.approx(inner(gradient(3, 1), gradient(0, 0)), rel=1e-12)


def test_residuals_follow_the_kernel(data):
    x, y = data
    net = gflow.ShallowNet(3, 7, key=jax.random.key(1), activation="tanh")
    risk = gflow.EmpiricalRisk(x, y)
    kernel = gflow.tangent_kernel(risk, net)
    gradient = gflow.generalized_gradient(risk, net)
    _, speed = jax.jvp(risk.predictions, (net,), (jax.tree.map(lambda g: -g, gradient),))
    residual = risk.predictions(net) - y
    np.testing.assert_allclose(speed, -2 / 5 * kernel @ residual, rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_constants_along_a_flow(data, weighted):
    x, y = data
    weights = np.array([1.0, 2.0, 0.5, 1.0, 3.0]) if weighted else None
    risk = gflow.EmpiricalRisk(x, y, weights)
    net = gflow.ShallowNet(3, 7, key=jax.random.key(1), activation="tanh")
    flow = gflow.solve_flow(risk, net, t1=2.0, ts=np.linspace(0, 2, 9))
    constants = gflow.pl_constants(risk, flow)
    assert constants.kernel_bound is not None
    assert (constants.kernel_bound <= constants.ratio * (1 + 1e-12)).all()
    assert constants.min_ratio == constants.ratio.min() > 0
    assert "minimum" in repr(constants)
    # The risk falls at least at the slowest of these rates, and they are smooth in between.
    fall = -np.diff(np.log(np.asarray(flow.risk))) / np.diff(np.asarray(flow.ts))
    low = np.minimum(constants.ratio[1:], constants.ratio[:-1])
    assert (fall > 0.99 * low).all()
    if weighted:
        rooted = np.sqrt(weights / weights.sum())
        kernel = rooted[:, None] * np.asarray(gflow.tangent_kernel(risk, flow[4])) * rooted
        assert constants.kernel_bound[4] == pytest.approx(4 * np.linalg.eigvalsh(kernel)[0])
    else:
        least = gflow.tangent_kernel_min_eigenvalue(risk, flow[4])
        assert constants.kernel_bound[4] == pytest.approx(4 / 5 * float(least))


@pytest.mark.slow
def test_other_risks():
    risk = gflow.PopulationRisk(gflow.piecewise.wave(), gflow.piecewise.uniform(-1, 1))
    net = gflow.ShallowNet(1, 4, key=jax.random.key(0))
    with pytest.raises(gflow.ArgumentError, match="EmpiricalRisk"):
        gflow.tangent_kernel(risk, net)
    descent = gflow.descend(risk, net, step_size=0.01, num_steps=3)
    constants = gflow.pl_constants(risk, descent)
    assert constants.kernel_bound is None
    np.testing.assert_allclose(constants.ratio, descent.grad_norm**2 / descent.risk, rtol=1e-12)
