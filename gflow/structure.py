"""What a network is made of, in words: which arrays, functions and numbers, and where."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from types import CodeType
from typing import Any

import equinox as eqx
import jax

from gflow.arguments import PyTree

# Functions of other modules are known by their names alone: a module may move.
_LIBRARIES = ("jax", "jaxlib", "numpy", "equinox", "gflow", "optax", "scipy")


def structure(net: PyTree, *, leading: int = 0) -> dict[str, str]:
    """A description of each part of a network by its path, without values of arrays.

    `leading` axes of the arrays, such as that of times, are left out.
    """
    parts: dict[str, str] = {}
    _describe_parts(net, "", leading, parts)
    return parts


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> tuple[str, str] | None:
    """The parts in which two structures differ, in the words of each; None if there are none."""
    paths = [p for p in {**ours, **theirs} if ours.get(p) != theirs.get(p)]
    # Within a part of another type everything differs.
    paths = [p for p in paths if not any(_is_within(p, other) for other in paths)]
    if not paths:
        return None
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    one, two = (
        ", ".join(f"{p or 'the whole'}: {parts.get(p, 'nothing')}" for p in paths[:3]) + more
        for parts in (ours, theirs)
    )
    return one, two


def _is_within(path: str, other: str) -> bool:
    return path != other and (other == "" or path.startswith(f"{other}."))


def _describe_parts(part: Any, path: str, leading: int, parts: dict[str, str]) -> None:
    if eqx.is_array(part):
        parts[path] = f"{part.dtype}{list(part.shape[leading:])}"
    elif (inner := _inner(part)) is not None:
        parts[path] = type(part).__name__
        for name, child in inner.items():
            _describe_parts(child, f"{path}.{name}" if path else name, leading, parts)
    else:
        parts[path] = _name(part)


def _inner(part: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        names = [field.name for field in dataclasses.fields(part)]
        return {name: getattr(part, name) for name in names if hasattr(part, name)}
    if isinstance(part, Mapping):
        return {str(name): child for name, child in part.items()}
    if isinstance(part, jax.tree_util.Partial):
        return {"func": part.func, "args": part.args, "keywords": part.keywords}
    if isinstance(part, (tuple, list)):
        names = getattr(part, "_fields", map(str, range(len(part))))
        return dict(zip(names, part))
    children = jax.tree_util.tree_leaves_with_path(part, is_leaf=lambda x: x is not part)
    if len(children) == 1 and children[0][1] is part:
        return None
    simple = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return {simple(path): child for path, child in children} or None


def _name(part: Any) -> str:
    if isinstance(part, functools.partial):
        return f"partial({_name(part.func)}, {part.args}, {part.keywords})"
    name = getattr(part, "__qualname__", None)
    if callable(part) and isinstance(name, str):
        library = str(getattr(part, "__module__", "")).split(".")[0]
        return f"{library}.{name}" if library in _LIBRARIES else name + _made_of(part)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(part))


def _made_of(function: Any) -> str:
    """The names and numbers that a function of one's own is made of, in words: others of the same
    name compute something else."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    words = _words_of_code(code)
    defaults = getattr(function, "__defaults__", None) or ()
    words += [_name(value) if callable(value) else _plain(value) for value in defaults]
    for cell in getattr(function, "__closure__", None) or ():
        inner = cell.cell_contents
        words.append(_name(inner) if callable(inner) else _plain(inner))
    words = [word for word in words if word]
    return f" of {', '.join(words)}" if words else ""


def _words_of_code(code: CodeType) -> list[str]:
    words = list(code.co_names)
    for constant in code.co_consts:
        inner = isinstance(constant, CodeType)
        words += _words_of_code(constant) if inner else [_plain(constant)]
    return words


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, (int, float, complex)) else ""
