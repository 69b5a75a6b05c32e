r"""Proved lower bounds of ‖∇f‖²/f and upper bounds of ‖∇²f‖ over a ball of parameters.

For $f = |e|^2$ with residuals $e(\theta)$ and $J = \partial e/\partial\theta$, where
$\nabla f = 2J^\top e$,

$$\frac{\|\nabla f\|^2}{f} \ge 4\,\sigma_{\min}(J)^2, \qquad
  \|\nabla^2 f\| \le 2\,\|J\|^2 + 2\,\mathrm{Lip}(J)\,\sqrt f .$$
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from gflow.activations import as_activation
from gflow.arguments import ArgumentError, PyTree, positive
from gflow.certificates.activation_bounds import HostActivation, SlopeBounds, host_activation
from gflow.certificates.enclosures import (
    AffineLayer,
    Ball,
    JacobianBlock,
    NetworkEnclosure,
    enclose,
)
from gflow.networks import ShallowNet
from gflow.parameters import split_trainable
from gflow.risks import EmpiricalRisk
from gflow.risks.empirical import squared_loss


class SumOfSquares(eqx.Module):
    r"""The function $f(\theta) = |e(\theta)|^2$ of parameters θ, with a bound for `chatterjee`.

    **Arguments:**

    - `residual`: e, from the parameters (an array, or any pytree) to an array.
    - `jacobian_lipschitz`: a Lipschitz constant, in the spectral norm, of the Jacobian of e in θ;
      or a function that maps r to one for the ball of radius r about the start. The user guarantees
      it. It is 0 for affine e, and 1 for e(u, v) = uv − 1 with the Jacobian (v, u).

    **Raises:** `ArgumentError` if `residual` is no function, or the constant negative.
    """

    residual: Callable
    jacobian_lipschitz: float | Callable

    def __init__(self, residual: Callable, jacobian_lipschitz: Any):
        if not callable(residual):
            raise ArgumentError("residual", residual, "a function of the parameters")
        self.residual = residual
        self.jacobian_lipschitz = (
            jacobian_lipschitz
            if callable(jacobian_lipschitz)
            else positive("jacobian_lipschitz", jacobian_lipschitz, or_zero=True)
        )

    def __call__(self, theta: PyTree) -> Float[Array, ""]:
        """|e(θ)|²."""
        return jnp.sum(self.residual(theta) ** 2)


class Bounds(ABC):
    """Proved bounds of f over balls about the start. f is not negative."""

    @abstractmethod
    def value(self) -> float | None:
        """An upper bound of f at the start, rounding included; None to use f as it is computed."""

    @abstractmethod
    def alpha(self, radius: float) -> float:
        """A lower bound of ‖∇f‖²/f over the points of the ball with f ≠ 0; 0 if none is known."""

    @abstractmethod
    def curvature(self, radius: float, value: float) -> float | None:
        """An upper bound of ‖∇²f‖ over the part of the ball with f ≤ value; None if unknown."""

    @abstractmethod
    def obstacle(self, radius: float) -> str | None:
        """Why there is no positive lower bound over this ball; None if there is one."""

    @abstractmethod
    def critical(self) -> float | None:
        """The distance of a critical point with f > 0; None if none is known."""


class GivenBounds(Bounds):
    """Bounds that the user supplies as functions of the radius, or a reason why there are none."""

    def __init__(
        self, alpha_bound: Callable | None, curvature_bound: Callable | None, reason: str | None
    ):
        self.alpha_bound, self.curvature_bound = alpha_bound, curvature_bound
        self.reason = reason

    def value(self) -> float | None:
        return None

    def alpha(self, radius: float) -> float:
        return 0.0 if self.alpha_bound is None else max(float(self.alpha_bound(radius)), 0.0)

    def curvature(self, radius: float, value: float) -> float | None:
        return None if self.curvature_bound is None else float(self.curvature_bound(radius))

    def obstacle(self, radius: float) -> str | None:
        return self.reason if self.alpha_bound is None else None

    def critical(self) -> float | None:
        return None


class SquaresBounds(Bounds):
    """Bounds of a `SumOfSquares`, from the singular values of J at the start."""

    def __init__(self, risk: SumOfSquares, net: PyTree, trainable: Any):
        self.risk = risk
        jacobian = np.asarray(_jacobian(risk.residual, *split_trainable(net, trainable)))
        margin = 100 * np.finfo(jacobian.dtype).eps * sum(jacobian.shape)
        self.sigma = singular_values(jacobian.astype(float), float(margin))

    def value(self) -> float | None:
        return None

    def _lipschitz(self, radius: float) -> float:
        bound = self.risk.jacobian_lipschitz
        return float(bound(radius)) if callable(bound) else bound

    def alpha(self, radius: float) -> float:
        return 4 * max(self.sigma.min - self._lipschitz(radius) * radius, 0.0) ** 2 * (1 - 1e-14)

    def curvature(self, radius: float, value: float) -> float | None:
        lipschitz = self._lipschitz(radius)
        return 2 * (self.sigma.max + lipschitz * radius) ** 2 + 2 * lipschitz * value**0.5

    def obstacle(self, radius: float) -> str | None:
        if self.alpha(radius) > 0:
            return None
        return "the Jacobian of the residuals may lose its rank within the ball"

    def critical(self) -> float | None:
        return None


@eqx.filter_jit
def _jacobian(residual: Callable, trained: PyTree, frozen: PyTree) -> Array:
    theta, unravel = ravel_pytree(trained)
    return jax.jacrev(lambda p: residual(eqx.combine(unravel(p), frozen)).reshape(-1))(theta)


class SingularValues(NamedTuple):
    """A lower bound of the smallest singular value, and an upper bound of the largest."""

    min: float
    max: float


def singular_values(jacobian: Float[np.ndarray, "rows columns"], margin: float) -> SingularValues:
    """Bounds of σ_min (0 with more rows than columns) and σ_max, rounding included."""
    values = np.linalg.svd(jacobian, compute_uv=False)
    slack = margin * np.linalg.norm(jacobian)
    smallest = values[-1] if jacobian.shape[0] <= jacobian.shape[1] else 0.0
    return SingularValues(max(float(smallest - slack), 0.0), float(values[0] + slack))


class NetworkBounds(Bounds):
    r"""Bounds of the mean of squares of a feedforward network.

    $J$ has a block for each layer, $q_i \otimes (a_i, 1)$ with the layer's inputs $a_i$ and
    $q_i = \partial N(x_i)/\partial z_i$. The lower bound of λ_min(JJᵀ) is the larger of

    - $(\sigma_{\min}(J(\theta^0)) - \sup\|J(\theta) - J(\theta^0)\|)_+^2$;
    - the sum over the layers of $\lambda_{\min}(\tilde A \tilde A^\top)\,\min_i
      \sigma_{\min}(q_i)^2$, where $\tilde A$ has the rows $(a_i, 1)$, by the Schur product theorem.
      For the first layer, whose inputs are the data, this is Chatterjee's argument.
    """

    def __init__(
        self, layers: list[AffineLayer], activation: HostActivation | None, risk: EmpiricalRisk
    ):
        x, y = (np.asarray(a, float) for a in (risk.x, risk.y))
        n = len(x)
        weights = np.full(n, 1 / n) if risk.weights is None else np.asarray(risk.weights, float)
        some = weights > 0
        self.layers, self.activation = layers, activation
        self.x, self.y, self.weights = x[some], y[some].reshape(int(some.sum()), -1), weights[some]
        longest = max(max(layer.matrix.shape) for layer in layers) + y.size + 10
        self.margin = 100 * np.finfo(float).eps * longest * len(layers)
        at_start = self._over(0.0)
        jacobian = np.concatenate([_flat(block) for block in at_start.blocks], axis=1)
        rooted = self._rooted(jacobian.reshape(*self.y.shape, -1)).reshape(self.y.size, -1)
        smallest, largest = singular_values(rooted, self.margin)
        rounding = self._change(at_start, Ball(0.0, self.margin))
        self.sigma = SingularValues(max(smallest - rounding, 0.0), largest + rounding)
        self.min_of_inputs = [
            singular_values(self._rooted(block.inputs()), self.margin).min
            for block in at_start.blocks
        ]
        self._alphas: dict[float, float] = {}

    def _over(self, radius: float, lipschitz: bool = False) -> NetworkEnclosure:
        return enclose(self.layers, self.activation, self.x, Ball(radius, self.margin, lipschitz))

    def _rooted(self, rows: np.ndarray) -> np.ndarray:
        """Rows of data, multiplied by the square roots of their weights."""
        return np.sqrt(self.weights).reshape(-1, *[1] * (rows.ndim - 1)) * rows

    def _contributions(self, over: NetworkEnclosure, ball: Ball) -> np.ndarray:
        blocks = [self._rooted(block.contributions(ball)) for block in over.blocks]
        return np.concatenate([b.reshape(-1, b.shape[-1]) for b in blocks])

    def _change(self, over: NetworkEnclosure, ball: Ball) -> float:
        """A bound of ‖J(θ) − J(θ⁰)‖ over the ball, or of r times the Lipschitz constant of J."""
        contributions = self._contributions(over, ball)
        of_layers, rounding = contributions[:, :-1], contributions[:, -1]
        change = ball.radius * np.linalg.norm(of_layers, 2) + np.linalg.norm(rounding)
        return float((1 + ball.margin) * change)

    def value(self) -> float | None:
        output = self._over(0.0).output
        off = np.maximum(abs(output.low - self.y), abs(output.high - self.y))
        return float((1 + self.margin) * self.weights @ np.sum(off**2, axis=1))

    def alpha(self, radius: float) -> float:
        if radius not in self._alphas:
            self._alphas[radius] = self._alpha(radius)
        return self._alphas[radius]

    def _alpha(self, radius: float) -> float:
        ball, over = Ball(radius, self.margin), self._over(radius)
        if self._kink(over) is not None:
            return 0.0
        whole = max(self.sigma.min - self._change(over, ball), 0.0) ** 2
        layers = sum(self._of_layer(k, block, ball) for k, block in enumerate(over.blocks))
        return float(4 * (1 - self.margin) * max(whole, layers))

    def _of_layer(self, k: int, block: JacobianBlock, ball: Ball) -> float:
        """A lower bound of λ_min of this layer's term of JJᵀ."""
        of_inputs = self.min_of_inputs[k]
        moves = self._rooted(block.layer.reach * block.a.norm)
        of_inputs -= ball.radius * np.linalg.norm(moves[:, :-1], 2) + np.linalg.norm(moves[:, -1])
        if of_inputs <= 0:
            return 0.0
        if block.q.centre.shape[1] == 1:
            smallest = block.q.min_norm(ball)[:, 0]
        else:
            smallest = _min_singular_values(block, ball)
        return float(max(of_inputs, 0.0) ** 2 * max(smallest.min(), 0.0) ** 2) * (1 - self.margin)

    def curvature(self, radius: float, value: float) -> float | None:
        ball = Ball(radius, self.margin, lipschitz=True)
        around = self._over(radius, lipschitz=True)
        contributions = self._contributions(around, ball)[:, :-1]
        lipschitz = np.linalg.norm(contributions, 2)
        size = self.sigma.max + min(
            self._change(self._over(radius), Ball(radius, self.margin)), radius * lipschitz
        )
        return float((1 + self.margin) * (2 * size**2 + 2 * lipschitz * value**0.5))

    def _kink(self, over: NetworkEnclosure) -> str | None:
        """Why ReLU excludes a certificate (kinks in the ball, dead units); None if it does not."""
        if self.activation is None or not self.activation.kinked:
            return None
        for k, z in enumerate(over.hidden):
            dead = np.flatnonzero((z.centre <= 0).all(axis=0))
            if len(dead) and self.activation.bounds.min_slope == 0:
                return (
                    f"unit {dead[0]} of hidden layer {k + 1} is dead, inactive on all data: the "
                    "criterion needs strictly increasing activations, and such networks are "
                    "never certified"
                )
            meets = np.argwhere((z.low <= 0) & (z.high >= 0))
            if len(meets):
                row, unit = meets[0]
                return (
                    f"unit {unit} of hidden layer {k + 1} may meet its kink on row {row} within "
                    "the ball, where the risk is not twice differentiable"
                )
        return None

    def obstacle(self, radius: float) -> str | None:
        if (kink := self._kink(self._over(radius))) is not None:
            return kink
        if self.alpha(radius) > 0:
            return None
        if self.sigma.min == 0:
            return "the smallest eigenvalue of the tangent kernel is 0 up to rounding at the start"
        return "the bounds do not exclude that the tangent kernel loses its rank within the ball"

    def critical(self) -> float | None:
        """The distance of the constant network at the mean of y.

        Its output weights and the weights of one hidden layer are 0, so that the inputs of the last
        layer are the same for all rows, and the residuals sum to zero.
        """
        last, hidden = self.layers[-1], [a for a in self.layers[:-1] if a.trains_weight]
        constant = np.allclose(self.y, self.y[0], rtol=1e-8, atol=0)
        if not (last.trains_weight and last.trains_bias and hidden) or constant:
            return None
        off = last.bias - self.weights @ self.y / self.weights.sum()
        outer = np.sum(last.matrix**2) / last.scale**2 + np.sum(off**2)
        inner = min(float(np.sum(a.matrix**2)) / a.scale**2 for a in hidden)
        return float((1 + self.margin) * (outer + inner) ** 0.5)


def _flat(block: JacobianBlock) -> np.ndarray:
    """The block of J at the centre: (rows · out, parameters)."""
    product = block.q.centre[..., None] * block.inputs()[:, None, None]
    return product.reshape(product.shape[0] * product.shape[1], -1)


def _min_singular_values(block: JacobianBlock, ball: Ball) -> np.ndarray:
    """Lower bounds of σ_min of the (out, size) matrix q_i, for each row of data."""
    q = block.q
    if q.centre.shape[1] > q.centre.shape[2]:
        return np.zeros(len(q.centre))
    values = np.linalg.svd(q.centre, compute_uv=False)
    slack = ball.margin * values[:, 0]
    by_norm = values[:, -1] - np.linalg.norm(ball.change(q.norm), axis=1)
    middle, off = (q.low + q.high) / 2, (q.high - q.low) / 2
    inner = np.linalg.svd(middle, compute_uv=False)[:, -1]
    by_entry = inner - np.linalg.norm(off, ord=2, axis=(1, 2))
    return np.maximum(by_norm, by_entry) - slack


@cache
def _default_final_activation() -> Any:
    return inspect.signature(eqx.nn.MLP.__init__).parameters["final_activation"].default


def network_bounds(
    risk: Any, net: Any, trainable: Sequence[str] | PyTree | None, slopes: SlopeBounds | None
) -> Bounds:
    """The bounds of a risk at this network, or `GivenBounds` with the reason why there are none."""
    none = lambda of: GivenBounds(None, None, f"no bounds are known for {of}: pass `alpha_bound`")
    if not isinstance(risk, EmpiricalRisk):
        return none(f"a {type(risk).__name__}")
    if risk.loss is not squared_loss:
        return none("losses other than the squared one")
    trained, _ = split_trainable(net, trainable)
    if isinstance(net, ShallowNet):
        s = net.output_scale
        layers = [
            _layer(net.w, net.b, trained.w, trained.b, 1.0),
            _layer(net.v.reshape(net.width, -1).T, net.c, trained.v, trained.c, s),
        ]
    elif isinstance(net, eqx.nn.MLP):
        final = net.final_activation
        known = final is _default_final_activation() or as_activation(final).name == "identity"
        if net.scan or not known:
            return none("an MLP with `scan=True` or a final activation")
        if jax.tree.leaves(eqx.filter(net.activation, eqx.is_array)):
            return none("activations with parameters")
        layers = [
            _layer(a.weight, a.bias, b.weight, b.bias, 1.0)
            for a, b in zip(net.layers, trained.layers)
        ]
    else:
        return none(f"a {type(net).__name__}")
    activation = None if len(layers) == 1 else host_activation(net.activation, slopes)
    if activation is None and len(layers) > 1:
        reason = "no bounds are known for the slope of this activation: pass `slopes`"
        return GivenBounds(None, None, reason)
    return NetworkBounds(layers, activation, risk)


def _layer(weight, bias, trains_weight, trains_bias, scale: float) -> AffineLayer:
    matrix = scale * np.asarray(weight, float)
    bias = None if bias is None else np.asarray(bias, float).reshape(-1)
    norm = float(np.linalg.norm(matrix, 2))
    return AffineLayer(
        matrix, bias, scale, trains_weight is not None, trains_bias is not None, norm
    )
