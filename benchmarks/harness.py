"""What the benchmarks share: command line, timing, checks, the printed table, saved results."""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from gflow.app.provenance import PACKAGES, provenance

# One measurement as a flat dict; a method that failed has an entry "error".
Row = dict[str, Any]
# Does that many units of work (steps, solves, calls) and returns what they give.
Run = Callable[[int], Any]
# What a benchmark may compare with: their versions are saved where they are installed.
PEERS = ("scipy", "torch", "torchdiffeq", "scikit-sundae")


def parser(
    name: str, description: str | None, precisions: Sequence[str] = ("float64", "float32")
) -> argparse.ArgumentParser:
    """The options of every benchmark; a benchmark adds its own."""
    new = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    new.add_argument("--quick", action="store_true", help="short runs and few repeats")
    new.add_argument("--repeats", type=int, help="timed runs per method (7, or 3 if quick)")
    new.add_argument("--precision", choices=precisions, default=precisions[0])
    out = Path(__file__).parent / "results" / f"{name}.json"
    new.add_argument("--out", type=Path, default=out, help=f"JSON file (results/{name}.json)")
    return new


def start(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line and sets JAX up accordingly."""
    args = options.parse_args()
    if args.repeats is None:
        args.repeats = 3 if args.quick else 7
    if args.repeats < 1:
        options.error(f"--repeats {args.repeats}: at least 1")
    jax.config.update("jax_enable_x64", args.precision == "float64")
    # Accelerators multiply float32 matrices in fewer bits by default: another computation.
    jax.config.update("jax_default_matmul_precision", "float32")
    # A program read back from a cache on disk would pass for a fast compilation.
    jax.config.update("jax_enable_compilation_cache", False)
    return args


@contextlib.contextmanager
def failure_in(row: Row) -> Iterator[None]:
    """Puts an error into the row instead of raising it: that a method fails is a result too."""
    try:
        yield
    except Exception as error:
        row["error"] = " ".join(f"{type(error).__name__}: {error}".split())


def timed(run: Run, number: int) -> tuple[float, Any]:
    """Seconds until everything is computed, and what came out."""
    begin = time.perf_counter()
    value = jax.block_until_ready(run(number))
    return time.perf_counter() - begin, value


def measure(
    runs: Mapping[str, Run], *, seconds: float, repeats: int, least: int = 1
) -> dict[str, Row]:
    """A row for each method: `compile_s`, of a first run over one unit of work; `run_s`, the median
    over `repeats` runs of `number` units; `rate`, units per second. The number is `least`, doubled
    until a run takes `seconds`. The methods take turns, so that noise hits all alike."""
    rows: dict[str, Row] = {name: {"method": name} for name in runs}
    for name, run in runs.items():
        with failure_in(rows[name]):
            rows[name]["compile_s"] = timed(run, 1)[0]
            rows[name]["number"] = _number(run, seconds, least)
    for _ in range(repeats):
        for name, run in runs.items():
            row = rows[name]
            if "error" not in row:
                with failure_in(row):
                    row.setdefault("all_run_s", []).append(timed(run, row["number"])[0])
    for row in rows.values():
        if "error" not in row:
            row["run_s"] = statistics.median(row["all_run_s"])
            row["spread"] = (max(row["all_run_s"]) - min(row["all_run_s"])) / row["run_s"]
            row["rate"] = row["number"] / row["run_s"]
    return rows


def repeated(run: Callable[[], Any], *, seconds: float, repeats: int) -> tuple[Row, Any]:
    """For runs that cannot be cut into units: the row with `run_s`, the median of at most `repeats`
    runs, of which none begins after so many `seconds`; and what the last run gives."""
    times, value = [], None
    while not times or (len(times) < repeats and sum(times) < seconds):
        spent, value = timed(lambda _: run(), 1)
        times.append(spent)
    return {"run_s": statistics.median(times), "all_run_s": times}, value


def _number(run: Run, seconds: float, least: int) -> int:
    number = least
    while timed(run, number)[0] < seconds:
        number *= 2
    return number


def compare(rows: Mapping[str, Row], runs: Mapping[str, Run], reference: str, rtol: float) -> None:
    """Puts `value`, `difference` and `speedup` into the rows: what each method gives after the same
    work, how far that is, relatively, from the reference's, and the reference's rate over its own.
    A difference above `rtol` is an error, since then the rates belong to unlike computations."""
    good = {name: row for name, row in rows.items() if "error" not in row}
    common = min((row["number"] for row in good.values()), default=0)
    for name, row in good.items():
        with failure_in(row):
            row["value"], row["compared_after"] = float(timed(runs[name], common)[1]), common
    base = rows[reference]
    if "value" not in base:
        return
    for row in (row for row in good.values() if "value" in row):
        row["speedup"] = base["rate"] / row["rate"]
        row["difference"] = abs(row["value"] - base["value"]) / (abs(base["value"]) or 1.0)
        if not row["difference"] <= rtol:
            row["error"] = f"differs from {reference} by {row['difference']:.2g}, above {rtol:g}"


def report(
    args: argparse.Namespace,
    rows: Sequence[Row],
    columns: Mapping[str, tuple[str, str]],
    summary: Sequence[Row] = (),
    **facts: Any,
) -> int:
    """Prints the rows and saves them with all that they came from; 1 if a row has an error.

    `columns` maps a heading to an entry of the rows and its format; `facts` join the provenance.
    Each row of the `summary` is a result of its own, with an entry "sentence" that tells it.
    """
    facts = provenance((*PACKAGES, *PEERS)) | facts
    print(", ".join(f"{name} {fact}" for name, fact in facts.items()), end="\n\n")
    print(table(rows, columns))
    for row in rows:
        if "error" in row:
            names = [row[key] for key, _ in columns.values() if isinstance(row.get(key), str)]
            print(f"failed: {', '.join(names)}: {row['error']}")
    for row in summary:
        print(f"\n{row['sentence']}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "out"}
    saved = {"config": config, "provenance": facts, "rows": rows, "summary": summary}
    args.out.write_text(json.dumps(saved, indent=1) + "\n")
    print(f"\nsaved {args.out}")
    return int(any("error" in row for row in rows))


def table(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> str:
    """The rows as aligned text, words to the left and numbers to the right."""
    cells = [
        [format(row[key], form) if key in row else "-" for key, form in columns.values()]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells)]
    left = [any(isinstance(row.get(key), str) for row in rows) for key, _ in columns.values()]
    align = lambda line: "  ".join(
        text.ljust(width) if words else text.rjust(width)
        for text, width, words in zip(line, widths, left)
    )
    return "\n".join(align(line).rstrip() for line in (list(columns), *cells))
