import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gflow
from tests.helpers.derivatives import hessian


@pytest.mark.parametrize(("width", "activation"), [(5, "tanh"), (40, "tanh"), (40, "relu")])
def test_it_is_the_largest_eigenvalue(width, activation, wave):
    net = gflow.ShallowNet(1, width, key=jax.random.key(2), activation=activation)
    largest = np.linalg.eigvalsh(hessian(wave, net))[-1]
    assert gflow.sharpness(wave, net) == pytest.approx(largest, rel=1e-7)


def test_negative_eigenvalues_of_larger_size_do_not_count():
    risk = lambda net: 0.5 * jnp.sum(jnp.append(jnp.full(99, -5.0), 2.0) * net["theta"] ** 2)
    assert gflow.sharpness(risk, {"theta": jnp.ones(100)}) == pytest.approx(2.0, rel=1e-8)


def test_low_rank_and_zero_hessians():
    rank_one = lambda net: 0.5 * net["theta"][3] ** 2
    assert gflow.sharpness(rank_one, {"theta": jnp.ones(100)}) == pytest.approx(1.0, rel=1e-8)
    flat = lambda net: jnp.sum(net["theta"])
    assert gflow.sharpness(flat, {"theta": jnp.ones(100)}) == 0.0
    assert gflow.sharpness(flat, {"theta": jnp.ones(3)}) == 0.0


def test_trained_parameters_only(wave):
    net = gflow.ShallowNet(1, 5, key=jax.random.key(2))
    # The Hessian in c alone is 2.
    assert gflow.sharpness(wave, net, ("c",)) == pytest.approx(2.0, rel=1e-14)
