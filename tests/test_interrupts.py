"""Ctrl-C while a flow is solved."""

import contextlib
import signal
import sys
import weakref

import numpy as np
import pytest

import gflow
from gflow.flow import driver, smooth
from gflow.interrupts import ProgramInterrupts, noted_interrupts


@pytest.fixture
def ctrl_c_after(monkeypatch, request):
    """Presses Ctrl-C when the progress bar has advanced so many times."""

    class Bar:
        def __init__(self, count: int):
            self.left = count

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def advance(self, amount, postfix):
            self.left -= 1
            if self.left == 0:
                # One that is lost on its way: what runs there may swallow an exception.
                with contextlib.suppress(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)

    # Programs in the background start with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    return lambda count: monkeypatch.setattr(driver, "progress_bar", lambda *_: Bar(count))


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_computed(
    wave, smooth_net, smooth_flow, monkeypatch, ctrl_c_after
):
    ctrl_c_after(3)
    monkeypatch.setattr(smooth, "MAX_PIECE_STEPS", 40)
    options = {"t1": 10.0, "ts": smooth_flow.ts, "progress": True}
    flow = gflow.solve_flow(wave, smooth_net, throw=False, **options)
    assert flow.result_name == "interrupted" and flow.stats["num_steps"] == 60
    # What was saved, and where it was.
    saved = len(flow) - 1
    assert smooth_flow.ts[saved - 1] <= flow.ts[-1] < smooth_flow.ts[saved]
    np.testing.assert_allclose(flow.risk[:saved], smooth_flow.risk[:saved], rtol=1e-7)
    with pytest.raises(gflow.TrajectoryError, match="interrupted"):
        gflow.solve_flow(wave, smooth_net, **options)


def test_a_flow_that_has_reached_its_end_is_not_interrupted(wave, smooth_net, ctrl_c_after):
    ctrl_c_after(1)
    flow = gflow.solve_flow(wave, smooth_net, t1=0.01, progress=True)
    assert flow.succeeded and flow.ts[-1] == 0.01


def test_ctrl_c_without_a_progress_bar_is_passed_on(wave, smooth_net, monkeypatch):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(smooth.SmoothRun, "advance", pressed)
    with pytest.raises(KeyboardInterrupt):
        gflow.solve_flow(wave, smooth_net, t1=1.0)


def test_sigterm_acts_like_ctrl_c_in_a_program_that_handles_it(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with ProgramInterrupts() as program:
        program.start_computing()
        with noted_interrupts() as noted:
            signal.raise_signal(signal.SIGTERM)
            assert noted == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert program.received == 3 * [signal.SIGTERM] and program.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "interrupted; this ends at the next pause" in capfd.readouterr().err


def test_a_program_that_does_not_handle_sigterm_is_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    with noted_interrupts():
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_inside_a_finaliser_leaves_no_traceback(monkeypatch):
    class Watched:
        pass

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(found.exc_type))
    with ProgramInterrupts() as program:
        program.start_computing()
        for done in (lambda _: signal.raise_signal(signal.SIGTERM), lambda _: 1 / 0):
            watched = Watched()
            watch = weakref.ref(watched, done)
            del watched
            assert watch() is None
        assert program.received == [signal.SIGTERM]
    assert told == [ZeroDivisionError]
