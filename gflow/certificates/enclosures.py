r"""Enclosures of everything a feedforward network computes while its parameters stay in a ball.

A quantity x(θ) (preactivations, activations, derivatives of the output) has a computed centre, an
interval for each entry, and bounds of the *contributions* of each layer's parameters to its change.
Over the ball ‖θ − θ⁰‖ ≤ r the change of x is a sum of contributions Δ_j x of the layers j, with

$$|\Delta_j x_i| \le \text{entry}_{ij}\,\rho_j, \quad
  \|\Delta_j x\| \le \text{norm}_j\,\rho_j,
  \quad \rho_j = \|\theta_j - \theta^0_j\|, \quad \textstyle\sum_j \rho_j^2 \le r^2,$$

so that |Δx_i| ≤ r ‖entry_i‖ (Cauchy–Schwarz). The last contribution is that of rounding, which is
not multiplied by any ρ: a running error analysis in the standard model of floating-point
arithmetic. With `lipschitz=True` the contributions bound derivatives at every point of the ball.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gflow.certificates.activation_bounds import HostActivation


class AffineLayer(NamedTuple):
    """x ↦ M x + b with M = scale · W of shape (out, in), b None without biases.

    `trains_weight` and `trains_bias` say what is trained; `spectral_norm` is ‖M‖.
    """

    matrix: np.ndarray
    bias: np.ndarray | None
    scale: float
    trains_weight: bool
    trains_bias: bool
    spectral_norm: float

    @property
    def reach(self) -> float:
        """The largest change of ‖M‖ when the parameters of the layer change by 1."""
        return abs(self.scale) if self.trains_weight else 0.0


class Ball(NamedTuple):
    """A ball of parameters, with the relative error `margin` that every operation is allowed.

    `lipschitz`: whether contributions bound derivatives at every point of the ball, rather than
    differences to the centre.
    """

    radius: float
    margin: float
    lipschitz: bool = False

    @property
    def spread(self) -> float:
        """The distance of factors from the centre: 0 in a difference to the centre."""
        return self.radius if self.lipschitz else 0.0

    def change(self, contributions: np.ndarray) -> np.ndarray:
        """The largest change over the ball."""
        parts = np.linalg.norm(contributions[..., :-1], axis=-1)
        return (1 + self.margin) * (self.radius * parts + contributions[..., -1])


class Enclosure(NamedTuple):
    """A quantity over a ball: its centre, an interval, and the layers' contributions.

    `entry` bounds the contributions to each entry, `norm` those to the vector along the last axis.
    """

    centre: Float[np.ndarray, "*batch size"]
    low: Float[np.ndarray, "*batch size"]
    high: Float[np.ndarray, "*batch size"]
    entry: Float[np.ndarray, "*batch size contributions"]
    norm: Float[np.ndarray, "*batch contributions"]

    @property
    def max_abs(self) -> np.ndarray:
        """The largest absolute value of each entry."""
        return np.maximum(abs(self.low), abs(self.high))

    def max_norm(self, ball: Ball) -> np.ndarray:
        """An upper bound of the norm along the last axis."""
        by_entry = np.linalg.norm(self.max_abs, axis=-1)
        by_norm = np.linalg.norm(self.centre, axis=-1) + ball.change(self.norm)
        return (1 + ball.margin) * np.minimum(by_entry, by_norm)

    def min_norm(self, ball: Ball) -> np.ndarray:
        """A lower bound of the norm along the last axis."""
        min_abs = np.where(self.low > 0, self.low, np.where(self.high < 0, -self.high, 0.0))
        by_norm = np.linalg.norm(self.centre, axis=-1) - ball.change(self.norm)
        return (1 - ball.margin) * np.maximum(np.linalg.norm(min_abs, axis=-1), by_norm)


def point(x: np.ndarray, num_contributions: int) -> Enclosure:
    """A quantity that does not depend on the parameters."""
    zeros = np.zeros((*x.shape, num_contributions))
    return Enclosure(x, x, x, zeros, zeros[..., 0, :])


def _tightened(centre, low, high, entry, norm, ball: Ball) -> Enclosure:
    """The enclosure, with each bound sharpened by the others."""
    norm = np.minimum(norm, np.linalg.norm(entry, axis=-2))
    entry = np.minimum(entry, norm[..., None, :])
    change = ball.change(entry)
    low, high = np.maximum(low, centre - change), np.minimum(high, centre + change)
    return Enclosure(centre, low, high, entry, norm)


def _product(
    matrix: np.ndarray, x: Enclosure, own: np.ndarray, layer: AffineLayer, index: int, ball: Ball
) -> tuple[np.ndarray, ...]:
    """(M + ΔM) x for M or Mᵀ of layer `index`, whose own change contributes `own` · ρ_index."""
    centre = x.centre @ matrix.T
    sizes = abs(matrix)
    rounding = ball.margin * (x.max_abs @ sizes.T + abs(centre))
    off = layer.reach * ball.spread
    entry = sizes @ x.entry + off * x.norm[..., None, :]
    norm = (layer.spectral_norm + off) * x.norm
    entry[..., index] += own[..., None]
    entry[..., -1] += rounding
    norm[..., index] += own
    norm[..., -1] += np.linalg.norm(rounding, axis=-1)
    up, down = np.maximum(matrix, 0), np.minimum(matrix, 0)
    slack = (1 + ball.margin) * ball.radius * own[..., None] + rounding
    low, high = x.low @ up.T + x.high @ down.T - slack, x.high @ up.T + x.low @ down.T + slack
    return centre, low, high, (1 + ball.margin) * entry, (1 + ball.margin) * norm


def affine(layer: AffineLayer, index: int, x: Enclosure, ball: Ball) -> Enclosure:
    """The preactivations of a layer."""
    own = np.sqrt((layer.reach * x.max_norm(ball)) ** 2 + layer.trains_bias)
    centre, low, high, entry, norm = _product(layer.matrix, x, own, layer, index, ball)
    if layer.bias is not None:
        rounding = ball.margin * (abs(centre) + abs(layer.bias))
        centre, low, high = (a + layer.bias for a in (centre, low - rounding, high + rounding))
        entry[..., -1] += rounding
        norm[..., -1] += np.linalg.norm(rounding, axis=-1)
    return _tightened(centre, low, high, entry, norm, ball)


def backward(layer: AffineLayer, index: int, q: Enclosure, ball: Ball) -> Enclosure:
    """Wᵀ q: derivatives in the activations from those in the next preactivations."""
    own = layer.reach * q.max_norm(ball)
    centre, low, high, entry, norm = _product(layer.matrix.T, q, own, layer, index, ball)
    return _tightened(centre, low, high, entry, norm, ball)


def activate(activation: HostActivation, z: Enclosure, ball: Ball) -> tuple[Enclosure, Enclosure]:
    """The activations σ(z), and the slopes σ'(z)."""
    bounds = activation.bounds
    steepest = max(abs(bounds.min_slope), abs(bounds.max_slope))
    lower, slope, upper = activation.slopes(z.low, z.centre, z.high)
    off = ball.margin * steepest
    lower = np.maximum(lower - off, bounds.min_slope)
    upper = np.minimum(upper + off, bounds.max_slope)
    largest = np.maximum(abs(lower), abs(upper))
    low, centre, high = activation.value(np.stack([z.low, z.centre, z.high]))
    rounding = ball.margin * (abs(centre) + steepest * abs(z.centre))
    entry = largest[..., None] * z.entry
    norm = largest.max(axis=-1, keepdims=True) * z.norm
    entry[..., -1] += rounding
    norm[..., -1] += np.linalg.norm(rounding, axis=-1)
    # Only an increasing activation has its values between those at the ends.
    far = 0.0 if bounds.min_slope >= 0 else np.inf
    low = low - ball.margin * (abs(low) + steepest * abs(z.low)) - far
    high = high + ball.margin * (abs(high) + steepest * abs(z.high)) + far
    a = _tightened(centre, low, high, entry, norm, ball)
    slope_entry, slope_norm = bounds.curvature * z.entry, bounds.curvature * z.norm
    slope_entry[..., -1] += off
    slope_norm[..., -1] += off * slope.shape[-1] ** 0.5
    return a, _tightened(slope, lower, upper, slope_entry, slope_norm, ball)


def times(d: Enclosure, p: Enclosure, ball: Ball) -> Enclosure:
    """The entrywise product d ∘ p."""
    centre = d.centre * p.centre
    ends = np.stack([a * b for a in (d.low, d.high) for b in (p.low, p.high)])
    size = p.max_abs if ball.lipschitz else abs(p.centre)
    rounding = ball.margin * d.max_abs * p.max_abs
    from_d = size[..., None] * d.entry
    entry = d.max_abs[..., None] * p.entry + from_d
    norm = d.max_abs.max(axis=-1, keepdims=True) * p.norm + np.minimum(
        size.max(axis=-1, keepdims=True) * d.norm, np.linalg.norm(from_d, axis=-2)
    )
    entry[..., -1] += rounding
    norm[..., -1] += np.linalg.norm(rounding, axis=-1)
    return _tightened(centre, ends.min(0) - rounding, ends.max(0) + rounding, entry, norm, ball)


class JacobianBlock(NamedTuple):
    """The block of the Jacobian of one layer: its rows (datum, output) are q ⊗ (scale · a, 1)."""

    q: Enclosure  # (rows, out, size)
    a: Enclosure  # (rows, size of the inputs), without scale and 1
    layer: AffineLayer

    def inputs(self) -> np.ndarray:
        """(scale · a, 1) at the centre, without the part that is not trained."""
        a = self.layer.scale * self.a.centre
        parts = [a] * self.layer.trains_weight + [np.ones((len(a), 1))] * self.layer.trains_bias
        return np.concatenate(parts, axis=1)

    def contributions(self, ball: Ball) -> np.ndarray:
        """The contributions of the layers to the change of each row: (rows, out, contributions)."""
        reach = self.layer.reach
        bias = float(self.layer.trains_bias)
        size = np.sqrt((reach * self.a.max_norm(ball)) ** 2 + bias)[:, None, None]
        q = self.q.max_norm(ball)
        if not ball.lipschitz:
            q = np.linalg.norm(self.q.centre, axis=-1)
        change = self.q.norm * size + q[..., None] * reach * self.a.norm[:, None]
        change[..., -1] += ball.margin * size[..., 0] * q
        return change


class NetworkEnclosure(NamedTuple):
    """The preactivations of hidden layers, the outputs, and the blocks of trained layers."""

    hidden: list[Enclosure]
    output: Enclosure
    blocks: list[JacobianBlock]


def enclose(
    layers: list[AffineLayer], activation: HostActivation | None, x: np.ndarray, ball: Ball
) -> NetworkEnclosure:
    """The enclosure of the network with these layers, on all rows of x, over the ball."""
    num_contributions = len(layers) + 1
    inputs, hidden, slopes = [point(x, num_contributions)], [], []
    for k, layer in enumerate(layers[:-1]):
        hidden.append(affine(layer, k, inputs[-1], ball))
        assert activation is not None
        a, d = activate(activation, hidden[-1], ball)
        inputs.append(a)
        slopes.append(d)
    last = len(layers) - 1
    output = affine(layers[last], last, inputs[-1], ball)
    outs = output.centre.shape[-1]
    q = point(np.broadcast_to(np.eye(outs), (len(x), outs, outs)), num_contributions)
    blocks = []
    for k in range(last, -1, -1):
        if k < last:
            d = Enclosure(*(a[:, None] for a in slopes[k]))
            q = times(d, backward(layers[k + 1], k + 1, q, ball), ball)
        if layers[k].trains_weight or layers[k].trains_bias:
            blocks.append(JacobianBlock(q, inputs[k], layers[k]))
    return NetworkEnclosure(hidden, output, blocks)
