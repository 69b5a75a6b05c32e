"""Ctrl-C during a long computation."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """A list, empty until Ctrl-C is pressed. A second Ctrl-C raises `KeyboardInterrupt`.

    The computation looks at the list at places where its state is complete: an exception raised
    elsewhere could be swallowed there, or leave the state half updated. Outside the main thread the
    list stays empty.
    """
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield noted
        return

    def note(number, frame):
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
