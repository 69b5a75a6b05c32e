"""Lists of pairs of a unit and a row, found in a mask."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gflow.nonsmooth import pairs
from gflow.nonsmooth.pairs import Pairs

MOST = 7
SHAPES = [(3, 31), (2, 32), (5, 65), (1, 1)]
WAYS = {
    name: jax.jit(partial(getattr(Pairs, name), most=MOST)) for name in ("_one_by_one", "_at_once")
}


@pytest.mark.parametrize("way", WAYS)
@given(shape=st.sampled_from(SHAPES), number=st.integers(0, 12), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_pairs_of_a_mask_come_in_order_and_too_many_are_told(way, shape, number, seed):
    size = shape[0] * shape[1]
    mask = np.zeros(size, bool)
    mask[np.random.default_rng(seed).choice(size, min(number, size), replace=False)] = True
    mask = mask.reshape(shape)
    found = WAYS[way](mask)
    filled = np.asarray(found.filled)
    units, rows = np.nonzero(mask)
    np.testing.assert_array_equal(found.unit[filled], units[:MOST])
    np.testing.assert_array_equal(found.row[filled], rows[:MOST])
    assert filled.sum() == min(len(units), MOST)
    assert filled[: filled.sum()].all()
    assert bool(found.overflows) == (len(units) > MOST)


def test_large_masks_take_the_other_way(monkeypatch):
    mask = np.zeros((4, 40), bool)
    mask[[0, 2, 3], [39, 31, 32]] = True
    mask = jnp.asarray(mask)
    one = Pairs.where(mask, MOST)
    monkeypatch.setattr(pairs, "_SMALL", 0)
    other = Pairs.where(mask, MOST)
    for ours, theirs in zip(one, other):
        np.testing.assert_array_equal(ours, theirs)
