"""Rows of arrays at a traced index, written without the checks of indices that lie outside."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def with_row(array: Array, index: Int[Array, ""], row: Any) -> Array:
    """The array with one row replaced. An index past the end is that of the last row."""
    row = jnp.broadcast_to(jnp.asarray(row, array.dtype), array.shape[1:])
    return jax.lax.dynamic_update_index_in_dim(array, row, index, 0, allow_negative_indices=False)
