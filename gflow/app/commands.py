"""The commands of `gflow` and their options, as dataclasses that tyro fills."""

import sys
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Annotated

import tyro

from gflow.app.config import Config, read_config


@dataclass(frozen=True)
class RunCommand:
    """Follow gradient flow and gradient descent on a table, and write a report."""

    settings: Annotated[Config, tyro.conf.arg(name="")]
    config: Path | None = None
    """A TOML file with the same fields; command-line options take precedence."""
    cache: bool = True
    """Keep compiled programs in the user's cache directory for later runs."""


@dataclass(frozen=True)
class ResumeCommand:
    """Go on with a run that was cut off, to the result that it would have had."""

    directory: tyro.conf.Positional[Path]
    """The run directory."""
    cache: bool = True
    """Keep compiled programs in the user's cache directory for later runs."""


@dataclass(frozen=True)
class ReportCommand:
    """Write the report.html of a run directory again."""

    directory: tyro.conf.Positional[Path]
    """The run directory."""
    figures: bool = False
    """Also write each figure to the folder "figures" of that directory, as SVG and PDF."""
    cache: bool = True
    """Keep compiled programs in the user's cache directory for later runs."""


@dataclass(frozen=True)
class GalleryCommand:
    """Run experiments on the claims of papers; without names, all of them."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which experiments."""
    list: bool = False
    """Only list them."""
    long: bool = False
    """With more cases, for minutes."""
    json: bool = False
    """Print JSON."""
    figures: Path | None = None
    """Write the figures to this directory, as SVG and PNG."""
    page: Path | None = None
    """Write a page in Markdown, and its figures to a directory of the same name beside it."""
    cache: bool = True
    """Keep compiled programs in the user's cache directory for later runs."""


Command = RunCommand | ResumeCommand | ReportCommand | GalleryCommand


def parse(arguments: list[str]) -> Command:
    """The command that the arguments ask for. Exits after `--help`, and with 2 and one sentence for
    options that cannot be used.

    **Raises:** `ArgumentError` for a configuration file that cannot be used.
    """
    defaults = _run_defaults(arguments)
    messages = StringIO()
    try:
        with redirect_stderr(messages):
            command = tyro.cli(
                Annotated[RunCommand, tyro.conf.subcommand("run", default=defaults)]
                | Annotated[ResumeCommand, tyro.conf.subcommand("resume")]
                | Annotated[ReportCommand, tyro.conf.subcommand("report")]
                | Annotated[GalleryCommand, tyro.conf.subcommand("gallery")],
                args=arguments,
                prog="gflow",
                description="Gradient flow of neural networks against gradient descent. "
                "`gflow --version` prints the version.",
            )
    except SystemExit:
        if messages.getvalue():
            print(f"gflow: {_sentence(messages.getvalue())}", file=sys.stderr)
        raise
    if not isinstance(command, RunCommand):
        return command
    given, default = command.settings, defaults.settings
    if given.data != default.data and given.data_hash == default.data_hash:
        # The hash in a configuration file is that of the data in that file.
        return replace(command, settings=replace(given, data_hash=None))
    return command


def _run_defaults(arguments: list[str]) -> RunCommand:
    """The defaults of the options: those of the --config file if there is one."""
    for k, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--config":
            value = value if equals else "".join(arguments[k + 1 : k + 2])
            return RunCommand(read_config(Path(value)).validated(), Path(value))
    return RunCommand(Config())


def _sentence(box: str) -> str:
    """tyro's message, without the frame, the help on the option, and line breaks."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        words = line.strip("│| ")
        if line.startswith(("╭", "╰")):
            continue
        if words and set(words) <= {"─", "-"}:
            parts.append([])
        elif words:
            parts[-1].append(words)
    # Without Unicode there is no frame, and the title is above a rule.
    first, *others = parts if box.startswith("╭") else parts[1:]
    text = " ".join(first).rstrip(".")
    for part in others:
        if part and part[0].startswith("Perhaps you meant"):
            text += f"; perhaps you meant {part[1]}"
        elif part and part[0].startswith("Available subcommands"):
            text += f"; {part[0][0].lower()}{part[0][1:]}"
    return f"{text}. `gflow --help` and `gflow run --help` list what there is."
