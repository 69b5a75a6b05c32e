"""Pickles of results and errors, so that they pass between processes."""

import importlib
import io
import pickle
import sys
from operator import attrgetter
from types import FunctionType
from typing import Any

# Where functions of JAX are found; some name private modules in which others have their names.
_PUBLIC_MODULES = ("jax.nn", "jax.numpy", "jax.lax", "jax.scipy.special", "jax.numpy.linalg")


class PortableError(Exception):
    """An exception that keeps its message and its attributes when it is pickled.

    An attribute that cannot be pickled is left behind; the message then says so.
    """

    def __reduce__(self) -> Any:
        kept, lost = {}, {}
        for name, value in self.__dict__.items():
            try:
                kept[name] = packed(value)
            except Exception as error:
                lost[name] = f"{error}"
        return _restored, (type(self), str(self), kept, lost)

    def __getattr__(self, name: str) -> Any:
        why = self.__dict__.get("_left_behind", {}).get(name)
        if why is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(f"`{name}` was left behind in the other process: {why}")


def _restored(
    kind: type[PortableError], message: str, kept: dict[str, bytes], lost: dict[str, str]
) -> PortableError:
    for name, why in lost.items():
        message += f" (`error.{name}` was left behind in the other process: {why})"
    error = kind.__new__(kind, message)
    error.__dict__.update({name: unpacked(value) for name, value in kept.items()})
    if lost:
        error.__dict__["_left_behind"] = lost
    return error


class Portable:
    """An object that is pickled by its attributes, also where they hold functions of JAX."""

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), packed(self.__dict__))

    def __copy__(self) -> Any:
        return _with_attributes(type(self), self.__dict__)

    def __deepcopy__(self, memo: Any) -> Any:
        # Leaves do not change. JAX is imported late, as `gflow --help` does without it.
        import jax

        del memo
        return _with_attributes(type(self), jax.tree.map(lambda leaf: leaf, self.__dict__))


def _rebuilt(kind: type, attributes: bytes) -> Any:
    return _with_attributes(kind, unpacked(attributes))


def _with_attributes(kind: type, attributes: dict[str, Any]) -> Any:
    made = object.__new__(kind)
    made.__dict__.update(attributes)
    return made


def packed(thing: Any) -> bytes:
    """A pickle, also of what holds functions of JAX, such as `jax.nn.relu`.

    **Raises:** `pickle.PicklingError` for functions without a name in a module, unless cloudpickle
    has been imported, which can pickle them.
    """
    file = io.BytesIO()
    try:
        FunctionPickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(thing)
    except Exception:
        cloudpickle = sys.modules.get("cloudpickle")
        if cloudpickle is None:
            raise
        return cloudpickle.dumps(thing)
    return file.getvalue()


def unpacked(pickled: bytes) -> Any:
    """What was `packed`."""
    return pickle.loads(pickled)


class FunctionPickler(pickle.Pickler):
    """Writes functions of JAX by a name under which they are found."""

    def reducer_override(self, obj: Any) -> Any:
        name = getattr(obj, "__qualname__", None)
        if not callable(obj) or not isinstance(name, str) or isinstance(obj, type):
            return NotImplemented
        home, plain = str(getattr(obj, "__module__", "")), isinstance(obj, FunctionType)
        if plain and _attribute(home, name) is obj:
            return NotImplemented
        for module in (home, *_PUBLIC_MODULES):
            if _attribute(module, name) is obj:
                return _found, (module, name)
        for variable, value in dict(getattr(sys.modules.get(home), "__dict__", {})).items():
            if value is obj:
                return _found, (home, variable)
        if plain:
            raise pickle.PicklingError(
                f"the function {name} of {home} cannot be pickled; define it by `def` at the top "
                "of a module"
            )
        return NotImplemented


def _attribute(module: str, name: str) -> Any:
    try:
        return attrgetter(name)(sys.modules.get(module))
    except AttributeError:
        return None


def _found(module: str, name: str) -> Any:
    return attrgetter(name)(importlib.import_module(module))
