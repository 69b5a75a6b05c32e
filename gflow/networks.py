"""Networks with one hidden layer."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gflow.activations import Activation, as_activation
from gflow.arguments import ArgumentError, Described, one_of, positive, positive_int

InitName = Literal["he", "standard_normal", "ntk", "mean_field"]


class Initialisation(NamedTuple):
    """Standard deviations of the independent, centred, normal entries, and the output scale."""

    w: float
    b: float
    v: float
    c: float
    output_scale: float


def named_initialisation(name: str, in_size: int, width: int) -> Initialisation:
    """The initialisation of that name for these sizes; `ShallowNet` lists them."""
    return {
        "he": Initialisation((2 / in_size) ** 0.5, 0.0, (2 / width) ** 0.5, 0.0, 1.0),
        "standard_normal": Initialisation(1.0, 1.0, 1.0, 1.0, 1.0),
        "ntk": Initialisation(1.0, 1.0, 1.0, 0.0, width**-0.5),
        "mean_field": Initialisation(1.0, 1.0, 1.0, 0.0, 1 / width),
    }[one_of("init", name, get_args(InitName))]


class ShallowNet(eqx.Module):
    r"""A network with one hidden layer,

    $$N(x) = c + s \sum_{i=1}^{\text{width}} v_i \, \sigma(\langle w_i, x\rangle + b_i),$$

    with `w` of shape (width, in_size), `b` (width,), `v` (width,) and `c` () for scalar output,
    `v` (width, k) and `c` (k,) for `out_size=k`. `b` and `c` are None without biases. The output
    scale s (`output_scale`) is a fixed number.

    **Arguments:**

    - `in_size`, `width`: numbers of inputs and of hidden units.
    - `out_size`: "scalar" for output of shape (), or k for output of shape (k,).
    - `key`: a JAX random key.
    - `init`: how the parameters are drawn: independent, centred normal, with standard deviations

        | name | w | b | v | c | s |
        |---|---|---|---|---|---|
        | "he" (He et al., arXiv 1502.01852) | √(2/in_size) | 0 | √(2/width) | 0 | 1 |
        | "standard_normal" | 1 | 1 | 1 | 1 | 1 |
        | "ntk" (Jacot et al., arXiv 1806.07572) | 1 | 1 | 1 | 0 | 1/√width |
        | "mean_field" (Mei et al., arXiv 1804.06561) | 1 | 1 | 1 | 0 | 1/width |

      or a function `(key, in_size, width, out_size) -> (w, b, v, c)`.
    - `scale`: a factor of all drawn parameters. Small values give feature learning, from saddle to
      saddle.
    - `activation`: a name ("relu", "leaky_relu(0.1)", "tanh", "erf", ...) or a function.
    - `output_scale`: s, by default that of the initialisation.
    - `use_bias`: False for a network without b and c.
    - `dtype`: the floating type of the parameters, by default JAX's.

    **Raises:** `ArgumentError` (a `ValueError`) for arguments out of range, unknown names, and a
    function `init` whose arrays do not fit together.

    ??? example

        ```python
        net = gflow.ShallowNet(in_size=1, width=50, key=jax.random.key(0))
        net(jnp.array([0.5]))
        ```
    """

    w: Float[Array, "width in"]
    b: Float[Array, " width"] | None
    v: Float[Array, " width"] | Float[Array, "width out"]
    c: Float[Array, ""] | Float[Array, " out"] | None
    activation: Activation
    output_scale: float = eqx.field(static=True)

    axis_names: ClassVar[dict[str, tuple[str, ...]]] = {
        "w": ("unit", "feature"),
        "b": ("unit",),
        "v": ("unit", "output"),
        "c": ("output",),
    }

    def __init__(
        self,
        in_size: int,
        width: int,
        out_size: int | Literal["scalar"] = "scalar",
        *,
        key: PRNGKeyArray,
        activation: str | Callable = "relu",
        init: InitName | Callable = "he",
        scale: float = 1.0,
        output_scale: float | None = None,
        use_bias: bool = True,
        dtype: Any = None,
    ):
        in_size = positive_int("in_size", in_size)
        width = positive_int("width", width)
        if out_size != "scalar":
            out_size = positive_int("out_size", out_size)
        scale = positive("scale", scale, or_zero=True)
        self.activation = as_activation(activation)
        if callable(init):
            w, b, v, c = init(key, in_size, width, out_size)
            default_output_scale = 1.0
        else:
            law = named_initialisation(init, in_size, width)
            w, b, v, c = _draw(key, law, in_size, width, out_size, dtype)
            default_output_scale = law.output_scale
        self.output_scale = positive(
            "output_scale", default_output_scale if output_scale is None else output_scale
        )
        # A product would compile a program for each new shape.
        scaled = lambda a: a if scale == 1 else scale * a
        self.w, self.v = scaled(w), scaled(v)
        self.b = scaled(b) if use_bias and b is not None else None
        self.c = scaled(c) if use_bias and c is not None else None
        _check_shapes(self)

    @classmethod
    def from_arrays(
        cls,
        w: Any,
        b: Any,
        v: Any,
        c: Any,
        *,
        activation: str | Callable = "relu",
        output_scale: float = 1.0,
    ) -> "ShallowNet":
        """The network with these parameters: w (width, in), b (width,) or None, v (width,) or
        (width, k), c () or (k,) or None."""
        arrays = [None if a is None else _as_float(n, a) for n, a in zip("wbvc", (w, b, v, c))]
        w, _, v, _ = arrays
        if w is None or w.ndim != 2:
            raise ArgumentError("w", w, "an array of shape (width, in_size)")
        if v is None or v.ndim not in (1, 2):
            raise ArgumentError("v", v, "an array of shape (width,) or (width, out_size)")
        width, in_size = w.shape
        out_size = "scalar" if v.ndim == 1 else v.shape[1]
        return cls(
            in_size,
            width,
            out_size,
            key=_unused_key(),
            activation=activation,
            init=lambda *_: arrays,
            output_scale=output_scale,
        )

    @property
    def in_size(self) -> int:
        return self.w.shape[-1]

    @property
    def width(self) -> int:
        return self.w.shape[-2]

    @property
    def out_size(self) -> int | Literal["scalar"]:
        return "scalar" if self.v.ndim == self.w.ndim - 1 else self.v.shape[-1]

    def preactivations(self, x: Float[Array, " in"]) -> Float[Array, " width"]:
        """z_i = <w_i, x> + b_i for each unit i."""
        if self.w.ndim > 2:
            got = Described(f"many networks, with leading axes of shape {self.w.shape[:-2]}")
            wanted = "one, such as `trajectory.final`; jax.vmap gives one at a time"
            raise ArgumentError("net", got, wanted)
        z = self.w @ x
        return z if self.b is None else z + self.b

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, ""] | Float[Array, " out"]:
        """N(x) for one input x of shape (in_size,). `jax.vmap(net)` takes many."""
        a = self.activation(self.preactivations(x))
        y = a @ (self.output_scale * self.v)
        return y if self.c is None else y + self.c

    def incoming(self) -> Float[Array, "width affine"]:
        """(w_i, b_i) for each unit i, w_i alone without biases."""
        return self.w if self.b is None else jnp.column_stack([self.w, self.b])

    def incoming_squares(self) -> Float[Array, " width"]:
        """‖w_i‖² + b_i² for each unit i."""
        return jnp.sum(self.w**2, axis=1) + (0.0 if self.b is None else self.b**2)

    def incoming_norms(self) -> Float[Array, " width"]:
        """‖(w_i, b_i)‖ for each unit i."""
        return jnp.sqrt(self.incoming_squares())


def _as_float(name: str, value: Any) -> Array:
    try:
        array = value if isinstance(value, jax.Array) else jax.device_put(np.asarray(value))
    except (TypeError, ValueError):
        raise ArgumentError(name, value, "an array of numbers") from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    return array


def _unused_key() -> PRNGKeyArray:
    """A key without the program that makes one of a seed."""
    return jax.random.wrap_key_data(jax.device_put(np.zeros(2, "uint32")), impl="threefry2x32")


def _draw(key, law: Initialisation, in_size: int, width: int, out_size, dtype):
    dtype = jnp.result_type(float) if dtype is None else dtype
    out = () if out_size == "scalar" else (out_size,)
    shapes = ((width, in_size), (width,), (width, *out), out)
    return tuple(
        std * jax.random.normal(k, shape, dtype)
        for k, std, shape in zip(jax.random.split(key, 4), law[:4], shapes)
    )


def _check_shapes(net: ShallowNet) -> None:
    width, out = net.w.shape[0], net.v.shape[1:]
    for name, wanted in (("b", (width,)), ("v", (width, *out)), ("c", out)):
        array = getattr(net, name)
        if array is not None and array.shape != wanted:
            raise ArgumentError(name, array, f"shape {wanted}, to fit w of shape {net.w.shape}")
