"""The mean loss over a table of data."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from gflow.activations import PiecewiseLinear
from gflow.arguments import ArgumentError, Described, finite_entries, is_concrete
from gflow.networks import ShallowNet
from gflow.risks.base import Risk
from gflow.risks.one_input import one_input_risk
from gflow.risks.sorted_data import SortedData, sorted_data


def squared_loss(prediction: Float[Array, "*out"], target: Float[Array, "*out"]) -> Array:
    """‖prediction − target‖², without ½."""
    return jnp.sum((prediction - target) ** 2)


def logistic_loss(prediction: Float[Array, ""], target: Float[Array, ""]) -> Array:
    """log(1 + exp(−target · prediction)) for targets −1 and 1."""
    return jax.nn.softplus(-target * prediction)


def cross_entropy_loss(prediction: Float[Array, " classes"], target: Int[Array, ""]) -> Array:
    """−log softmax(prediction) at the class `target`, to all digits if it is small."""
    here = jnp.arange(prediction.shape[0]) == target
    ahead = prediction - jnp.sum(jnp.where(here, prediction, 0.0))
    return jax.nn.softplus(jax.nn.logsumexp(jnp.where(here, -jnp.inf, ahead)))


# Sorted rows are faster from these numbers of rows, and of rows times units, on.
_MANY_ROWS, _MANY_PAIRS = 500, 30_000

LossName = Literal["squared", "logistic", "cross-entropy"]
LOSSES: dict[str, Callable] = {
    "squared": squared_loss,
    "logistic": logistic_loss,
    "cross-entropy": cross_entropy_loss,
}


class EmpiricalRisk(Risk):
    r"""The mean loss over data,

    $$L(\theta) = \sum_{k=1}^n \omega_k \, \ell(N_\theta(x_k), y_k), \qquad \sum_k \omega_k = 1,$$

    by default the mean of squares without ½, $L = \frac1n \sum_k (N_\theta(x_k) - y_k)^2$.

    **Arguments:**

    - `x`: inputs, shape (n, in_size).
    - `y`: targets, shape (n,) for scalar output or (n, k) for output of shape (k,).
    - `weights`: shape (n,), not negative, scaled to sum to one; equal if None.
    - `loss`: "squared"; "logistic", log(1 + exp(−y N)), with targets −1 and 1 and scalar output;
      "cross-entropy", −log softmax(N)_y, with targets 0, 1, ... and one output for each class; or
      any function `loss(prediction, target) -> scalar` of one row.

    The network is any callable, such as an equinox module, that maps one row x_k to N(x_k).

    For one column of x, squared loss and a ReLU or leaky ReLU `ShallowNet`, all in float64, a risk
    that was made outside of `jax.jit` keeps its rows sorted, with running sums over them. Risk,
    gradient and Hessian products then cost O(W log W + W log n) instead of O(W n). The results are
    the same up to rounding: ties, z_ik = 0, are inactive, and second derivatives are those of the
    activation pattern. There are no derivatives in the data; `jnp.mean(risk.losses(net))` has them.
    The tables take 96 bytes per row, and 16 more for each output beyond the first.

    **Raises:** `ArgumentError` (a `ValueError`) for shapes that do not match, no rows, entries that
    are not finite, negative weights, and labels other than −1 and 1 for the logistic loss or 0, 1,
    ... for the cross-entropy.
    """

    x: Float[Array, "n in"]
    y: Shaped[Array, " n"] | Shaped[Array, "n out"]
    weights: Float[Array, " n"] | None
    loss: Callable = eqx.field(static=True)
    rows_in_order: SortedData | None

    def __init__(self, x: Any, y: Any, weights: Any = None, loss: LossName | Callable = "squared"):
        named = isinstance(loss, str)
        if named and loss not in LOSSES:
            known = ", ".join(repr(name) for name in LOSSES)
            raise ArgumentError("loss", loss, f"{known} or a function")
        self.loss = LOSSES[loss] if named else loss
        self.x = _as_floats("x", x)
        # A loss that the user supplies may need integers, such as class labels.
        self.y = _as_floats("y", y) if named else _as_array("y", y)
        _check_data(self.x, self.y)
        if loss == "logistic":
            _check_labels(self.y)
        elif loss == "cross-entropy":
            self.y = _as_classes(self.y)
        self.weights = None if weights is None else _as_weights(weights, self.x.shape[0])
        self.rows_in_order = self._sorted()

    @property
    def num_data(self) -> int:
        return self.x.shape[0]

    def predictions(self, net: Callable[[Any], Array]) -> Shaped[Array, " n *out"]:
        """N(x_k) for every row k."""
        return jax.vmap(net)(self.x)

    @property
    def has_known_loss(self) -> bool:
        """Whether the loss is one of those with a name, none of which is negative."""
        return self.loss in LOSSES.values()

    def losses(self, net: Callable[[Any], Array]) -> Float[Array, " n"]:
        """The loss of every row k."""
        return self._losses(net, self.x, self.y)

    def __call__(self, net: Callable[[Any], Array]) -> Float[Array, ""]:
        if isinstance(net, ShallowNet) and (rows := self._sorted_for(net)) is not None:
            return one_input_risk(rows, net)
        losses = self.losses(net)
        return jnp.mean(losses) if self.weights is None else self.weights @ losses

    def minibatch(
        self, net: Callable[[Any], Array], rows: Int[Array, " batch"]
    ) -> Float[Array, ""]:
        """The estimate of the risk from some rows, unbiased for rows drawn uniformly."""
        losses = self._losses(net, self.x[rows], self.y[rows])
        if self.weights is not None:
            losses = self.num_data * self.weights[rows] * losses
        return jnp.mean(losses)

    def _sorted(self) -> SortedData | None:
        """The rows sorted, if squared loss, one column and float64 allow it."""
        arrays = [a for a in (self.x, self.y, self.weights) if a is not None]
        wanted = self.x.shape[1] == 1 and self.loss is squared_loss and self.num_data >= _MANY_ROWS
        if not (wanted and is_concrete(*arrays) and all(a.dtype == jnp.float64 for a in arrays)):
            return None
        weights = None if self.weights is None else np.asarray(self.weights)
        return sorted_data(np.asarray(self.x)[:, 0], np.asarray(self.y), weights)

    def _sorted_for(self, net: ShallowNet) -> SortedData | None:
        """The sorted rows, if this network can use them and is faster with them."""
        fits = net.in_size == 1 and net.v.shape[1:] == self.y.shape[1:]
        exact = isinstance(net.activation, PiecewiseLinear) and net.w.dtype == jnp.float64
        many = self.num_data * net.width >= _MANY_PAIRS
        return self.rows_in_order if fits and exact and many else None

    def _losses(self, net, x, y):
        _check_network(net, x.shape[1])
        predictions = jax.vmap(net)(x)
        if self.loss is cross_entropy_loss:
            _check_classes(predictions.shape[1:], y)
        elif self.loss in LOSSES.values() and predictions.shape != y.shape:
            raise _unlike_targets(predictions.shape[1:], y.shape[1:])
        losses = jax.vmap(self.loss)(predictions, y)
        if losses.ndim != 1:
            raise ArgumentError(
                "loss", Described(f"values of shape {losses.shape[1:]}"), "a scalar for each row"
            )
        return losses


def _check_network(net: Any, columns: int) -> None:
    inputs = getattr(net, "in_size", columns)
    if inputs not in (columns, "scalar"):
        got = Described(f"a network of {inputs} inputs")
        raise ArgumentError("net", got, f"{columns}, the columns of x")
    if not callable(net):
        got = Described(f"a {type(net).__name__}, which cannot be called")
        wanted = "one that maps a row of x; any function of your parameters can be the risk"
        raise ArgumentError("net", got, wanted)


def _unlike_targets(output: tuple[int, ...], target: tuple[int, ...]) -> ArgumentError:
    got = Described(f"output of shape {output} for one row of x")
    options = {
        ((), (1,)): "; y[:, 0] has targets of shape ()",
        ((1,), ()): "; out_size='scalar' gives ()",
    }
    wanted = f"the shape of one target in y, {target}{options.get((output, target), '')}"
    return ArgumentError("net", got, wanted)


def _as_array(name: str, value: Any) -> Array:
    try:
        array = value if isinstance(value, jax.Array) else jax.device_put(np.asarray(value))
    except (TypeError, ValueError):
        raise ArgumentError(name, value, "an array of numbers") from None
    if is_concrete(array) and jnp.issubdtype(array.dtype, jnp.inexact):
        finite_entries(name, np.asarray(array))
    return array


def _as_floats(name: str, value: Any) -> Array:
    array = _as_array(name, value)
    if jnp.iscomplexobj(array):
        raise ArgumentError(name, array, "real numbers")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    return array


def _check_data(x: Array, y: Array) -> None:
    if x.ndim != 2:
        hint = "; `x[:, None]` makes one feature of a flat array" if x.ndim == 1 else ""
        raise ArgumentError("x", Described(f"shape {x.shape}"), f"shape (n, in_size){hint}")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ArgumentError("x", Described(f"shape {x.shape}"), "at least one row and one column")
    if y.ndim not in (1, 2) or y.shape[0] != x.shape[0]:
        wanted = f"({x.shape[0]},) or ({x.shape[0]}, out_size), as many rows as x"
        raise ArgumentError("y", Described(f"shape {y.shape}"), wanted)


def _check_labels(y: Array) -> None:
    if y.ndim != 1:
        raise ArgumentError("y", Described(f"shape {y.shape}"), "shape (n,) for the logistic loss")
    if is_concrete(y):
        values = np.unique(np.asarray(y))
        if not np.isin(values, (-1.0, 1.0)).all():
            raise ArgumentError(
                "y", Described(f"labels {values[:5]}"), "labels -1 and 1 (2*y - 1 maps 0 and 1)"
            )


def _as_classes(y: Array) -> Int[Array, " n"]:
    if y.ndim != 1:
        raise ArgumentError("y", Described(f"shape {y.shape}"), "shape (n,) for the cross-entropy")
    if is_concrete(y):
        values = np.unique(np.asarray(y))
        if (values < 0).any() or (values != np.round(values)).any():
            wanted = "the numbers of classes, from 0 (np.unique(y, return_inverse=True)[1])"
            raise ArgumentError("y", Described(f"labels {values[:5]}"), wanted)
    return y.astype(int)


def _check_classes(output: tuple[int, ...], y: Int[Array, " n"]) -> None:
    if len(output) != 1 or output[0] < 2:
        got = Described(f"output of shape {output} for one row of x")
        wanted = "shape (classes,) for the cross-entropy, with two classes or more"
        raise ArgumentError("net", got, wanted)
    if is_concrete(y) and (largest := int(np.max(np.asarray(y)))) >= output[0]:
        got = Described(f"{output[0]} outputs for labels up to {largest}")
        raise ArgumentError("net", got, f"at least {largest + 1} outputs")


def _as_weights(weights: Any, n: int) -> Array:
    weights = _as_floats("weights", weights)
    if weights.shape != (n,):
        raise ArgumentError("weights", Described(f"shape {weights.shape}"), f"shape ({n},)")
    if is_concrete(weights):
        values = np.asarray(weights)
        if values.min() < 0 or values.sum() <= 0:
            got = Described(f"smallest {values.min():g}, sum {values.sum():g}")
            raise ArgumentError("weights", got, "no negative weight and a positive sum")
    return weights / jnp.sum(weights)
