"""Ctrl-C and SIGTERM during a long computation."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ProgramInterrupts:
    """Ctrl-C and SIGTERM for a whole program, as a context.

    They end the process at once, with a sentence, until `start_computing` is called: there is
    nothing to keep yet, and imports that are cut off leave tracebacks. From then on both raise
    `KeyboardInterrupt`. `received`: the signals that came, which an exception that was swallowed
    on its way (raised inside a finaliser, say) leaves, too; nothing is printed of such a one.

    Signals that are ignored stay so. Outside the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._computing = False
        self._before: dict[int, Any] = {}

    def start_computing(self) -> None:
        self._computing = True

    @property
    def exit_status(self) -> int:
        """128 + the number of the first signal, as shells have it."""
        return 128 + (self.received or [signal.SIGINT])[0]

    def __enter__(self) -> "ProgramInterrupts":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        self._hook_before = sys.unraisablehook
        sys.unraisablehook = self._pass_over
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._hook_before
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_over(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if not (self.received and isinstance(unraisable.exc_value, KeyboardInterrupt)):
            self._hook_before(unraisable)

    def note(self, number: int) -> None:
        """Keeps the signal in mind, and says that the computation will look at it."""
        self.received.append(number)
        _write("gflow: interrupted; this ends at the next pause, and at once if it comes again")

    def _receive(self, number: int, frame: object) -> None:
        self.received.append(number)
        if not self._computing:
            _write("gflow: interrupted")
            os._exit(self.exit_status)
        raise KeyboardInterrupt


def _write(text: str) -> None:
    """Writes to standard error past its buffer, which a signal may have found half written."""
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode())


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """A list, empty until Ctrl-C is pressed. A second Ctrl-C raises `KeyboardInterrupt`.

    The computation looks at the list at places where its state is complete: an exception raised
    elsewhere could be swallowed there, or leave the state half updated. SIGTERM is noted, too, in a
    program that handles it. Outside the main thread the list stays empty.
    """
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number, frame):
        noted.append(number)
        program = getattr(before[number], "__self__", None)
        if isinstance(program, ProgramInterrupts):
            program.note(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
