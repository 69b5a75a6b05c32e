"""The command line: `gflow run`, `gflow resume`, `gflow report` and `gflow gallery`."""

import errno
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from gflow.app.streams import discard, open_closed_streams, say
from gflow.interrupts import ProgramInterrupts

if TYPE_CHECKING:
    from gflow.app.commands import GalleryCommand, ReportCommand, ResumeCommand, RunCommand
    from gflow.app.experiment import Outcome
    from gflow.app.summary import EndRow, SummaryRow


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exits with 0, 1 (the flow did not reach its end), 2 (bad input), 130
    (Ctrl-C) or 143 (SIGTERM).

    `arguments`: those of the command line by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # some terminals and pipes have no λ
            stream.reconfigure(errors="replace")
    # What is imported here needs time, in which a signal may come.
    with ProgramInterrupts() as interrupts:
        from gflow.arguments import ArgumentError

        try:
            sys.exit(_dispatch(arguments, interrupts))
        except ArgumentError as error:
            say(f"gflow: {error}")
            sys.exit(2)
        except KeyboardInterrupt:
            say("gflow: interrupted")
            sys.exit(interrupts.exit_status)


def _dispatch(arguments: list[str], interrupts: ProgramInterrupts) -> int:
    if arguments == ["--version"]:
        from importlib.metadata import version

        print(f"gflow {version('gflow-jax')}")
        return 0
    try:
        from gflow.app.commands import GalleryCommand, ReportCommand, parse
    except ModuleNotFoundError as missing:
        say(
            f"gflow: the command line needs {missing.name}, which is not installed: "
            "install gflow with the extra `app`, as by pip install '.[app]'"
        )
        return 2

    try:
        try:
            command = parse(arguments)
        finally:  # after the help, too, which ends the program
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads it, as behind `| head`
        discard(sys.stdout)
        return 0
    with _warnings_as_sentences():
        if command.cache:
            _keep_programs()
        if isinstance(command, ReportCommand):
            return _report(command, interrupts)
        if isinstance(command, GalleryCommand):
            return _gallery(command, interrupts)
        return _run(command, interrupts)


def _keep_programs() -> None:
    """Compiled programs are kept, where JAX is told to or in gflow's directory, if that can be
    written."""
    from gflow.arguments import ArgumentError
    from gflow.program_cache import cache_compilations, configured_directory, default_directory

    known = configured_directory() is not None or default_directory().exists()
    try:
        folder = cache_compilations()
    except ArgumentError:
        return
    if not known:
        say(f"Compiled programs are kept in {folder} for later runs; `--no-cache` keeps none.")


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """gflow's own warnings are shown without the line of code; those of other packages are not."""
    said: set[str] = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        ours = Path(__file__).parent.parent in Path(filename).parents
        if ours and issubclass(category, UserWarning) and str(message) not in said:
            said.add(str(message))
            say(f"Warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _run(command: "RunCommand | ResumeCommand", interrupts: ProgramInterrupts) -> int:
    from gflow.app.commands import RunCommand
    from gflow.app.experiment import resume, run

    interrupts.start_computing()
    options = {"say": say, "interrupted": lambda: bool(interrupts.received)}
    if isinstance(command, RunCommand):
        outcome = run(command.settings, **options)
    else:
        outcome = resume(command.directory, **options)
    try:
        return _show(outcome, interrupts)
    except KeyboardInterrupt:
        say(f"Interrupted: the results are in {outcome.directory}.")
        return interrupts.exit_status


def _show(outcome: "Outcome", interrupts: ProgramInterrupts) -> int:
    """Prints the summary and where the results are. Returns the exit status."""
    result, directory = outcome.run, outcome.directory
    try:
        _print_outcome(outcome)
    except OSError as error:
        discard(sys.stdout)
        say(f"The summary could not be printed: {error.strerror}.")
        if directory is not None:
            say(f"The results are in {directory}.")
    if result.status == "interrupted":
        if directory is not None:
            say(f"Interrupted: {directory} holds the results so far.")
            say(f"`gflow resume {directory}` goes on.")
        return interrupts.exit_status
    return 0 if result.flow is not None and result.flow.succeeded and directory is not None else 1


def _print_outcome(outcome: "Outcome") -> None:
    import jax

    result, directory = outcome.run, outcome.directory
    with jax.enable_x64(result.config.precision == "float64"):
        _print_summary(outcome)
    if outcome.has_report and directory is not None:
        print(f"Report: {directory / 'report.html'}", flush=True)
    elif directory is not None:
        print(f"Results: {directory}", flush=True)


def _report(command: "ReportCommand", interrupts: ProgramInterrupts) -> int:
    import jax

    from gflow.app.report import write_report

    interrupts.start_computing()
    with jax.enable_x64(True):
        print(f"Report: {write_report(command.directory, figures=command.figures).page}")
    return 0


def _gallery(command: "GalleryCommand", interrupts: ProgramInterrupts) -> int:
    from gflow.app.gallery import list_experiments, show_gallery

    interrupts.start_computing()
    if command.list:
        list_experiments()
        return 0
    outputs = {"as_json": command.json, "figures": command.figures, "page": command.page}
    stands = show_gallery(command.names, long=command.long, **outputs)
    return 0 if stands else 1


def _print_summary(outcome: "Outcome") -> None:
    from rich.console import Console

    from gflow.app.analysis import analyse
    from gflow.app.summary import answers, end_rows, summary_rows

    run, analysis = outcome.run, outcome.analysis
    if analysis is None:
        analysis = analyse(run)

    class FragileConsole(Console):
        """Lets a broken pipe pass, where rich would end the program."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    console = FragileConsole(highlight=False)
    # Broken lines in a narrow terminal are easier to read than cells that are cut.
    console.width = max(console.width if sys.stdout.isatty() else 0, 165)
    _print_table(console, summary_rows(run, analysis))
    if run.flow is not None:
        facts = run.flow.summary()
        drifts = ", ".join(f"{name} {facts[name]}" for name in facts if name.endswith("drift"))
        console.print(f"Flow: {drifts} (zero along an exact flow)")
    if run.ends:
        _print_table(console, end_rows(run, analysis))
    for sentence in answers(run, analysis):
        console.print(sentence, soft_wrap=True)


def _print_table(console, rows: "Sequence[SummaryRow] | Sequence[EndRow]") -> None:
    from rich import box
    from rich.table import Table

    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else box.ASCII2, title_justify="left")
    for column in rows[0].cells():
        justify = "left" if column in rows[0].text_columns else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*row.cells().values())
    console.print(table)
