"""Compiled functions of pytrees, cheap to call."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_ARRAYS = (jax.Array, np.ndarray, np.generic)


class _Hole:
    """Stands where an array was."""


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


def program(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, compiled once for each structure, shapes and types of its arguments.

    Arrays of JAX and NumPy are traced. All other leaves, of arguments and result, are constants of
    the program. `equinox.filter_jit` does the same, and takes longer for a call than a short run.
    """

    def of_arrays(frame: _Frame, arrays: list[Any]) -> tuple[list[Any], _Frame]:
        of_all: Callable[..., Any] = function
        args, kwargs = frame.filled(arrays)
        return _taken_apart(of_all(*args, **kwargs))

    of_arrays.__name__ = of_arrays.__qualname__ = function.__name__
    compiled = jax.jit(of_arrays, static_argnums=0)

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        arrays, frame = _taken_apart((args, kwargs))
        found, found_frame = compiled(frame, arrays)
        return found_frame.filled(found)

    return call
