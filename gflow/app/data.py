"""Tables of data: two of scikit-learn, CSV and Parquet files, named targets."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gflow import piecewise
from gflow.arguments import ArgumentError, Described

_MAX_CATEGORIES = 20


@dataclass(frozen=True)
class Table:
    """Inputs and targets of a regression.

    - `x`, shape (rows, features), and `y`, shape (rows,): the network is trained on them.
    - `features`: a name for each column of x; `target`: the name of y.
    - `name`: the source of the table; `notes`: how it was changed, in sentences.
    """

    x: np.ndarray
    y: np.ndarray
    features: tuple[str, ...]
    target: str
    name: str
    notes: tuple[str, ...] = ()


def load_table(data: str, target: str | None, *, standardise: bool, num_points: int) -> Table:
    """The data of a regression.

    **Arguments:**

    - `data`: "linnerud" or "diabetes", a `.csv` or `.parquet` file, or the name of a piecewise
      polynomial of `gflow.piecewise`. Text columns become one 0/1 column for each value.
    - `target`: the column of the file to predict.
    - `standardise`: give features and target mean 0 and standard deviation 1. Does not apply to
      piecewise polynomials.
    - `num_points`: the number of equally spaced points of a piecewise polynomial.

    **Raises:** `ArgumentError` for a missing file or column, fewer than two rows, missing or
    infinite entries, text with too many values, or a constant target.
    """
    if data in (*_BUNDLED, *piecewise.NAMED) and target is not None:
        raise ArgumentError("target", target, "no target, unless `data` is a file")
    if data in piecewise.NAMED:
        x = np.linspace(-1.0, 1.0, num_points)
        y = np.asarray(piecewise.named(data)(x))
        return Table(x[:, None], y, ("x",), data, data)
    if data in _BUNDLED:
        table = _BUNDLED[data]()
    elif data.lower().endswith((".csv", ".parquet")):
        table = _read(Path(data), target)
    else:
        known = ", ".join(repr(name) for name in (*_BUNDLED, *piecewise.NAMED))
        raise ArgumentError("data", data, f"a .csv or .parquet file, or one of {known}")
    if table.y.std() <= 1e-12 * np.abs(table.y).max():
        got = Described(f"column {table.target!r}, which is {table.y[0]:g} in every row")
        raise ArgumentError("target", got, "a target that varies")
    return _standardised(table) if standardise else table


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


def _read(path: Path, target: str | None) -> Table:
    frame = _frame(path)
    columns = [str(c) for c in frame.columns]
    frame.columns = columns
    if target is None:
        wanted = f"the column to predict: one of {', '.join(columns[:20])}"
        raise ArgumentError("target", target, wanted)
    if target not in columns:
        close = difflib.get_close_matches(target, columns, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        wanted = f"a column of {path.name}{hint}: {', '.join(columns[:20])}"
        raise ArgumentError("target", target, wanted)
    if len(set(columns)) < len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)
        raise ArgumentError(
            "data", Described(f"two columns {twice!r}"), "columns of distinct names"
        )
    if len(frame) < 2:
        raise ArgumentError("data", Described(f"{path.name} with {len(frame)} rows"), "two or more")
    if len(columns) < 2:
        got = Described(f"{path.name} with the one column {target!r}")
        raise ArgumentError("data", got, "a feature column beside the target")
    y = _numbers(frame[target], path.name, "target")
    blocks, names, notes = [], [], []
    for column in columns:
        if column != target:
            block, block_names, note = _encoded(frame[column], path.name)
            blocks.append(block)
            names += block_names
            notes += note
    return Table(np.concatenate(blocks, axis=1), y, tuple(names), target, path.name, tuple(notes))


def _frame(path: Path):
    import pandas as pd

    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise ArgumentError("data", Described(f"{path}: {what}"), "a .csv or .parquet file")
    try:
        return pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        raise ArgumentError(
            "data", Described(f"{path.name}, empty"), "a table with a header"
        ) from None
    except (ValueError, OSError) as error:  # parse errors of pandas and pyarrow are ValueErrors
        reason = str(error).strip().split("\n")[0]
        got = Described(f"{path.name}, which cannot be read ({reason})")
        raise ArgumentError(
            "data", got, "a table with a header and columns of equal length"
        ) from None


def _is_number(column) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) or is_bool_dtype(column)


def _numbers(column, file: str, role: str) -> np.ndarray:
    if not _is_number(column):
        got = Described(f"{role} column {column.name!r} of {file} with {column.iloc[0]!r} in it")
        raise ArgumentError("target", got, "a column of numbers")
    values = column.to_numpy(dtype=float, na_value=np.nan)
    _refuse(~np.isfinite(values), values, column.name, file)
    return values


def _refuse(bad: np.ndarray, values, column, file: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        more = f", and {int(bad.sum()) - 1} more in that column" if bad.sum() > 1 else ""
        got = Described(f"{values[row]} in row {row + 1} of column {column!r} of {file}{more}")
        raise ArgumentError(
            "data", got, "finite entries (rows are counted from 1 after the header)"
        )


def _encoded(column, file: str) -> tuple[np.ndarray, list[str], list[str]]:
    """A feature column as columns of numbers, their names, and notes for the user."""
    if _is_number(column):
        return _numbers(column, file, "feature")[:, None], [str(column.name)], []
    _refuse(column.isna().to_numpy(), column.to_numpy(dtype=object), column.name, file)
    _refuse_stray_text(column, file)
    values = sorted({str(value) for value in column})
    if len(values) > _MAX_CATEGORIES:
        got = Described(f"text column {column.name!r} of {file} with {len(values)} distinct values")
        wanted = f"at most {_MAX_CATEGORIES}, for one 0/1 column each; leave the column out"
        raise ArgumentError("data", got, wanted)
    text = column.astype(str).to_numpy()
    block = np.stack([text == value for value in values], axis=1).astype(float)
    names = [f"{column.name}={value}" for value in values]
    return block, names, [f"Text column {column.name!r} became {len(values)} columns of 0 and 1."]


def _refuse_stray_text(column, file: str) -> None:
    """Raises for a column of numbers with some text in it, which is not a column of categories."""
    import pandas as pd

    odd = np.isnan(np.asarray(pd.to_numeric(column, errors="coerce"), dtype=float))
    if 0 < odd.sum() < 0.5 * len(odd):
        row = int(np.argmax(odd))
        got = Described(
            f"{column.iloc[row]!r} in row {row + 1} of column {column.name!r} of {file}"
        )
        raise ArgumentError("data", got, "a number, like most of that column")


def _standardised(table: Table) -> Table:
    """The table with mean 0 and standard deviation 1, without constant features."""
    spread = table.x.std(axis=0)
    varies = spread > 1e-12 * np.abs(table.x).max(axis=0, initial=1e-300)
    if not varies.any():
        raise ArgumentError("data", Described("only constant features"), "a feature that varies")
    constant = [name for name, kept in zip(table.features, varies) if not kept]
    notes = [f"Constant column {name!r} was left out." for name in constant]
    x, y = table.x[:, varies], table.y
    return Table(
        (x - x.mean(axis=0)) / x.std(axis=0),
        (y - y.mean()) / y.std(),
        tuple(name for name, kept in zip(table.features, varies) if kept),
        table.target,
        table.name,
        (*table.notes, *notes, "Features and target have mean 0 and standard deviation 1."),
    )
