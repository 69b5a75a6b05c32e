"""What a run says of itself: drifts of identities, and changes of solver."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.activations import as_activation
from gflow.arguments import ArgumentError, Described, PyTree, is_concrete
from gflow.display import Shown
from gflow.networks import ShallowNet


class Diagnostics(Shown, eqx.Module):
    """Drifts of identities at the saved times; all are zero along an exact gradient flow.

    - `energy`, shape (times,): L(θ(0)) − L(θ(t)) − ∫₀ᵗ‖θ'‖² ds, with ‖θ'‖² = Σ θ'²/τ for time
      scales τ, and ∫σ‖∇L‖² ds for a flow at another speed σ. Along a descent the integral is that
      of its polygon, Σ‖Δθ‖²/h, and the drift is of order h. For a flow it is of order
      rtol · L(θ(0)), mostly from the error of the integral, not from that of L(θ(t)). If kinks are
      ignored and units slide along them, the integral counts the chatter across the kink: the
      drift then shows the sliding, at any tolerance, and not the accuracy.
    - `balance`, shape (times, units): the drift of `gflow.balance` since the start, for each hidden
      unit; with weight decay λ the difference to e^(−2λt) times that of the start. Each square is
      divided by its time scale. None where the layers are not found or not all trained, with other
      penalties, and for weight decay with time scales.
    """

    energy: Float[Array, " times"]
    balance: Float[Array, "times units"] | None

    def summary(self) -> dict[str, str]:
        """The largest drifts in words, by name."""
        drifts = {"energy": self.energy, "balance": self.balance}
        return {
            f"{name} drift": f"{np.nanmax(np.abs(np.asarray(drift)), initial=0.0):.2g}"
            for name, drift in drifts.items()
            if drift is not None and is_concrete(drift)
        }


class Switch(eqx.Module):
    """A change of solver: the one that took over, when, and after how many steps."""

    solver: str = eqx.field(static=True)
    time: Float[Array, ""]
    num_steps: Int[Array, ""]

    def as_list(self) -> list:
        """Solver, time and number of steps as plain values, for files."""
        return [self.solver, float(self.time), int(self.num_steps)]


class Affine(NamedTuple):
    """The matrix and the bias of a layer; None where they are not trained, or there is no bias."""

    weight: Any
    bias: Any


def balance(net: PyTree) -> Float[Array, " units"]:
    r"""The balance of each hidden unit, layer by layer from below,

    $$\|W_{k,i\cdot}\|^2 + b_{k,i}^2 - \|W_{k+1,\cdot i}\|^2 .$$

    Gradient flow keeps it constant, through kinks and along slides, for any data and loss, if all
    activations between the layers are positively homogeneous (ReLU, leaky ReLU, identity); Du, Hu
    and Lee, arXiv 1806.00900. Weight decay λ multiplies it by $e^{-2\lambda t}$.

    **Arguments:** `net`: a `ShallowNet`, an `eqx.nn.MLP`, or an `eqx.nn.Sequential` of
    `eqx.nn.Linear` and activations; of another network a list of its layers as pairs (W, b) of
    matrix and bias, with None where there is no bias.

    **Raises:** `ArgumentError` for other networks, and for other activations.
    """
    return _of_layers([of(net) for of in layers_of(net)])


def _of_layers(layers: Sequence[Affine]) -> Float[Array, " units"]:
    squares = lambda a: 0.0 if a is None else jnp.reshape(a, (-1,)) ** 2
    units = [
        jnp.sum(jnp.asarray(one.weight) ** 2, axis=1)
        + squares(one.bias)
        - jnp.sum(jnp.asarray(two.weight) ** 2, axis=0)
        for one, two in pairwise(layers)
    ]
    return jnp.concatenate(units)


def layers_of(net: PyTree) -> list[Callable[[PyTree], Affine]]:
    """For each layer from below, the function that finds it in networks of the structure of `net`.

    **Raises:** `ArgumentError` where `balance` does.
    """
    if isinstance(net, ShallowNet):
        activations = [net.activation]
        found = [lambda n: Affine(n.w, n.b), lambda n: Affine(_columns(n.v), n.c)]
    elif isinstance(net, eqx.nn.MLP):
        activations = [net.activation]
        found = _of_mlp(net)
    elif isinstance(net, eqx.nn.Sequential):
        places = [k for k, layer in enumerate(net.layers) if type(layer) is eqx.nn.Linear]
        between = net.layers[places[0] : places[-1]] if places else ()
        activations = [_function(a) for a in between if type(a) is not eqx.nn.Linear]
        found = [lambda n, k=k: Affine(n.layers[k].weight, n.layers[k].bias) for k in places]
    elif isinstance(net, (list, tuple)) and all(_is_pair(layer) for layer in net):
        activations = []
        found = [lambda n, k=k: Affine(*n[k]) for k in range(len(net))]
    else:
        activations = found = []
    if len(found) < 2:
        got = Described(f"a {type(net).__name__}, in which no hidden layers are found")
        wanted = (
            "a ShallowNet, an eqx.nn.MLP, an eqx.nn.Sequential of eqx.nn.Linear and activations, "
            "or a list of pairs (W, b) of matrices and biases"
        )
        raise ArgumentError("net", got, wanted)
    for activation in activations:
        if not _is_homogeneous(activation):
            got = Described(f"{getattr(activation, '__name__', activation)} between its layers")
            wanted = "relu, leaky_relu or identity, which are homogeneous"
            raise ArgumentError("net", got, wanted)
    return found


def _columns(v: Any) -> Any:
    """The output weights of a `ShallowNet` as a matrix, a column for each unit."""
    return None if v is None else v.reshape(v.shape[0], -1).T


def _of_mlp(net: eqx.nn.MLP) -> list[Callable[[PyTree], Affine]]:
    if not net.scan:
        return [
            lambda n, k=k: Affine(n.layers[k].weight, n.layers[k].bias)
            for k in range(len(net.layers))
        ]
    # All inner layers are in one, with a leading axis.
    at = lambda a, k: None if a is None else a[k]
    inner = [
        lambda n, k=k: Affine(at(n.layers[1].weight, k), at(n.layers[1].bias, k))
        for k in range(net.depth - 1)
    ]
    ends = [lambda n, k=k: Affine(n.layers[k].weight, n.layers[k].bias) for k in (0, -1)]
    return [ends[0], *inner, ends[1]]


def _function(layer: Any) -> Any:
    """The elementwise function of a layer without parameters; the layer itself if it has none."""
    if isinstance(layer, eqx.nn.Identity):
        return "identity"
    return layer.fn if isinstance(layer, eqx.nn.Lambda) else layer


def _is_pair(layer: Any) -> bool:
    return isinstance(layer, (list, tuple)) and len(layer) == 2 and np.ndim(layer[0]) == 2


def _is_homogeneous(activation: Any) -> bool:
    try:
        return as_activation(activation).homogeneous
    except (ArgumentError, TypeError):  # a function that cannot be hashed
        return False
