"""How far a long run is, on standard error: a bar in a terminal or a notebook, lines elsewhere."""

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

_SECONDS_BETWEEN_LINES = 10.0
_SHAPE = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class ProgressDisplay(Protocol):
    """Shows how far a run is."""

    def advance(self, amount: int, postfix: str) -> None:
        """That `amount` more of the total is done; the postfix says where the run is."""
        ...


class _Nothing:
    def advance(self, amount: int, postfix: str) -> None:
        pass


class _Bar:
    def __init__(self, bar: Any):
        self._bar = bar

    def advance(self, amount: int, postfix: str) -> None:
        self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update(amount)


class _Lines:
    """A line from time to time, as in a pipe or a log file."""

    def __init__(self, total: int, title: str):
        self._total, self._title, self._done = total, title, 0
        self._start = self._shown = time.monotonic()

    def advance(self, amount: int, postfix: str) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = now
            part = self._done / max(self._total, 1)
            line = f"{self._title} {part:4.0%}, {now - self._start:.0f} s, {postfix}"
            # No run ends since nobody reads how far it is.
            with suppress(OSError, ValueError):
                print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(total: int | None, title: str) -> Iterator[ProgressDisplay]:
    """Shows nothing if `total` is None; a bar in a terminal, or in a notebook with ipywidgets, if
    tqdm (the extra `gflow-jax[app]`) is installed; otherwise a line every ten seconds."""
    if total is None:
        yield _Nothing()
        return
    bar_class = _bar_class()
    if bar_class is None:
        yield _Lines(total, title)
        return
    with bar_class(total=total, desc=title, leave=False, bar_format=_SHAPE) as bar:
        yield _Bar(bar)
    sys.stderr.flush()


def _bar_class() -> Any:
    """tqdm's bar for a notebook or for a terminal; None where a bar cannot be drawn."""
    if sys.stderr is None:  # a program without a console
        return None
    try:
        from tqdm import TqdmWarning
        from tqdm.std import tqdm as in_terminal
    except ImportError:
        return None
    with warnings.catch_warnings():
        # Without ipywidgets tqdm warns, and falls back to the bar for terminals.
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.autonotebook import tqdm as in_notebook
    if sys.stderr.isatty():
        return in_terminal
    return None if in_notebook is in_terminal else in_notebook
