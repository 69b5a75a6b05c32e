"""Compiled programs on disk: the next run with the same shapes starts sooner."""

import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path

_MAX_BYTES = 2 * 10**9


def keep_programs(say: Callable[[str], None]) -> None:
    """From here on JAX keeps compiled programs in the user's cache directory, and reads them there.

    Nothing is changed if JAX has such a directory already, as by `JAX_COMPILATION_CACHE_DIR`, or if
    ours cannot be written. `say` is called with its place when it is made.
    """
    import jax
    import platformdirs

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = (
        Path(platformdirs.user_cache_dir("gflow", appauthor=False)) / f"programs-{_processor()}"
    )
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    if is_new:
        say(f"Compiled programs are kept in {folder} for later runs; `--no-cache` keeps none.")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)


def _processor() -> str:
    """A name for the kind of processor: its programs do not run on all others, and computers may
    share a home directory."""
    kind = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        kinds = ("model name", "flags", "Features")
        lines = cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines()
        kind += "".join(line for line in lines if line.startswith(kinds))
    return hashlib.sha256(kind.encode()).hexdigest()[:12]
