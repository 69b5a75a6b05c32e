"""A function as one flat list of elementary operations, with every maximum one of two arrays."""

import operator
from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Array

# Calls that are nothing but what they call.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}
# Functions with a derivative of their own that is that of their operations, off the kinks.
_RELUS = {"relu", "relu6"}
# Functions of JAX in which kinks cancel.
SMOOTH = {"logaddexp", "celu"}
# The longest loop over layers that is written out.
_MAX_LAYERS = 64


# Results by operation and arguments, with the arguments.
_Done = dict[Any, tuple[list[Any], list[Any]]]


class Flat(NamedTuple):
    """A function as one jaxpr without calls, and the structure of its result."""

    jaxpr: ClosedJaxpr
    structure: Any


def flattened(function: Callable[..., Any], *args: Any) -> Flat:
    """The operations of a function at arguments of these shapes.

    Calls, ReLUs with a derivative of their own, and loops over layers are written out; maxima over
    axes and windows become maxima of two arrays.
    """
    called, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    leaves = jax.tree.leaves(args)
    inline = lambda *leaves: _run(called.jaxpr, called.consts, leaves, {})
    return Flat(jax.make_jaxpr(inline)(*leaves), jax.tree.structure(shape))


def holds(jaxpr: Jaxpr, names: set[str]) -> bool:
    """Whether one of these operations stands in a jaxpr, or in one that it calls."""
    return any(
        eqn.primitive.name in names or any(holds(inner, names) for inner in inner_jaxprs(eqn))
        for eqn in jaxpr.eqns
    )


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs that an operation calls."""
    found = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda a: isinstance(a, (Jaxpr, ClosedJaxpr))
    )
    return [a.jaxpr if isinstance(a, ClosedJaxpr) else a for a in found if _is_jaxpr(a)]


def called_name(eqn: JaxprEqn) -> str:
    """The name of the function that an operation calls; its own if it calls none."""
    inner = inner_jaxprs(eqn)
    return inner[0].debug_info.func_name if inner else eqn.primitive.name


def _is_jaxpr(a: Any) -> bool:
    return isinstance(a, (Jaxpr, ClosedJaxpr))


def _run(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], done: _Done) -> list[Any]:
    """The results of a jaxpr; what was `done` before on the same arguments is not done again."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))
    value = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
    for eqn in jaxpr.eqns:
        values = [value(atom) for atom in eqn.invars]
        place = (eqn.primitive, _as_words(eqn.params), tuple(map(_identity, values)))
        if place not in done:
            # The arguments are kept, or others could take their identity.
            done[place] = values, _results(eqn, values, done)
        known.update(zip(eqn.outvars, done[place][1]))
    return [value(atom) for atom in jaxpr.outvars]


def _as_words(params: dict[str, Any]) -> str:
    return str({name: id(value) if _is_jaxpr(value) else value for name, value in params.items()})


def _opened(inner: Jaxpr | ClosedJaxpr) -> tuple[Jaxpr, Sequence[Any]]:
    return (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())


def _identity(value: Any) -> Any:
    return (float(value), str(value.dtype)) if isinstance(value, np.generic) else id(value)


def _results(eqn: JaxprEqn, args: list[Any], done: _Done) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    relu = name == "custom_jvp_call" and called_name(eqn) in _RELUS
    if relu or (name in _CALLS and called_name(eqn) not in SMOOTH):
        inner: Any = params.get("jaxpr", params.get("call_jaxpr"))
        return _run(*_opened(inner), args, done)
    if name == "scan" and params["length"] <= _MAX_LAYERS:
        return _written_out(eqn, args, done)
    if name == "clamp":
        low, x, high = args
        return [jax.lax.min(jax.lax.max(x, _like(low, x)), _like(high, x))]
    if name in ("reduce_max", "reduce_min"):
        two = jax.lax.max if name == "reduce_max" else jax.lax.min
        return [_over_axes(two, args[0], params["axes"])]
    if name in ("reduce_window_max", "reduce_window_min") and _is_plain(params):
        two = jax.lax.max if name == "reduce_window_max" else jax.lax.min
        return [_over_windows(two, args[0], params)]
    return evaluated(eqn, args)


def evaluated(eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """The results of an operation as it is."""
    # Before JAX 0.10, functions that an operation calls stand apart.
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    found = eqn.primitive.bind(*functions, *args, **params)
    return list(found) if eqn.primitive.multiple_results else [found]


def _like(a: Any, x: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(a, x.dtype), x.shape)


def _written_out(eqn: JaxprEqn, args: list[Any], done: _Done) -> list[Any]:
    """A scan, step by step."""
    params, each = eqn.params, []
    body, consts = _opened(params["jaxpr"])
    # Arguments are constants, carried values, and arrays over whose entries it goes: these have an
    # axis more than the body takes.
    axes = lambda atoms: [len(atom.aval.shape) for atom in atoms]
    number = sum(map(operator.gt, axes(eqn.invars), axes(body.invars)))
    carried = sum(map(operator.eq, axes(eqn.outvars), axes(body.outvars)))
    first, last = len(args) - number - carried, len(args) - number
    fixed, carry, over = args[:first], args[first:last], args[last:]
    order = range(params["length"])
    for k in reversed(order) if params["reverse"] else order:
        found = _run(body, consts, [*fixed, *carry, *(a[k] for a in over)], done)
        carry = found[:carried]
        each.append(found[carried:])
    if params["reverse"]:
        each.reverse()
    return [*carry, *(jnp.stack(column) for column in zip(*each))]


def _over_axes(two: Callable[[Any, Any], Array], x: Array, axes: Sequence[int]) -> Array:
    axes = tuple(axes)
    kept = [n for n in range(x.ndim) if n not in axes]
    x = jnp.transpose(x, (*axes, *kept))
    x = x.reshape(prod(x.shape[: len(axes)]), *x.shape[len(axes) :])
    while len(x) > 1:
        half = len(x) // 2
        x = jnp.concatenate([two(x[:half], x[half : 2 * half]), x[2 * half :]])
    return x[0]


def _is_plain(params: dict[str, Any]) -> bool:
    """Whether windows stay within the array."""
    whole = all(low == high == 0 for low, high in params["padding"])
    return whole and all(n == 1 for n in (*params["base_dilation"], *params["window_dilation"]))


def _over_windows(two: Callable[[Any, Any], Array], x: Array, params: dict[str, Any]) -> Array:
    size, stride = params["window_dimensions"], params["window_strides"]
    count = [(n - w) // s + 1 for n, w, s in zip(x.shape, size, stride)]

    def shifted(offset):
        ends = [o + (c - 1) * s + 1 for o, c, s in zip(offset, count, stride)]
        return jax.lax.slice(x, offset, ends, stride)

    parts = [shifted(offset) for offset in product(*map(range, size))]
    while len(parts) > 1:
        pairs = [two(a, b) for a, b in zip(parts[::2], parts[1::2])]
        parts = pairs + ([parts[-1]] if len(parts) % 2 else [])
    return parts[0]
