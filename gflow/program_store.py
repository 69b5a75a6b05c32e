"""Compiled programs on disk that are found before they are traced.

JAX's own cache knows a program by its code, which must be traced and lowered first: more than half
of the time that remains. This store knows it by all that its code follows from: gflow's source, the
versions of the packages below, the configuration of JAX, and the arguments' structure, shapes,
types and constants. Where those contain a class or a function of another package, such as a user's
own network or loss, that is not known, and the program is left to JAX's cache.
"""

import hashlib
import io
import os
import pickle
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from gflow.pickling import FunctionPickler

_PACKAGES = ("jax", "jaxlib", "equinox", "diffrax", "lineax", "optimistix", "optax", "numpy")
_KNOWN = {*_PACKAGES, "gflow", "builtins", "collections", "copyreg", "functools", "operator"}
_MAX_BYTES = 10**9
# With these JAX looks at every number that is computed.
_LOOKS = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")


class ProgramStore:
    """Programs in a folder, made with the first that is kept."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._source = _digest_of_source()

    def program(
        self,
        function: Callable[..., Any],
        constants: Any,
        arrays: Sequence[Any],
        lower: Callable[[], Any],
    ) -> Callable[..., Any] | None:
        """The program of a function with these constants and arrays, read, or lowered, compiled
        and kept; None if the function or the constants are not all known."""
        where, called = function.__module__, function.__qualname__
        if where.split(".")[0] != "gflow" or "<" in called:
            return None
        facts = (where, called, constants, [type_ for type_, _ in signature(arrays)])
        settings = [repr(value) for value in configuration()]
        name = _name((facts, self._source, _names_of_settings(), settings))
        return None if name is None else self._read(name) or self._compiled(name, lower)

    def _read(self, name: str) -> Callable[..., Any] | None:
        path = self.folder / name
        try:
            content = path.read_bytes()
            os.utime(path)
            if b"lapack" in content:
                _find_lapack()
            return serialize_executable.deserialize_and_load(*pickle.loads(content))
        except Exception:  # Not there, or whatever has become of it: it can be compiled.
            return None

    def _compiled(self, name: str, lower: Callable[[], Any]) -> Callable[..., Any]:
        # What JAX's cache has found cannot be written again.
        with _without_cache():
            program = lower().compile()
        # Programs that call Python cannot be kept, and a disk may be full.
        with suppress(Exception):
            self._write(name, _pickled(serialize_executable.serialize(program)))
        return program

    def _write(self, name: str, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.{os.getpid()}"
        partial.write_bytes(content)
        partial.replace(self.folder / name)
        files = [(path.stat(), path) for path in self.folder.iterdir()]
        excess = sum(facts.st_size for facts, _ in files) - _MAX_BYTES
        for facts, path in sorted(files, key=lambda file: file[0].st_mtime):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= facts.st_size


_STORES: list[ProgramStore] = []


def keep_programs(folder: Path) -> None:
    """Opens the store in this folder."""
    if not _STORES or _STORES[0].folder != folder:
        _STORES[:] = [ProgramStore(folder)]


def open_store() -> ProgramStore | None:
    """The store that is open, if programs can be kept now: on one CPU, and while JAX does not look
    at every number."""
    if not _STORES or any(getattr(jax.config, name) for name in _LOOKS) or not _is_one_cpu():
        return None
    return _STORES[0]


def signature(arrays: Sequence[Any]) -> tuple[Any, ...]:
    """The types of arrays, as far as a program depends on them, each with the place where it is."""
    return tuple(
        ((a.shape, str(a.dtype), getattr(a, "weak_type", False)), getattr(a, "sharding", None))
        for a in arrays
    )


def _name(facts: Any) -> str | None:
    """A name for what is made from these facts, or None if they contain anything unknown."""
    try:
        return hashlib.sha256(_pickled(facts, _KnownOnly)).hexdigest()
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
        return None


@cache
def _find_lapack() -> None:
    """JAX looks for the functions of LAPACK when it lowers a call of one."""
    jax.jit(jax.lax.linalg.cholesky).lower(np.eye(1))


@cache
def _is_one_cpu() -> bool:
    return [device.platform for device in jax.devices()] == ["cpu"]


class _Pickler(FunctionPickler):
    """Writes objects of equinox of which there is one only so that they are read as that one."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj).__module__.startswith("equinox."):
            structure = jax.tree.structure(obj)
            if structure.num_nodes == 1 and structure.num_leaves == 0:
                return jax.tree.unflatten, (structure, ())
        return super().reducer_override(obj)


class _KnownOnly(_Pickler):
    """Writes what belongs to known packages, and equal things equally in every process."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.fast = True  # Without notes of which parts are one object.

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) or (callable(obj) and hasattr(obj, "__qualname__")):
            module = getattr(obj, "__module__", None)
            if not isinstance(module, str) or module.split(".")[0] not in _KNOWN:
                raise pickle.PicklingError(f"{obj!r} is of no known package")
        return super().reducer_override(obj)


def _pickled(facts: Any, kind: type[_Pickler] = _Pickler) -> bytes:
    written = io.BytesIO()
    kind(written).dump(facts)
    return written.getvalue()


def configuration() -> tuple[Any, ...]:
    """All settings that may change how JAX traces and compiles, as this thread sees them."""
    config = jax.config
    return tuple([getattr(config, name, None) for name in _names_of_settings()])


@cache
def _names_of_settings() -> tuple[str, ...]:
    return tuple(sorted(name for name in jax.config.values if "cache" not in name))


def _digest_of_source() -> str:
    """Of gflow's files, the versions of the packages below, the processor, and the settings of XLA
    and equinox."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source.update(path.read_bytes())
    for package in _PACKAGES:
        source.update(f"{package} {_version(package)}".encode())
    settings = sorted(item for item in os.environ.items() if item[0].startswith(("XLA_", "EQX_")))
    source.update(f"{platform.python_version()} {processor()} {settings}".encode())
    return source.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def processor() -> str:
    """A name for the kind of processor: its programs do not run on all others, and computers may
    share a home directory."""
    kind = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        kinds = ("model name", "flags", "Features")
        lines = cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines()
        kind += "".join(line for line in lines if line.startswith(kinds))
    return hashlib.sha256(kind.encode()).hexdigest()[:12]


@contextmanager
def _without_cache() -> Iterator[None]:
    """JAX's own cache is neither read nor written."""
    before = jax.config.values["jax_enable_compilation_cache"]
    _enable_cache(False)
    try:
        yield
    finally:
        _enable_cache(before)


def _enable_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # JAX looks at its configuration once.
