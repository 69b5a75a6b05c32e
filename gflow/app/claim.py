"""A directory for one run alone: claimed before anything is computed, given up if nothing was."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from gflow.arguments import ArgumentError, Described

# The file that says that a directory holds a run, and the one that is locked while one is going on.
RUN_FILE = "run.json"
_LOCK_FILE = "run.lock"
# Where a run that is replaced waits until the new one has results.
_REPLACED = "replaced"


@contextmanager
def claimed(directory: Path | None, *, overwrite: bool) -> Iterator[Path]:
    """The directory, made and locked; None for a new one in runs/, named after date and time.

    A directory that a dead run left without results is taken over. At the end it is deleted, and a
    run that was to be replaced is put back, if there is no run in it.

    **Raises:** `ArgumentError` if the directory cannot be written, or is not free: another run is
    going on in it, or holds a run, unless that is to be replaced, or something else.
    """
    made = _made(directory)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(made.path))
            _check_vacant(made.path, overwrite)
            _set_aside(made.path)
        except OSError as error:
            raise _unwritable(made.path, error) from None
        try:
            yield made.path
        finally:
            with suppress(OSError):
                _give_up_or_keep(made)


class _Made:
    """A directory, and which of it and its parent were made for this run."""

    def __init__(self, path: Path, with_parent: bool):
        self.path, self.with_parent = path, with_parent


def _made(directory: Path | None) -> _Made:
    path = Path("runs") / f"{datetime.now():%Y-%m-%d_%H%M%S}" if directory is None else directory
    if path.is_symlink() and not path.is_dir():
        raise ArgumentError("out", Described(f"{path}, a link to nowhere"), "a new directory")
    stem, again = path, 1
    try:
        with_parent = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
                return _Made(path, with_parent)
            except FileExistsError:
                if directory is not None:
                    break
                again += 1
                path = stem.with_name(f"{stem.name}_{again}")
    except OSError as error:
        raise _unwritable(path, error) from None
    if not path.is_dir():
        raise ArgumentError("out", Described(f"{path}, which exists"), "a new directory")
    return _Made(path, with_parent)


def _unwritable(path: Path, error: OSError) -> ArgumentError:
    got = Described(f"{path}: {error.strerror or error}")
    return ArgumentError("out", got, "a directory that can be written")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """The directory is this process's own until the end, or until the process dies.

    **Raises:** `ArgumentError` if it is another's.
    """
    from filelock import FileLock, Timeout

    existing = directory.is_dir() and any(directory.iterdir())
    if existing and not (directory / RUN_FILE).is_file() and not _is_ours(directory):
        # Nothing is written, not even a lock, into what is not a run.
        got = Described(f"{directory}, which exists")
        raise ArgumentError("out", got, "a new directory, or a run directory to replace")
    lock = FileLock(directory / _LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        got = Described(f"{directory}, in which another run is going on")
        raise ArgumentError("out", got, "another directory") from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            (directory / _LOCK_FILE).unlink()
        lock.release()


def _is_ours(directory: Path) -> bool:
    """Whether a dead run left nothing but its lock, or a run that it was to replace."""
    return {entry.name for entry in directory.iterdir()} <= {_LOCK_FILE, _REPLACED}


def _check_vacant(directory: Path, overwrite: bool) -> None:
    if overwrite or not has_results(directory):
        return
    got = Described(f"{directory}, which exists")
    wanted = "a new directory, `--overwrite` to replace that run"
    raise ArgumentError("out", got, f"{wanted}, or `gflow resume {directory}` if it is unfinished")


def has_results(directory: Path) -> bool:
    """Whether there is a run in the directory that got as far as a trajectory or a checkpoint."""
    if not (directory / RUN_FILE).is_file():
        return False
    stores = {path.parent.name for path in directory.glob("*.zarr/.zmetadata")}
    return bool(stores - {"data.zarr"}) or any(directory.glob("checkpoints/*/*.checkpoint"))


def _set_aside(directory: Path) -> None:
    """Moves a run that is replaced into a directory within, where an older one has precedence."""
    aside = directory / _REPLACED
    old = [entry for entry in directory.iterdir() if entry.name not in (_LOCK_FILE, _REPLACED)]
    if aside.exists() or not has_results(directory):
        for entry in old:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return
    aside.mkdir()
    for entry in old:
        entry.rename(aside / entry.name)


def _give_up_or_keep(made: _Made) -> None:
    directory = made.path
    aside = directory / _REPLACED
    if has_results(directory):
        shutil.rmtree(aside, ignore_errors=True)
        return
    for entry in directory.iterdir():
        if entry.name not in (_LOCK_FILE, _REPLACED):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if aside.is_dir():
        for entry in aside.iterdir():
            entry.rename(directory / entry.name)
        aside.rmdir()
        return
    (directory / _LOCK_FILE).unlink(missing_ok=True)
    directory.rmdir()
    if made.with_parent and not any(directory.parent.iterdir()):
        directory.parent.rmdir()
