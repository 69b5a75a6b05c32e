"""Standard output and error, which may be closed, on a full disk, or a pipe that nobody reads."""

import os
import sys
from contextlib import suppress
from typing import TextIO


def open_closed_streams() -> None:
    """Gives a program that was started without standard output or error one that leads nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def say(text: str) -> None:
    """Writes a line to standard error. No run ends since nobody can read it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: closed within the program
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """From now on, what is written to the stream, or waits there, goes nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
