"""The command line: `gflow run` and `gflow report`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from gflow.app.config import Config, read_config
from gflow.arguments import ArgumentError

if TYPE_CHECKING:
    from gflow.app.run_directory import Run
    from gflow.app.summary import EndRow, SummaryRow


@dataclasses.dataclass(frozen=True)
class RunCommand:
    """Follow gradient flow and gradient descent on a table, and write a report."""

    settings: Annotated[Config, tyro.conf.arg(name="")]
    config: Path | None = None
    """A TOML file with the same fields; command-line options take precedence."""


@dataclasses.dataclass(frozen=True)
class ReportCommand:
    """Write the report.html of a run directory again."""

    directory: tyro.conf.Positional[Path]
    """The run directory."""
    figures: bool = False
    """Also write each figure to the folder "figures" of that directory, as SVG and PDF."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exits with 0, 1 (the flow did not reach its end), 2 (bad input) or 130
    (interrupted).

    `arguments`: those of the command line by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(_dispatch(arguments))
    except ArgumentError as error:
        print(f"gflow: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("gflow: interrupted", file=sys.stderr)
        sys.exit(130)


def _dispatch(arguments: list[str]) -> int:
    command = tyro.cli(
        Annotated[RunCommand, tyro.conf.subcommand("run", default=_run_defaults(arguments))]
        | Annotated[ReportCommand, tyro.conf.subcommand("report")],
        args=arguments,
        prog="gflow",
        description="Gradient flow of neural networks against gradient descent.",
    )
    return _report(command) if isinstance(command, ReportCommand) else _run(command)


def _run_defaults(arguments: list[str]) -> RunCommand:
    """The defaults of the options: those of the --config file if there is one."""
    for k, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--config":
            value = value if equals else "".join(arguments[k + 1 : k + 2])
            return RunCommand(read_config(Path(value)).validated(), Path(value))
    return RunCommand(Config())


def _run(command: RunCommand) -> int:
    from gflow.app.experiment import run

    result, directory = run(command.settings, say=lambda text: print(text, file=sys.stderr))
    _print_summary(result)
    print(f"Report: {directory / 'report.html'}")
    if result.status == "interrupted":
        print(f"Interrupted: {directory} holds the results so far.", file=sys.stderr)
        return 130
    return 0 if result.flow is not None and result.flow.succeeded else 1


def _report(command: ReportCommand) -> int:
    import jax

    from gflow.app.report import write_report

    with jax.enable_x64(True):
        print(f"Report: {write_report(command.directory, figures=command.figures)}")
    return 0


def _print_summary(run: "Run") -> None:
    from rich.console import Console

    from gflow.app.analysis import analyse
    from gflow.app.summary import answers, end_rows, summary_rows

    analysis = analyse(run)
    console = Console(highlight=False)
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
