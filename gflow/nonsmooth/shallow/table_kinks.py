"""What the kinks of a network depend on in a table of data, computed once for each risk."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.arguments import is_concrete
from gflow.nonsmooth.shallow.kink_geometry import (
    NormalLines,
    distinct_rows,
    normal_lines,
    on_device,
    words_on_near_rows,
)
from gflow.risks import EmpiricalRisk

Kept = TypeVar("Kept")


class Inputs(NamedTuple):
    """Which parameters of a unit there are, and are trained."""

    w_trained: bool
    b_trained: bool
    has_b: bool


class TableKinks(NamedTuple):
    """The distinct rows with their normals, `sizes` and `lines`, and targets and weights of all
    data, as in `ShallowPatternRisk`."""

    rows: Float[Array, "rows in"]
    group: Int[Array, " data"] | None
    first_datum: Int[Array, " rows"]
    y: Array
    weights: Float[Array, " data"]
    normals: Float[Array, "rows dim"]
    sizes: Float[Array, " rows"]
    lines: NormalLines


# By the identity of a risk, as long as it lives.
_KNOWN: dict[int, tuple[weakref.ref[EmpiricalRisk], dict[Any, Any]]] = {}


def table_kinks(risk: EmpiricalRisk, dtype: Any, inputs: Inputs) -> TableKinks:
    """For units with these inputs, in this precision; computed at the first call for a risk."""
    if not is_concrete(risk):
        return _computed(risk, dtype, inputs)
    return kept_for(risk, (dtype, inputs), lambda: _computed(risk, dtype, inputs))


def kept_for(risk: EmpiricalRisk, name: Any, make: Callable[[], Kept]) -> Kept:
    """What is made from a known risk, made at the first call of this name."""
    place = id(risk)
    if place not in _KNOWN:
        forget = lambda _: _KNOWN.pop(place, None)
        _KNOWN[place] = weakref.ref(risk, forget), {}
    kept = _KNOWN[place][1]
    if name not in kept:
        # Known data are known in `jax.jit`, too.
        with jax.ensure_compile_time_eval():
            kept[name] = make()
    return kept[name]


def near_rows(risk: EmpiricalRisk) -> str | None:
    """A warning of distinct rows that nearly agree; None if there are none, or JAX traces them."""
    if not is_concrete(risk):
        return None

    def words():
        rows, first, _ = distinct_rows(risk.x)
        kept = np.asarray(first)
        return words_on_near_rows(np.asarray(rows), np.asarray(risk.y)[kept], kept)

    return kept_for(risk, "near rows", words)


def _computed(risk: EmpiricalRisk, dtype: Any, inputs: Inputs) -> TableKinks:
    rows, first, group = distinct_rows(risk.x.astype(dtype))
    # By NumPy if possible: eager operations of JAX would take as long as a short flow.
    like = np if is_concrete(rows) else jnp
    x = like.asarray(rows)
    ones = like.ones((x.shape[0], 1), x.dtype)
    parts = ([x] if inputs.w_trained else []) + ([ones] if inputs.b_trained else [])
    sizes = like.linalg.norm(like.concatenate([x, ones], 1) if inputs.has_b else x, axis=1)
    # A row at the origin of a net without biases has no kink: its z is always 0.
    sizes = like.where(sizes > 0, sizes, 1.0)
    normals = like.concatenate(parts, axis=1)
    n, weights = risk.num_data, risk.weights
    return TableKinks(
        rows=rows,
        group=group,
        first_datum=first,
        y=risk.y.astype(dtype) if jnp.issubdtype(risk.y.dtype, jnp.floating) else risk.y,
        weights=on_device(like.full(n, 1 / n) if weights is None else weights, dtype),
        normals=on_device(normals, dtype),
        sizes=on_device(sizes, dtype),
        lines=normal_lines(normals, sizes),
    )
