"""Tables of data: two of scikit-learn, CSV and Parquet files, named targets."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gflow.app.columns import (
    ColumnChoice,
    LossOption,
    check_names,
    chosen,
    feature_values,
    target_values,
    without_marks,
    without_missing,
)
from gflow.app.table_files import SUFFIXES, read_file
from gflow.arguments import ArgumentError, Described

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """Inputs and targets of a regression or classification.

    - `x`, shape (rows, features), and `y`, shape (rows,): the network is trained on them.
    - `features`: a name for each column of x; `target`: the name of y.
    - `name`: the source of the table; `notes`: how it was changed, in sentences.
    - `classes`: the names of the classes. y is -1 and 1 for the logistic loss, and the number of
      the class for cross-entropy.
    """

    x: np.ndarray
    y: np.ndarray
    features: tuple[str, ...]
    target: str
    name: str
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableOptions:
    """What is read from a file, and how.

    - `target`: the column to predict. `loss`: what it is to be: numbers, or classes.
    - `drop`, `features`: columns to leave out, or the only ones to use, separated by commas.
    - `missing`: what to do about missing entries: "drop" the rows, take the "mean", or refuse.
    - `separator`, `encoding`: those of a text file; found out if None.
    - `standardise`: give features and target mean 0 and standard deviation 1; not for classes.
    """

    target: str | None = None
    loss: LossOption = "squared"
    drop: str | None = None
    features: str | None = None
    missing: Literal["drop", "mean"] | None = None
    separator: str | None = None
    encoding: str | None = None
    standardise: bool = True


def load_table(
    data: str,
    options: TableOptions,
    *,
    num_points: int,
    say: Callable[[str], None] = lambda text: None,
) -> Table:
    """The data of a regression.

    **Arguments:**

    - `data`: "linnerud" or "diabetes", a `.csv`, `.tsv`, `.txt` or `.parquet` file, or the name of
      a piecewise polynomial of `gflow.piecewise`. Text columns become one 0/1 column for each
      value.
    - `num_points`: the number of equally spaced points of a piecewise polynomial, which is not
      standardised.
    - `say`: called with a sentence before a file is read.

    **Raises:** `ArgumentError` for a missing file or column, fewer than two rows, missing or
    infinite entries, dates, text with too many values, or a constant target.
    """
    from gflow import piecewise

    if not is_file(data):
        named = (*_BUNDLED, *piecewise.NAMED)
        if data not in named:
            known = ", ".join(repr(name) for name in named)
            wanted = f"a .csv, .tsv, .txt or .parquet file, or one of {known}"
            raise ArgumentError("data", data, wanted)
        _refuse_file_options(options)
    if data in piecewise.NAMED:
        x = np.linspace(-1.0, 1.0, num_points)
        y = np.asarray(piecewise.named(data)(x))
        return Table(x[:, None], y, ("x",), data, data)
    if data in _BUNDLED:
        table = _BUNDLED[data]()
    else:
        path = Path(data)
        if path.is_file():
            say(f"Reading {data} ({-(-path.stat().st_size // 1000):,} kB).")
        table = _read(path, options)
    if table.y.std() <= 1e-12 * np.abs(table.y).max():
        got = Described(f"column {table.target!r}, which is {table.y[0]:g} in every row")
        raise ArgumentError("target", got, "a target that varies")
    return _standardised(table) if options.standardise else table


def is_file(data: str) -> bool:
    """Whether `data` names a file, by its ending."""
    return data.lower().endswith(SUFFIXES)


def file_hash(data: str) -> str | None:
    """The SHA-256 of the file; None if `data` names none."""
    if not is_file(data) or not Path(data).is_file():
        return None
    with Path(data).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_file_options(options: TableOptions) -> None:
    for name in ("target", "drop", "features", "missing", "separator", "encoding"):
        value = getattr(options, name)
        if value is not None:
            raise ArgumentError(name, value, f"no {name}, unless `data` is a file")
    if options.loss != "squared":
        raise ArgumentError("loss", options.loss, "'squared', unless `data` is a file")


def _diabetes() -> Table:
    from sklearn.datasets import load_diabetes

    bunch: Any = load_diabetes(scaled=False)
    name = "diabetes (scikit-learn)"
    return Table(
        np.asarray(bunch["data"]),
        bunch["target"],
        tuple(bunch["feature_names"]),
        "progression",
        name,
    )


def _linnerud() -> Table:
    """The resting pulse of twenty men, from what they do in three exercises."""
    from sklearn.datasets import load_linnerud

    bunch: Any = load_linnerud()
    pulse = bunch["target_names"].index("Pulse")
    return Table(
        np.asarray(bunch["data"], dtype=float),
        np.asarray(bunch["target"][:, pulse], dtype=float),
        tuple(name.lower() for name in bunch["feature_names"]),
        "pulse",
        "linnerud (scikit-learn)",
    )


_BUNDLED = {"linnerud": _linnerud, "diabetes": _diabetes}


def _read(path: Path, options: TableOptions) -> Table:
    file = read_file(path, options.separator, options.encoding)
    frame, name = file.frame, path.name
    columns = list(frame.columns)
    if options.target is None:
        wanted = f"the column to predict: one of {', '.join(columns[:20])}"
        raise ArgumentError("target", Described("nothing"), wanted)
    choice = ColumnChoice(
        options.target, _names(options.drop), _names(options.features), options.missing
    )
    for option in ("drop", "features"):
        check_names(option, getattr(choice, option), columns, name)
    check_names("target", [choice.target], columns, name)
    if choice.target in file.repeated and f"{choice.target}.1" not in choice.drop:
        got = Described(f"two columns {choice.target!r} in {name}")
        raise ArgumentError("target", got, f"one, or `--drop {choice.target}.1`")
    if choice.target in choice.drop:
        raise ArgumentError("drop", choice.target, "columns other than the target")
    _check_rows(frame, name)
    frame, left_out = chosen(frame, choice)
    frame, marks = without_marks(frame, None if options.loss == "squared" else choice.target)
    if len(frame.columns) < 2:
        got = Described(f"{name} with the one column {choice.target!r}")
        raise ArgumentError("data", got, "a feature column beside the target")
    frame, missing = without_missing(frame, choice, name)
    _check_rows(frame, name)
    target = target_values(frame.loc[:, choice.target], options.loss, name)
    features = feature_values(frame.drop(columns=choice.target), name)
    notes = (*file.notes, *left_out, *marks, *missing, *features.notes, *target.notes)
    return Table(
        features.values, target.values, features.names, choice.target, name, notes, target.classes
    )


def _check_rows(frame: "pd.DataFrame", file: str) -> None:
    if len(frame) < 2:
        raise ArgumentError("data", Described(f"{file} with {len(frame)} rows"), "two or more")


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def _standardised(table: Table) -> Table:
    """The table with mean 0 and standard deviation 1, without constant features."""
    spread = table.x.std(axis=0)
    varies = spread > 1e-12 * np.abs(table.x).max(axis=0, initial=1e-300)
    if not varies.any():
        raise ArgumentError("data", Described("only constant features"), "a feature that varies")
    constant = [name for name, kept in zip(table.features, varies) if not kept]
    notes = [f"Constant column {name!r} was left out." for name in constant]
    x, y = table.x[:, varies], table.y
    what = "Features have" if table.classes else "Features and target have"
    return replace(
        table,
        x=(x - x.mean(axis=0)) / x.std(axis=0),
        y=y if table.classes else (y - y.mean()) / y.std(),
        features=tuple(name for name, kept in zip(table.features, varies) if kept),
        notes=(*table.notes, *notes, f"{what} mean 0 and standard deviation 1."),
    )
