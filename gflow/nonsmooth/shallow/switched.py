"""The switched risk of a network and its data, where there is one."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gflow.activations import PiecewiseLinear
from gflow.arguments import is_concrete
from gflow.networks import ShallowNet
from gflow.nonsmooth.shallow.risk import SwitchedRisk
from gflow.nonsmooth.shallow.rows import distinct_rows, lines
from gflow.risks import EmpiricalRisk


def switched(risk: Any, trained: PyTree, frozen: PyTree) -> SwitchedRisk | None:
    """The risk pattern by pattern, or None where no kinks are known.

    That is where the risk is not the `EmpiricalRisk` of a `ShallowNet`, its activation is smooth,
    or neither w nor b is trained.
    """
    net = eqx.combine(trained, frozen)
    if not isinstance(risk, EmpiricalRisk) or not isinstance(net, ShallowNet):
        return None
    activation = net.activation
    if not isinstance(activation, PiecewiseLinear) or not activation.kinked:
        return None
    if trained.w is None and trained.b is None:
        return None
    # In the precision of the parameters, which is that of the flow.
    dtype = net.w.dtype
    rows, first, group = distinct_rows(risk.x.astype(dtype))
    # Done by NumPy if it can be: eager operations of JAX would take as long as a short flow.
    like = np if is_concrete(rows) else jnp
    x = like.asarray(rows)
    ones = like.ones((x.shape[0], 1), x.dtype)
    parts = ([x] if trained.w is not None else []) + ([ones] if trained.b is not None else [])
    sizes = like.linalg.norm(x if net.b is None else like.concatenate([x, ones], 1), axis=1)
    # A row at the origin of a net without biases has no kink: its z is always 0.
    sizes = like.where(sizes > 0, sizes, 1.0)
    normals = like.concatenate(parts, axis=1)
    n, weights = risk.num_data, risk.weights
    return SwitchedRisk(
        trained=trained,
        frozen=frozen,
        rows=rows,
        group=group,
        first=first,
        y=risk.y.astype(dtype) if jnp.issubdtype(risk.y.dtype, jnp.floating) else risk.y,
        weights=jnp.asarray(like.full(n, 1 / n, dtype) if weights is None else weights, dtype),
        normals=jnp.asarray(normals),
        sizes=jnp.asarray(sizes, dtype),
        lines=lines(normals, sizes),
        loss=risk.loss,
        slope=activation.negative_slope,
    )
