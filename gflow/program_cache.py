"""Compiled programs on disk: the next process with the same shapes starts sooner."""

import os
from pathlib import Path

import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

from gflow.arguments import ArgumentError, Described
from gflow.program_store import keep_programs, processor

_MAX_BYTES = 2 * 10**9
# JAX's own thresholds, from which a user may have deviated.
_MIN_SECONDS, _UNBOUNDED = 1.0, -1


def cache_compilations(directory: str | os.PathLike[str] | None = None) -> Path:
    """Keeps compiled programs on disk, where later processes find them, by JAX's persistent
    compilation cache. It can be called at any time, and again.

    **Arguments:** `directory`: where, made if it is not there. By default that of JAX's
    configuration, such as `JAX_COMPILATION_CACHE_DIR`, or else one in the user's cache directory
    (`~/.cache/gflow` on Linux, at most 3 GB). What has been configured of JAX's cache otherwise
    stays; without it, all programs are kept, not only those that compile for a second.

    **Returns:** the directory. **Raises:** `ArgumentError` if it cannot be written.
    """
    configured = configured_directory()
    if directory is None and configured is not None and "://" in configured:
        return Path(configured)
    folder = _writable(configured or default_directory() if directory is None else directory)
    config = jax.config.values
    if config["jax_persistent_cache_min_compile_time_secs"] == _MIN_SECONDS:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if folder == default_directory() and config["jax_compilation_cache_max_size"] == _UNBOUNDED:
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    if configured != str(folder):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX looks at its configuration when it compiles for the first time.
        compilation_cache.reset_cache()
    keep_programs(folder / "gflow")
    return folder


def configured_directory() -> str | None:
    """The directory in which JAX keeps programs already."""
    return jax.config.values["jax_compilation_cache_dir"]


def default_directory() -> Path:
    """gflow's directory in that of the user's caches, one for each kind of processor."""
    caches = Path(platformdirs.user_cache_dir("gflow", appauthor=False))
    return caches / f"programs-{processor()}"


def _writable(directory: str | os.PathLike[str]) -> Path:
    try:
        folder = Path(directory).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "Permission denied")
    except (OSError, TypeError) as error:
        got = Described(f"{str(directory)!r}: {getattr(error, 'strerror', None) or error}")
        raise ArgumentError("directory", got, "a directory that can be written") from None
    return folder
