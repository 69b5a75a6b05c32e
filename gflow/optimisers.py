"""Optimisers of optax, each called in the way that it wants."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from gflow.arguments import ArgumentError, Described, PyTree

# What optimisers ask for beside the gradient: line searches the risk, sharpness-aware minimisation
# the gradient as a function, a chain of both all of it, and most optimisers nothing.
_EXTRAS = (
    ("value", "grad", "value_fn", "grad_fn"),
    ("grad_fn",),
    ("value", "grad", "value_fn"),
    (),
)


class Optimiser(NamedTuple):
    """`init(params)` gives the state before the first step, and `update(gradient, state, params,
    value)` the change of the parameters and the next state."""

    init: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, PyTree]]


def as_optimiser(
    given: Any,
    step_size: Array,
    trained: PyTree,
    frozen: PyTree,
    value_fn: Callable[[PyTree], Array],
) -> Optimiser:
    """The optimiser of a descent of `value_fn` over the trained parameters.

    `given` is a transformation of optax, an object with one such as `optax.MultiSteps`, or a
    function from the step size to one of them.

    **Raises:** `ArgumentError` if it cannot be used with the trained parameters.
    """
    transformation = _transformation(given, step_size)
    reason: Exception | None = None
    is_trained = eqx.combine(
        jax.tree.map(lambda _: True, trained), jax.tree.map(lambda _: False, frozen)
    )
    # Errors of the risk are not those of the optimiser.
    value, _ = jax.eval_shape(jax.value_and_grad(value_fn), trained)
    # `optax.lookahead` works on pairs of parameters; it warns where it gets others.
    for make, extras in itertools.product((_on_pairs, _on_trained, _on_all), _EXTRAS):
        optimiser = make(transformation, is_trained, _with_extras(transformation, extras, value_fn))
        try:
            state = jax.eval_shape(optimiser.init, trained)
            updates, after = jax.eval_shape(optimiser.update, trained, state, trained, value)
        except Exception as error:
            # Optimisers that are called in a wrong way raise errors of many types.
            if make is _on_trained and "unexpected keyword" not in str(error):
                reason = reason or error
            continue
        if jax.tree.structure((updates, after)) == jax.tree.structure((trained, state)):
            return optimiser
    raise ArgumentError(
        "optimiser",
        Described(f"one that fails on the trained parameters ({str(reason)[:300]})"),
        "an optax transformation of parameters like eqx.filter(net, eqx.is_inexact_array). Labels "
        "and masks that are networks have to be wrapped, `lambda _: labels`, as optax calls what "
        "it can call",
    )


def _transformation(given: Any, step_size: Array) -> Any:
    wanted = "an optax transformation, or a function from the step size to one, such as optax.sgd"
    made = given
    if isinstance(given, type) or (callable(given) and not _is_transformation(given)):
        try:
            inspect.signature(given).bind(step_size)
        except TypeError as error:
            got = Described(
                f"{getattr(given, '__name__', given)}, called with one number ({error})"
            )
            raise ArgumentError("optimiser", got, wanted) from None
        except ValueError:  # some compiled functions have no signature
            pass
        made = given(step_size)
    if not _is_transformation(made):
        raise ArgumentError("optimiser", given, wanted)
    return made


def _is_transformation(given: Any) -> bool:
    return callable(getattr(given, "init", None)) and callable(getattr(given, "update", None))


def _with_extras(transformation: Any, extras: tuple[str, ...], value_fn: Callable) -> Callable:
    """`update` of a transformation, with these of the arguments that it may ask for."""

    def update(gradient, state, params, value, into=lambda tree: tree, out_of=lambda tree: tree):
        of_params = lambda params: value_fn(out_of(params))
        known = {
            "value": value,
            "grad": gradient,
            "value_fn": of_params,
            "grad_fn": lambda params, *_: into(jax.grad(value_fn)(out_of(params))),
        }
        chosen = {name: known[name] for name in extras}
        # optax mixes number types, which a user's strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(gradient, state, params, **chosen)

    return update


def _on_trained(transformation: Any, is_trained: PyTree, update: Callable) -> Optimiser:
    """Applied to the trained parameters."""
    del is_trained
    return Optimiser(transformation.init, update)


def _on_pairs(transformation: Any, is_trained: PyTree, update: Callable) -> Optimiser:
    """Applied to pairs of fast and slow parameters. The fast ones descend, the slow ones are part
    of the state."""
    del is_trained

    def init(params):
        return transformation.init(optax.LookaheadParams.init_synced(params)), params

    def update_fast(gradient, state, params, value):
        inner, slow = state
        updates, inner = update(gradient, inner, optax.LookaheadParams(params, slow), value)
        return updates.fast, (inner, optax.apply_updates(slow, updates.slow))

    return Optimiser(init, update_fast)


def _on_all(transformation: Any, is_trained: PyTree, update: Callable) -> Optimiser:
    """Applied to a tree like the whole network, with zeros for all that is not trained, so that
    labels and masks may be trees like the network."""
    zeros = jax.tree.map(lambda trained: None if trained else jnp.zeros(()), is_trained)
    into = lambda params: eqx.combine(params, zeros)
    out_of = lambda tree: eqx.filter(tree, is_trained)

    def update_all(gradient, state, params, value):
        updates, state = update(into(gradient), state, into(params), value, into, out_of)
        return out_of(updates), state

    return Optimiser(lambda params: transformation.init(into(params)), update_all)
