"""Pairs of floats against rational arithmetic, compiled and not, in both precisions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gflow.risks import compensated
from gflow.risks.compensated import FloatPair, add, multiply, subtract, two_product, two_sum

N = 64
NUMBERS = st.floats(-1e30, 1e30).map(lambda x: x if abs(x) > 1e-30 else 0.0)


def program(a, b, c, d):
    """Products enter sums and each other, so that a compiler could fuse and recompute them."""
    x = add(two_product(a, b), two_product(c, d))
    y = add(two_product(d, a), b)
    return two_sum(a, b), two_product(a * b + c, d), x, multiply(x, y), subtract(multiply(x, c), y)


compiled = jax.jit(program)


def fraction(pair: FloatPair, i: int) -> Fraction:
    return Fraction(float(pair.hi[i])) + Fraction(float(pair.lo[i]))


def expected(a, b, c, d, joined):
    """The exact results, and the sums of the sizes of their terms."""
    a, b, c, d = (Fraction(float(x)) for x in (a, b, c, d))
    x, y = a * b + c * d, d * a + b
    of_x, of_y = abs(a * b) + abs(c * d), abs(d * a) + abs(b)
    return (
        (a + b, Fraction(0)),
        (joined * d, abs(joined * d)),
        (x, of_x),
        (x * y, of_x * of_y),
        (x * c - y, of_x * abs(c) + of_y),
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(NUMBERS, min_size=4 * N, max_size=4 * N), st.booleans())
def test_results_are_those_of_rational_arithmetic(numbers, in_jax):
    a, b, c, d = arrays = np.array(numbers).reshape(4, N)
    results = compiled(*map(jnp.asarray, arrays)) if in_jax else program(*arrays)
    for i in range(N):
        # a·b + c may be rounded once or twice; the product is checked for both values.
        one = float(Fraction(a[i]) * Fraction(b[i]) + Fraction(c[i]))
        both = {Fraction(one), Fraction(a[i] * b[i] + c[i])}
        errors = []
        for joined in both:
            pairs = zip(results, expected(a[i], b[i], c[i], d[i], joined))
            # A dozen roundings of 2^-105.
            errors.append([abs(fraction(r, i) - e) <= 2**-100 * size for r, (e, size) in pairs])
        assert any(all(row) for row in errors)


def test_compiled_results_are_those_of_numpy_in_both_precisions():
    rng = np.random.default_rng(0)
    for dtype, digits in ((np.float64, 53), (np.float32, 24)):
        arrays = (rng.normal(size=(4, N)) * 10.0 ** rng.integers(-3, 3, (4, N))).astype(dtype)
        for got, wanted in zip(compiled(*map(jnp.asarray, arrays))[2:], program(*arrays)[2:]):
            np.testing.assert_array_equal(got.hi, wanted.hi)
            np.testing.assert_array_equal(got.lo, wanted.lo)
            assert got.hi.dtype == dtype
            assert np.all(np.abs(got.lo) <= 2.0**-digits * np.abs(got.hi))


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 31, 200])
def test_sums_up_to_each_entry_do_not_round(n):
    rng = np.random.default_rng(n)
    terms = rng.normal(size=(2, 2, n)) * 10.0 ** rng.integers(-6, 6, (2, 2, n))
    pair = two_product(*(jnp.asarray(a) for a in terms))
    sums = jax.jit(
        lambda p: compensated.joined(
            *(compensated.prefix_sums(a) for a in compensated.exact_levels(p))
        )
    )(pair)
    for row in range(2):
        total, sizes = Fraction(0), Fraction(0)
        largest = max(abs(fraction(pair.part(row), i)) for i in range(n))
        for i in range(n):
            entry = fraction(pair.part(row), i)
            total, sizes = total + entry, sizes + abs(entry)
            # Rounding of the result, and of the third level: 32 n² 2^-106 of the largest entry.
            allowed = 2**-104 * sizes + n**3 * 2**-150 * largest
            assert abs(fraction(sums.part(row), i) - total) <= allowed


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=70, max_size=70))
def test_prefix_sums_of_whole_numbers(numbers):
    array = jnp.asarray(numbers, float).reshape(2, 35)
    np.testing.assert_array_equal(compensated.prefix_sums(array), np.cumsum(array, axis=1))
