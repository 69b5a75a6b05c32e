"""The place at which a function of the fraction of a step falls through zero."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gflow.flow.root import falling_root

EPS = 1e-12
NOWHERE = lambda fraction: jnp.asarray(False)
SHAPES = {
    "line": lambda x, root: root - x,
    "steep": lambda x, root: jnp.tanh(50 * (root - x)),
    "flat": lambda x, root: (root - x) * (0.01 + (root - x) ** 2),
    "curved": lambda x, root: (root - x) * (1 + x + x**2),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=20)
@given(root=st.floats(0.01, 0.99))
def test_roots_of_falling_functions(shape, root):
    height = lambda x: SHAPES[shape](x, root)
    found = falling_root(height, jnp.asarray(1.0), eps=EPS, amid=NOWHERE)
    # To half of eps in height, at slopes of at least 0.01.
    assert abs(float(found) - root) <= 100 * EPS


def test_a_function_that_stays_positive_has_no_root():
    found = falling_root(lambda x: 0.1 + 0 * x, jnp.asarray(1.0), eps=EPS, amid=NOWHERE)
    assert found == jnp.inf


def test_places_amid_a_step_are_found_to_a_few_digits_only():
    height = lambda x: jnp.cos(2 * x)
    coarse = falling_root(height, jnp.asarray(1.0), eps=EPS, amid=lambda x: jnp.asarray(True))
    fine = falling_root(height, jnp.asarray(1.0), eps=EPS, amid=NOWHERE)
    error = lambda found: abs(float(found) - np.pi / 4)
    assert error(fine) < 1e-12 < error(coarse) < 1e-3
