r"""Proved lower bounds of ‖∇f‖²/f, and upper bounds of ‖∇²f‖, over a ball of parameters.

For $f = |e|^2$ with residuals $e(\theta)$ and $J = \partial e/\partial\theta$, where
$\nabla f = 2J^\top e$,

$$\frac{\|\nabla f\|^2}{f} \ge 4\,\sigma_{\min}(J)^2, \qquad
  \|\nabla^2 f\| \le 2\,\|J\|^2 + 2\,\mathrm{Lip}(J)\,\sqrt f .$$
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from gflow.activations import as_activation
from gflow.arguments import ArgumentError, PyTree, positive
from gflow.certificates.activation_bounds import HostActivation, SlopeBounds, host_activation
from gflow.certificates.enclosures import Ball, Block, Enclosed, Layer, enclose
from gflow.networks import ShallowNet
from gflow.parameters import split_trainable
from gflow.risks import EmpiricalRisk
from gflow.risks.empirical import squared_loss


class SumOfSquares(eqx.Module):
    r"""The function $f(\theta) = |e(\theta)|^2$ of parameters θ, with what bounds its slope.

    **Arguments:**

    - `residual`: e, from the parameters (an array, or any pytree) to an array.
    - `jacobian_lipschitz`: a Lipschitz constant, in the spectral norm, of the Jacobian of e in θ;
      or a function r ↦ one that holds on the ball of radius r about the start. The user vouches for
      it. 0 for affine e; 1 for e(u, v) = uv − 1, of which the Jacobian is (v, u).
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
    """What is proved of f over balls about the start."""

    @abstractmethod
    def value(self) -> float | None:
        """An upper bound of f at the start, rounding included; None for f as it is computed."""

    @abstractmethod
    def alpha(self, radius: float) -> float:
        """A lower bound of ‖∇f‖²/f over the ball where f ≠ 0; 0 if none is known."""

    @abstractmethod
    def curvature(self, radius: float, value: float) -> float | None:
        """An upper bound of ‖∇²f‖ over the part of the ball with f ≤ value; None if unknown."""

    @abstractmethod
    def obstacle(self, radius: float) -> str | None:
        """Why there is no lower bound over this ball, in words."""

    @abstractmethod
    def critical(self) -> float | None:
        """A distance at which there is a critical point with f > 0; None if none is known."""


class GivenBounds(Bounds):
    """Bounds that the user supplies, as functions of the radius."""

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
    """Those of a `SumOfSquares`, from the singular values of J at the start."""

    def __init__(self, risk: SumOfSquares, net: PyTree, trainable: Any):
        self.risk = risk
        jacobian = np.asarray(_jacobian(risk.residual, *split_trainable(net, trainable)))
        margin = 100 * np.finfo(jacobian.dtype).eps * sum(jacobian.shape)
        self.least, self.largest = singular_values(jacobian.astype(float), float(margin))

    def value(self) -> float | None:
        return None

    def _lipschitz(self, radius: float) -> float:
        bound = self.risk.jacobian_lipschitz
        return float(bound(radius)) if callable(bound) else bound

    def alpha(self, radius: float) -> float:
        return 4 * max(self.least - self._lipschitz(radius) * radius, 0.0) ** 2 * (1 - 1e-14)

    def curvature(self, radius: float, value: float) -> float | None:
        lipschitz = self._lipschitz(radius)
        return 2 * (self.largest + lipschitz * radius) ** 2 + 2 * lipschitz * value**0.5

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


def singular_values(jacobian: Float[np.ndarray, "rows columns"], margin: float):
    """Bounds of σ_min (0 with more rows than columns) and σ_max, rounding included."""
    values = np.linalg.svd(jacobian, compute_uv=False)
    slack = margin * np.linalg.norm(jacobian)
    least = values[-1] if jacobian.shape[0] <= jacobian.shape[1] else 0.0
    return max(float(least - slack), 0.0), float(values[0] + slack)


class NetworkBounds(Bounds):
    r"""Those of the mean of squares of a feedforward network.

    $J$ has a block for each layer, $q_i \otimes (a_i, 1)$ with the layer's inputs $a_i$ and
    $q_i = \partial N(x_i)/\partial z_i$. Of two lower bounds of λ_min(JJᵀ) the larger counts:

    - $(\sigma_{\min}(J(\theta^0)) - \sup\|J(\theta) - J(\theta^0)\|)_+^2$;
    - the sum over the layers of $\lambda_{\min}(\tilde A \tilde A^\top)\,\min_i
      \sigma_{\min}(q_i)^2$, $\tilde A$ having the rows $(a_i, 1)$: the Schur product theorem, and
      Chatterjee's mechanism for the first layer, of which the inputs are the data.
    """

    def __init__(self, layers: list[Layer], activation: HostActivation | None, risk: EmpiricalRisk):
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
        least, largest = singular_values(rooted, self.margin)
        rounding = self._change(at_start, Ball(0.0, self.margin))
        self.least, self.largest = max(least - rounding, 0.0), largest + rounding
        self.of_inputs = [
            singular_values(self._rooted(block.inputs()), self.margin)[0]
            for block in at_start.blocks
        ]
        self._alphas: dict[float, float] = {}

    def _over(self, radius: float, lipschitz: bool = False) -> Enclosed:
        return enclose(self.layers, self.activation, self.x, Ball(radius, self.margin, lipschitz))

    def _rooted(self, rows: np.ndarray) -> np.ndarray:
        """Rows of data times the square roots of their weights."""
        return np.sqrt(self.weights).reshape(-1, *[1] * (rows.ndim - 1)) * rows

    def _shares(self, over: Enclosed, ball: Ball) -> np.ndarray:
        blocks = [self._rooted(block.shares(ball)) for block in over.blocks]
        return np.concatenate([b.reshape(-1, b.shape[-1]) for b in blocks])

    def _change(self, over: Enclosed, ball: Ball) -> float:
        """A bound of ‖J(θ) − J(θ⁰)‖ over the ball, or of r times the Lipschitz constant of J."""
        shares = self._shares(over, ball)
        change = ball.radius * np.linalg.norm(shares[:, :-1], 2) + np.linalg.norm(shares[:, -1])
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
        whole = max(self.least - self._change(over, ball), 0.0) ** 2
        layers = sum(self._of_layer(k, block, ball) for k, block in enumerate(over.blocks))
        return float(4 * (1 - self.margin) * max(whole, layers))

    def _of_layer(self, k: int, block: Block, ball: Ball) -> float:
        """A lower bound of λ_min of this layer's part of JJᵀ."""
        least = self.of_inputs[k]
        moves = self._rooted(block.layer.reach * block.a.norm)
        least -= ball.radius * np.linalg.norm(moves[:, :-1], 2) + np.linalg.norm(moves[:, -1])
        if least <= 0:
            return 0.0
        if block.q.centre.shape[1] == 1:
            smallest = block.q.least_norm(ball)[:, 0]
        else:
            smallest = _least_singular(block, ball)
        return float(max(least, 0.0) ** 2 * max(smallest.min(), 0.0) ** 2) * (1 - self.margin)

    def curvature(self, radius: float, value: float) -> float | None:
        ball = Ball(radius, self.margin, lipschitz=True)
        around = self._over(radius, lipschitz=True)
        shares = self._shares(around, ball)[:, :-1]
        lipschitz = np.linalg.norm(shares, 2)
        size = self.largest + min(
            self._change(self._over(radius), Ball(radius, self.margin)), radius * lipschitz
        )
        return float((1 + self.margin) * (2 * size**2 + 2 * lipschitz * value**0.5))

    def _kink(self, over: Enclosed) -> str | None:
        """What ReLU has against a certificate: kinks in the ball, or dead units."""
        if self.activation is None or not self.activation.kinked:
            return None
        for k, z in enumerate(over.hidden):
            dead = np.flatnonzero((z.centre <= 0).all(axis=0))
            if len(dead) and self.activation.bounds.least == 0:
                return (
                    f"unit {dead[0]} of hidden layer {k + 1} is dead, inactive on all data: the "
                    "criterion asks for strictly increasing activations, and such networks are "
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
        if self.least == 0:
            return "the tangent kernel has no smallest eigenvalue above rounding at the start"
        return "the tangent kernel may lose its rank within the ball, as far as bounds can tell"

    def critical(self) -> float | None:
        """That of the constant network at the mean of y: no output weights, and one hidden layer
        without weights, so that the last inputs are the same for all rows and e sums to zero."""
        last, hidden = self.layers[-1], [a for a in self.layers[:-1] if a.trains_weight]
        constant = np.allclose(self.y, self.y[0], rtol=1e-8, atol=0)
        if not (last.trains_weight and last.trains_bias and hidden) or constant:
            return None
        off = last.bias - self.weights @ self.y / self.weights.sum()
        outer = np.sum(last.matrix**2) / last.scale**2 + np.sum(off**2)
        inner = min(float(np.sum(a.matrix**2)) / a.scale**2 for a in hidden)
        return float((1 + self.margin) * (outer + inner) ** 0.5)


def _flat(block: Block) -> np.ndarray:
    """The block of J at the centre: (rows · out, parameters)."""
    product = block.q.centre[..., None] * block.inputs()[:, None, None]
    return product.reshape(product.shape[0] * product.shape[1], -1)


def _least_singular(block: Block, ball: Ball) -> np.ndarray:
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
    """The bounds of a risk from this network, or `GivenBounds` that say why there are none."""
    none = lambda why: GivenBounds(None, None, f"no bounds are known of {why}: give `alpha_bound`")
    if not isinstance(risk, EmpiricalRisk):
        return none(f"a {type(risk).__name__}")
    if risk.loss is not squared_loss:
        return none("other losses than the squared one")
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
        reason = "no bounds are known of the slope of this activation: give `slopes`"
        return GivenBounds(None, None, reason)
    return NetworkBounds(layers, activation, risk)


def _layer(weight, bias, trains_weight, trains_bias, scale: float) -> Layer:
    matrix = scale * np.asarray(weight, float)
    bias = None if bias is None else np.asarray(bias, float).reshape(-1)
    norm = float(np.linalg.norm(matrix, 2))
    return Layer(matrix, bias, scale, trains_weight is not None, trains_bias is not None, norm)
