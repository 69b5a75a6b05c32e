r"""The Jacobian of the field of a fixed pattern, in closed form.

While the pattern stays, the outputs $N_r = c + s \sum_i v_i \sigma'_{ir} \langle u_i, x_r\rangle$
are bilinear in $u_i = (w_i, b_i)$ and $v_i$, so that with $G_r = \partial N_r / \partial\theta$ and
the Hessians $D_r$ of the loss in $N_r$

$$\nabla^2 L = \sum_r G_r^\top D_r G_r + X + X^\top, \qquad
X_{v_{io}, u_i} = s \sum_r \frac{\partial L}{\partial N_{ro}} \, \sigma'_{ir} x_r.$$
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.nonsmooth.shallow.pattern import ShallowPattern
from gflow.nonsmooth.shallow.units import free
from gflow.parameters import ParameterLayout

if TYPE_CHECKING:
    from gflow.nonsmooth.shallow.risk import ShallowPatternRisk


def field_jacobian(
    risk: "ShallowPatternRisk", t, y: Float[Array, " size_and_one"], pattern: ShallowPattern
) -> Float[Array, "size_and_one size_and_one"]:
    """The Jacobian of `risk.field` on the directions in which the flow is free.

    Minus the Hessian between the projectors onto them, so symmetric, and below it the row of the
    dissipation. Field and flow stay in these directions, where the Jacobian has nothing else.
    """
    hessian = _free_hessian(risk, y[:-1], pattern)
    velocity = risk.field(t, y, pattern)[:-1]
    rows = jnp.concatenate([-hessian, -2 * (velocity @ hessian)[None, :]])
    return jnp.pad(rows, ((0, 0), (0, 1)))


def _free_hessian(
    risk: "ShallowPatternRisk", theta: Array, pattern: ShallowPattern
) -> Float[Array, "size size"]:
    net, z = risk.net(theta), risk.z(risk.net(theta))
    slopes = risk.slopes(pattern)
    a, scale, v = slopes * z, risk.output_scale, net.v.reshape(len(net.v), -1)
    width, outs = v.shape
    rows = len(risk.normals)
    outputs = scale * (a.T @ v)
    if net.c is not None:
        outputs = outputs + jnp.broadcast_to(net.c, (rows, outs))
    slope, curvature = _derivatives_of_loss(risk, outputs.reshape(rows, *net.v.shape[1:]))

    # ∂a_ir/∂u_i along the free directions.
    moves = slopes[:, :, None] * jnp.einsum("rd,ide->ire", risk.normals, pattern.projector)
    eye = jnp.eye(outs, dtype=z.dtype)
    g = risk.assembled(
        scale * jnp.einsum("io,ird->roid", v, moves),
        scale * jnp.einsum("ir,op->roip", a, eye),
        jnp.broadcast_to(eye, (rows, outs, outs)),
    )
    curved = jnp.einsum("rop,rpn->ron", curvature, g)
    hessian = jnp.einsum("rom,ron->mn", g, curved) + _of_penalty(risk, theta, pattern)
    if risk.trained.v is None:
        return hessian

    x = risk.by_phi("v", scale * jnp.einsum("ro,ird->iod", slope, moves))
    by_u = jnp.einsum("iod,ij->iojd", x, jnp.eye(width, dtype=z.dtype))
    by_v = jnp.zeros((width, outs, width, outs), z.dtype)
    tall = risk.assembled(by_u, by_v, by_v[:, :, 0]).reshape(width * outs, -1)
    first = int(ParameterLayout(risk.trained).places.v.flat[0])
    of_v = slice(first, first + width * outs)
    return hessian.at[of_v].add(tall).at[:, of_v].add(tall.T)


def _of_penalty(risk: "ShallowPatternRisk", theta: Array, pattern: ShallowPattern) -> Array:
    """The Hessian of the penalty between the projectors, 0 if there is none."""
    if risk.penalty is None:
        return jnp.zeros((), theta.dtype)

    def along(direction: Array) -> Array:
        u = risk.by_units(jnp.append(direction, 0.0))
        return direction + risk.moved(free(pattern, u) - u)

    return jax.vmap(along)(jax.vmap(along)(jax.hessian(risk.penalty_at)(theta)).T)


def _derivatives_of_loss(risk: "ShallowPatternRisk", outputs: Array) -> tuple[Array, Array]:
    """∂L/∂N (rows, outs) and ∂²L/∂N² (rows, outs, outs) for each distinct row."""
    group, one = risk.group, outputs.shape[1:]
    by_data = outputs if group is None else outputs[group]

    def loss(n, y):
        return risk.loss(n.reshape(one), y)

    flat = by_data.reshape(len(by_data), -1)
    slope = risk.weights[:, None] * jax.vmap(jax.grad(loss))(flat, risk.y)
    curvature = risk.weights[:, None, None] * jax.vmap(jax.hessian(loss))(flat, risk.y)
    if group is None:
        return slope, curvature
    total = lambda by_data: jax.ops.segment_sum(by_data, group, risk.rows.shape[0])
    return total(slope), total(curvature)
