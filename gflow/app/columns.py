"""The columns of a data frame as numbers: what is left out, filled, encoded and refused."""

import difflib
import re
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from gflow.arguments import ArgumentError, Described

if TYPE_CHECKING:
    import pandas as pd

LossOption = Literal["squared", "logistic", "cross-entropy"]

_MAX_CATEGORIES, _MAX_CLASSES = 20, 100
# Text of which each row has another value is no category, from so many rows on.
_FEW_ROWS = 8
_INDEX_NAMES = ("id", "index", "idx", "row", "row_id", "rowid", "nr", "no", "no.", "obs", "#")
_LARGEST = 1e150  # squares of larger numbers overflow
_MARKS_OF_UNITS = ("%", "$", "€", "£", "¥")
_BETWEEN_THOUSANDS = r"(?<=\d)[ \u00a0\u2009\u202f'’](?=\d{3}(?:\D|$))"
_DATE = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(:\d{2})?.*"
)


class Target(NamedTuple):
    """The column to predict as numbers, the names of its classes if it has some, and notes."""

    values: np.ndarray
    classes: tuple[str, ...]
    notes: list[str]


class Features(NamedTuple):
    """One column of numbers for each name, and notes."""

    values: np.ndarray
    names: tuple[str, ...]
    notes: list[str]


@dataclass(frozen=True)
class ColumnChoice:
    """Which columns are features: all but the target and those in `drop`, or those in `features`.

    `missing` says what is done about missing entries: rows are left out ("drop"), the mean of the
    column is taken ("mean"), or, with None, they are refused.
    """

    target: str
    drop: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    missing: Literal["drop", "mean"] | None = None


def check_names(option: str, names: Sequence[str], columns: Sequence[str], file: str) -> None:
    """Raises `ArgumentError` for the first name that no column has, with the names of all."""
    for name in names:
        if name not in columns:
            close = difflib.get_close_matches(name, columns, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            more = ", ..." if len(columns) > 20 else ""
            wanted = f"a column of {file}{hint}: {', '.join(columns[:20])}{more}"
            raise ArgumentError(option, name, wanted)


def chosen(frame: "pd.DataFrame", choice: ColumnChoice) -> tuple["pd.DataFrame", list[str]]:
    """The target and the chosen columns, without columns of row numbers, and notes."""
    columns = list(frame.columns)
    if choice.features:
        names = [name for name in choice.features if name != choice.target]
        return frame.loc[:, [*names, choice.target]], []
    notes: list[str] = []
    left_out = set(choice.drop)
    for place, name in enumerate(columns):
        if name == choice.target or name in left_out:
            continue
        if why := _no_feature(frame.loc[:, name], name, place):
            left_out.add(name)
            shown = f"{place + 1}, without a name," if _is_unnamed(name) else repr(name)
            notes.append(f"Column {shown} {why} and was left out; `--features` names others.")
    return frame.loc[:, [name for name in columns if name not in left_out]], notes


def _is_unnamed(name: str) -> bool:
    return not name or name.startswith("Unnamed: ")


def _no_feature(column: "pd.Series", name: str, place: int) -> str | None:
    """Why a column is none: an index of the rows, or empty."""
    if column.isna().all():
        return "is empty"
    if _is_unnamed(name) and place == 0:
        return "is an index"
    numbers_rows = _is_unnamed(name) or name.lower() in _INDEX_NAMES
    if numbers_rows and column.dtype.kind in "iu" and column.is_unique:
        values = column.to_numpy()
        if np.array_equal(values, np.arange(len(values)) + values[0]):
            return "has the numbers of the rows"
        if not _is_unnamed(name):
            return "has another whole number in each row"
    return None


def without_marks(frame: "pd.DataFrame", kept: str | None) -> tuple["pd.DataFrame", list[str]]:
    """Numbers in the place of text such as 5%, $1.50, 1'000 and −1 and of decimals, in the columns
    that have nothing else, and notes. The column `kept`, one of classes, stays."""
    notes = []
    for name in frame.columns:
        column = frame.loc[:, name]
        if name == kept or _is_number(column) or column.dtype.kind in "mM":
            continue
        known = column.dropna()
        is_text = known.map(lambda entry: isinstance(entry, str))
        numbers = _plain_numbers(known) if is_text.all() else _of_decimals(known)
        if numbers is None:
            continue
        frame = frame.assign(**{name: numbers.reindex(column.index)})
        if is_text.all():
            notes.append(
                f"Marks were left out of the numbers in column {name!r}, as in {known.iloc[0]}."
            )
    return frame, notes


def _plain_numbers(text: "pd.Series") -> "pd.Series | None":
    """The numbers in a text column without their marks; None if there is anything else."""
    import pandas as pd

    plain = text.str.strip().str.replace("\u2212", "-")
    plain = plain.str.replace(_BETWEEN_THOUSANDS, "", regex=True)
    for mark in _MARKS_OF_UNITS:
        if plain.str.contains(mark, regex=False).all():
            plain = plain.str.replace(mark, "", regex=False, n=1).str.strip()
    numbers: Any = pd.to_numeric(plain, errors="coerce")
    return numbers if len(numbers) and numbers.notna().all() else None


def _of_decimals(known: "pd.Series") -> "pd.Series | None":
    is_decimal = known.map(lambda entry: isinstance(entry, (Decimal, float, int)))
    return known.astype(float) if is_decimal.all() else None


def without_missing(
    frame: "pd.DataFrame", choice: ColumnChoice, file: str
) -> tuple["pd.DataFrame", list[str]]:
    """The rows to use. Missing numbers stay if their mean is to be taken."""
    absent = frame.isna().to_numpy()
    if not absent.any():
        return frame, []
    if choice.missing is None:
        raise _missing_entries(frame, absent, file)
    counted = absent.any(axis=1)
    if choice.missing == "mean":
        counted = absent[:, list(frame.columns).index(choice.target)]
    if counted.all():
        got = Described(f"missing entries in every row of {file}")
        wanted = "`--missing mean`, or `--drop` for the emptiest columns"
        raise ArgumentError("missing", got, wanted)
    notes = []
    if counted.any():
        what = "missing entries" if choice.missing == "drop" else "no target"
        notes.append(f"{counted.sum()} of {len(frame)} rows have {what} and were left out.")
    if choice.missing == "mean" and (filled := absent[~counted].sum()) > 0:
        notes.append(f"{filled} missing entries were given the mean of their column.")
    return frame.loc[~counted], notes


def _missing_entries(frame: "pd.DataFrame", absent: np.ndarray, file: str) -> ArgumentError:
    counts = [(name, count) for name, count in zip(frame.columns, absent.sum(axis=0)) if count]
    shown = ", ".join(f"{name!r} ({count})" for name, count in counts[:6])
    more = ", ..." if len(counts) > 6 else ""
    got = Described(
        f"{absent.sum()} missing entries in {absent.any(axis=1).sum()} of {len(frame)} rows of "
        f"{file}, in columns {shown}{more}"
    )
    wanted = "`--missing drop` to leave out these rows, or `--missing mean` to fill them"
    return ArgumentError("data", got, wanted)


def target_values(column: "pd.Series", loss: LossOption, file: str) -> Target:
    """The target: numbers for the squared loss, −1 and 1 for the logistic one, and the number of
    the class for cross-entropy."""
    if loss == "squared":
        if not _is_number(column):
            raise _no_numbers(column, file)
        return Target(_numbers(column, file, "target"), (), [])
    values = sorted(set(column.tolist()), key=lambda v: (isinstance(v, str), v))
    classes = tuple(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
    if len(classes) < 2:
        raise ArgumentError("target", Described(f"{column.name!r}, of one class"), "two or more")
    if loss == "logistic" and len(classes) > 2:
        got = Described(f"'logistic' for {len(classes)} values of column {column.name!r}")
        raise ArgumentError("loss", got, _loss_for(len(classes)))
    if len(classes) > _MAX_CLASSES:
        got = Described(f"{loss!r} for {len(classes)} values of column {column.name!r}")
        raise ArgumentError("loss", got, f"at most {_MAX_CLASSES} classes; no `--loss` for numbers")
    numbers = column.map({value: k for k, value in enumerate(values)}).to_numpy(dtype=float)
    if loss == "logistic":
        note = f"Class {classes[0]!r} is -1, class {classes[1]!r} is 1."
        return Target(2 * numbers - 1, classes, [note])
    names = ", ".join(f"{name!r}" for name in classes[:20]) + (", ..." if len(classes) > 20 else "")
    return Target(numbers, classes, [f"The {len(classes)} outputs are for the classes {names}."])


def _loss_for(num_classes: int) -> str:
    if num_classes <= 2:
        return "`--loss logistic` for two classes"
    return f"`--loss cross-entropy` for {num_classes} classes"


def _no_numbers(column: "pd.Series", file: str) -> ArgumentError:
    where = f"target column {column.name!r} of {file}"
    if _is_date(column):
        got = Described(f"dates in the {where}")
        return ArgumentError("target", got, "a column of numbers or classes as `--target`")
    stray = _stray_row(column)
    if stray is not None:
        got = Described(f"{column.iloc[stray]!r} in row {stray + 1} of the {where}")
        return ArgumentError("target", got, "a number, as in most of that column")
    classes = column.unique()
    if len(classes) > _MAX_CLASSES:
        got = Described(f"{len(classes)} different texts in the {where}")
        return ArgumentError("target", got, "a column of numbers or classes as `--target`")
    shown = ", ".join(repr(str(name)) for name in classes[:4]) + (
        ", ..." if len(classes) > 4 else ""
    )
    got = Described(f"text in the {where}: {shown}")
    return ArgumentError("target", got, f"numbers, or {_loss_for(len(classes))}")


def feature_values(frame: "pd.DataFrame", file: str) -> Features:
    """All columns as numbers; one of text becomes one column of 0 and 1 for each value."""
    blocks, names, notes = [], [], []
    for name in frame.columns:
        block = _encoded(frame.loc[:, name], file)
        blocks.append(_filled(block.values))
        names += block.names
        notes += block.notes
    return Features(np.concatenate(blocks, axis=1), tuple(names), notes)


def _filled(block: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(block), np.nanmean(block, axis=0), block)


def _encoded(column: "pd.Series", file: str) -> Features:
    if _is_number(column):
        return Features(_numbers(column, file, "feature")[:, None], (str(column.name),), [])
    leave_out = f"`--drop {column.name}`"
    if _is_date(column):
        known = column.dropna()
        got = Described(
            f"column {column.name!r} of {file} with dates, such as {str(known.iloc[0])!r}"
        )
        raise ArgumentError("data", got, f"numbers or text, or {leave_out}")
    if (row := _stray_row(column)) is not None:
        got = Described(
            f"{column.iloc[row]!r} in row {row + 1} of column {column.name!r} of {file}"
        )
        raise ArgumentError("data", got, f"a number, as in most of that column, or {leave_out}")
    if not column.map(lambda entry: isinstance(entry, Hashable)).all():
        got = Described(f"lists in column {column.name!r} of {file}")
        raise ArgumentError("data", got, f"one number or text in each row, or {leave_out}")
    text = column.where(column.isna(), column.astype(str))
    values = sorted(set(text.dropna()))
    if len(values) > _MAX_CATEGORIES:
        got = Described(f"text column {column.name!r} of {file} with {len(values)} distinct values")
        wanted = f"at most {_MAX_CATEGORIES}, for one column of 0 and 1 each, or {leave_out}"
        raise ArgumentError("data", got, wanted)
    if _is_no_category(text):
        example = f"{values[0]!r} and {len(values) - 1} others in {len(text.dropna())} rows"
        got = Described(f"text column {column.name!r} of {file}: {example}")
        wanted = f"numbers, categories of which each has several rows, or {leave_out}"
        raise ArgumentError("data", got, wanted)
    block = np.stack([(text == value).to_numpy(dtype=float) for value in values], axis=1)
    block[column.isna().to_numpy()] = np.nan
    names = tuple(f"{column.name}={value}" for value in values)
    note = f"Text column {column.name!r} became {len(values)} columns of 0 and 1."
    return Features(block, names, [note])


def _is_no_category(text: "pd.Series") -> bool:
    """Whether text has another value in nearly each row, or in most of them if it begins as numbers
    do: names, or numbers and dates in a form that is not known."""
    known = text.dropna()
    share = known.nunique() / len(known)
    begins = known.str.fullmatch(r"[^\w]*\d.*").mean()
    return bool((share > 0.5 and begins > 0.9) or (share > 0.8 and len(known) >= _FEW_ROWS))


def _numbers(column: "pd.Series", file: str, role: str) -> np.ndarray:
    if np.iscomplexobj(column.to_numpy()):
        got = Described(f"complex numbers in column {column.name!r} of {file}")
        raise ArgumentError("data", got, f"real ones, or `--drop {column.name}`")
    values = column.to_numpy(dtype=float, na_value=np.nan)
    if (large := np.abs(values) > _LARGEST).any():
        row = int(np.argmax(large))
        more = f", and {int(large.sum()) - 1} more there" if large.sum() > 1 else ""
        got = Described(f"{values[row]} in row {row + 1} of column {column.name!r} of {file}{more}")
        mend = f", or `--drop {column.name}`" if role == "feature" else ""
        size = "" if np.isinf(values[row]) else f" of at most {_LARGEST:g}"
        wanted = f"finite entries{size} (rows are counted from 1 after the header){mend}"
        raise ArgumentError("data", got, wanted)
    return values


def _is_number(column: "pd.Series") -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) or is_bool_dtype(column)


def _is_date(column: "pd.Series") -> bool:
    """Whether it has a type of dates, or text of which nine in ten look and parse like dates."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(column) or column.dtype.kind == "m":
        return True
    known = column.dropna().astype(str).str.strip()
    if known.empty or known.head(200).str.fullmatch(_DATE.pattern).mean() < 0.9:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas says that formats differ, which does not matter
        return bool(pd.to_datetime(known.head(200), errors="coerce").notna().mean() >= 0.5)


def _stray_row(column: "pd.Series") -> int | None:
    """The first row with text in a column of numbers, which is not one of categories."""
    import pandas as pd

    numbers = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=float)
    odd = np.isnan(numbers) & column.notna().to_numpy()
    return int(np.argmax(odd)) if 0 < odd.sum() < 0.5 * len(odd) else None
