"""Compiled functions of pytrees, cheap to call."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.core
import numpy as np

from gflow.program_store import configuration, open_store, signature

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_ARRAYS = (jax.Array, np.ndarray, np.generic)
# On CPUs XLA's older emitters, which JAX has until 0.10, compile loops in little more than half the
# time. Short loops are as fast; long ones of functions such as tanh take twice as long. Other
# devices take no notice.
_OPTIONS = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_disable_hlo_passes": "tree_reduction_rewriter",
}


class _Hole:
    """Stands where an array was."""

    def __reduce__(self) -> str:
        return "_HOLE"


_HOLE = _Hole()


@jax.tree_util.register_static
class _Frame:
    """A pytree without its arrays: its structure and its other leaves."""

    def __init__(self, leaves: Sequence[Any], structure: Any):
        self._rest = tuple(_HOLE if isinstance(leaf, _ARRAYS) else leaf for leaf in leaves)
        self._structure = structure
        self._hash = hash((self._rest, structure))

    def filled(self, arrays: Sequence[Any]) -> Any:
        """The pytree with these arrays."""
        left = iter(arrays)
        return self._structure.unflatten(
            [next(left) if leaf is _HOLE else leaf for leaf in self._rest]
        )

    @property
    def parts(self) -> tuple[Any, Any]:
        """From which it is made again."""
        return self._rest, self._structure

    def __reduce__(self) -> Any:
        return _Frame, self.parts

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, _Frame) or self._hash != other._hash:
            return False
        return self._structure == other._structure and self._rest == other._rest


def _taken_apart(tree: Any) -> tuple[list[Any], _Frame]:
    leaves, structure = jax.tree.flatten(tree)
    return [leaf for leaf in leaves if isinstance(leaf, _ARRAYS)], _Frame(leaves, structure)


def program(
    function: Callable[Parameters, Result],
    is_brief: Callable[..., bool] | None = None,
) -> Callable[Parameters, Result]:
    """The function, compiled once for each structure, shapes and types of its arguments.

    `is_brief` tells from the arguments whether all loops over arrays are so short that the program
    should be compiled in the quickest way.

    Arrays of JAX and NumPy are traced. All other leaves, of arguments and result, are constants of
    the program. `equinox.filter_jit` does the same, and takes longer for a call than a short run.
    """

    def of_arrays(frame: _Frame, arrays: list[Any]) -> tuple[list[Any], _Frame]:
        of_all: Callable[..., Any] = function
        args, kwargs = frame.filled(arrays)
        with _without_collections():  # This runs while JAX traces, and only then.
            return _taken_apart(of_all(*args, **kwargs))

    of_arrays.__name__ = of_arrays.__qualname__ = function.__name__
    within = jax.jit(of_arrays, static_argnums=0)
    alone = cache(
        lambda: jax.jit(of_arrays, static_argnums=0, compiler_options=_accepted_options())
    )

    stored: dict[Any, Callable[..., Any]] = {}

    def run_at_once(frame: _Frame, arrays: list[Any], brief: bool) -> tuple[list[Any], _Frame]:
        jitted = alone() if brief else within
        store = open_store()
        if store is None:
            return jitted(frame, arrays)
        key = (store, brief, frame, signature(arrays), configuration())
        if key not in stored:
            constants = (_accepted_options() if brief else {}, frame.parts)
            lower = lambda: jitted.lower(frame, arrays)
            found = store.program(function, constants, arrays, lower)
            stored[key] = found or partial(jitted, frame)
        return stored[key](arrays)

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        arrays, frame = _taken_apart((args, kwargs))
        brief = is_brief is not None and is_brief(*args, **kwargs)
        if (brief or open_store() is not None) and _is_run_at_once(arrays):
            found, found_frame = run_at_once(frame, arrays, brief)
        else:
            found, found_frame = within(frame, arrays)
        return found_frame.filled(found)

    return call


@contextmanager
def _without_collections() -> Iterator[None]:
    """Python collects no garbage meanwhile: tracing makes many objects, all of which live on, and
    a tenth of its time would be to look through them again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def always(*args: Any) -> bool:
    """`is_brief` of programs that run once where others run long."""
    del args
    return True


def _is_run_at_once(arrays: list[Any]) -> bool:
    """Whether a call is no part of another program, for which options could not be set."""
    if any(isinstance(a, jax.core.Tracer) for a in arrays):
        return False
    # Within `jax.jit`, whatever JAX computes is traced.
    return not isinstance(_nothing(), jax.core.Tracer)


_nothing = jax.jit(lambda: np.zeros((), bool))


@cache
def _accepted_options() -> dict[str, Any]:
    """Those of the options that this version of XLA knows."""

    def accepts(name: str) -> bool:
        try:
            one = {name: _OPTIONS[name]}
            jax.jit(lambda: np.zeros((), bool), compiler_options=one).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: _OPTIONS[name] for name in _OPTIONS if accepts(name)}
