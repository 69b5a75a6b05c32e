"""Checkpoints: the state of a solve in a file, from which it continues after any interruption."""

import contextlib
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from gflow.arguments import ArgumentError, Described
from gflow.structure import structure as in_words

_NAME = "flow.checkpoint"
# The largest fraction of the run time that writing may take.
_MAX_FRACTION = 0.05


class Checkpoint:
    """The file of one flow in a directory, replaced as a whole each time that it is written."""

    def __init__(self, directory: Any, fingerprint: str):
        try:
            self._file = Path(directory) / _NAME
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self._file.parent, os.W_OK):
                raise PermissionError(None, "Permission denied")
        except (OSError, TypeError) as error:
            got = Described(f"{directory!r}: {getattr(error, 'strerror', None) or error}")
            raise ArgumentError("checkpoint", got, "a directory that can be written") from None
        self._fingerprint = fingerprint
        self._cost, self._written, self._failed = 0.0, -np.inf, False

    def load(self, like: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, Any], Any] | None:
        """The facts and the state that were saved; None if there are none.

        `like` makes a state of the right structure from the facts.
        """
        wanted = "a new directory, or that of the same flow"
        try:
            with self._file.open("rb") as file:
                header = json.loads(file.readline())
                if header["fingerprint"] != self._fingerprint:
                    got = Described(f"{str(self._file.parent)!r}, which holds another flow")
                    raise ArgumentError("checkpoint", got, wanted)
                facts = header["facts"]
                return facts, eqx.tree_deserialise_leaves(file, like(facts))
        except FileNotFoundError:
            return None
        except ArgumentError:
            raise
        except Exception as error:
            got = Described(f"{str(self._file)!r}, which cannot be read ({error})")
            raise ArgumentError("checkpoint", got, wanted) from None

    def save(self, facts: dict[str, Any], state: Any, *, last: bool = False) -> None:
        """Saves facts, as JSON, and a state. Unless it is the `last` one, nothing is written if
        writing has taken too much of the time. A disk that is full does not end the flow."""
        now = time.perf_counter()
        if not last and now - self._written < self._cost / _MAX_FRACTION:
            return
        try:
            self._write(facts, state)
        except OSError as error:
            if not self._failed:
                warnings.warn(
                    f"the checkpoint in {self._file.parent} cannot be written "
                    f"({error.strerror or error}); the flow goes on",
                    stacklevel=2,
                )
            self._failed = True
        self._written = time.perf_counter()
        self._cost = self._written - now

    def _write(self, facts: dict[str, Any], state: Any) -> None:
        partial = self._file.with_name(f".{_NAME}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                header = {"fingerprint": self._fingerprint, "facts": facts}
                file.write(json.dumps(header).encode() + b"\n")
                eqx.tree_serialise_leaves(file, state)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._file)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()


def fingerprint(*parts: Any) -> str:
    """A hash of arrays by their bytes and of everything else by its name, without addresses."""
    digest = hashlib.sha256()
    leaves, structure = jax.tree.flatten(parts)
    for leaf in leaves:
        if eqx.is_array_like(leaf) and not isinstance(leaf, str):
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            digest.update(_named(leaf).encode())
    digest.update(_named(structure).encode())
    # Functions of one name that compute something else.
    for part in parts:
        digest.update(json.dumps(in_words(part)).encode())
    return digest.hexdigest()


def _named(thing: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
