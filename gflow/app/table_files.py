"""Files of tables as data frames: their encoding, separator and decimal comma are found out."""

import codecs
import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gflow.arguments import ArgumentError, Described

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_SEPARATOR_NAMES = {"tab": "\t", "\\t": "\t", "space": r"\s+", "comma": ",", "semicolon": ";"}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SAMPLE_BYTES, _SAMPLE_LINES = 200_000, 200
_WITH_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.IGNORECASE)
_WITH_POINT = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_POINTS_AND_COMMA = re.compile(r"[+-]?\d{1,3}(\.\d{3})+,\d+")
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
# Missing entries besides those that pandas knows ("", NA, NaN, null, None, n/a, ...).
_MISSING = ("?", "na", ".", "-", "--")


@dataclass
class TableFile:
    """The columns of a file, with distinct names, and notes on how they were read.

    `repeated`: the names that several columns of the file have.
    """

    frame: "pd.DataFrame"
    notes: list[str] = field(default_factory=list)
    repeated: tuple[str, ...] = ()


def read_file(path: Path, separator: str | None, encoding: str | None) -> TableFile:
    """The table in a file; `separator` and `encoding` are found out where they are None.

    **Raises:** `ArgumentError` for a file that cannot be read as a table with a header.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        wanted = "a .csv, .tsv, .txt or .parquet file"
        raise ArgumentError("data", Described(f"{path}: {what}"), wanted)
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    try:
        return _text(path, separator, encoding)
    except OSError as error:
        got = Described(f"{path.name}, which cannot be read ({error.strerror})")
        raise ArgumentError("data", got, "a readable file") from None


def _parquet(path: Path) -> TableFile:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError:
        got = Described(f"{path.name}, but pyarrow is not installed")
        raise ArgumentError("data", got, "a .csv file, or `pip install pyarrow`") from None
    except (ValueError, OSError) as error:
        raise _unreadable(path, str(error), "a Parquet file") from None
    notes = []
    if named := [str(name) for name in frame.index.names if name is not None]:
        frame = frame.reset_index()
        notes = [f"Index {name!r} became a column." for name in named]
    frame.columns = [str(name) for name in frame.columns]
    return TableFile(frame, notes)


def _unreadable(path: Path, reason: str, wanted: str) -> ArgumentError:
    line = reason.strip().split("\n")[0].removeprefix("Error tokenizing data. ")
    return ArgumentError("data", Described(f"{path.name}, which cannot be read ({line})"), wanted)


def _text(path: Path, separator: str | None, encoding: str | None) -> TableFile:
    import pandas as pd

    notes: list[str] = []
    text = _decoded(path, encoding, notes)
    if named := re.match(r"sep=(.)\r?\n", text):  # as Excel writes it
        separator, text = separator or named[1], text[named.end() :]
    text = _without_comments(text, separator, notes)
    lines = [line for line in text[:_SAMPLE_BYTES].splitlines()[:_SAMPLE_LINES] if line.strip()]
    if not lines:
        raise ArgumentError("data", Described(f"{path.name}, empty"), "a table with a header")
    if separator is None:
        separator = _separator(lines)
        if separator != ",":
            notes.append(f"The separator is {_shown(separator)}; `--separator` names another.")
    separator = _checked_separator(separator)
    rows = _split(lines, separator)
    header = [name.strip() for name in rows[0]]
    _check_header(header, rows, path, separator)
    numbers = _number_format(rows[1:], separator, notes)
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            engine="python" if len(separator) > 1 and separator != r"\s+" else "c",
            index_col=_index_column(header, rows[1:], notes),
            na_values=list(_MISSING),
            skipinitialspace=True,
            decimal=numbers.decimal,
            thousands=numbers.thousands,
        )
    except ValueError as error:  # errors of pandas' parser are ValueErrors
        wanted = "a header and columns of equal length, or another `--separator`"
        raise _unreadable(path, str(error), wanted) from None
    frame.columns = [str(name).strip() for name in frame.columns]
    return TableFile(frame, notes, _repeated(header, notes))


def _decoded(path: Path, encoding: str | None, notes: list[str]) -> str:
    content = path.read_bytes()
    wanted = "another `--encoding`, such as cp1252, latin-1 or utf-16"
    if encoding is not None:
        try:
            return content.decode(encoding)
        except LookupError:
            raise ArgumentError("encoding", encoding, "an encoding that Python knows") from None
        except UnicodeError as error:
            got = Described(f"{encoding!r}, in which {path.name} cannot be read ({error})")
            raise ArgumentError("encoding", got, wanted) from None
    found = _found_encoding(content)
    try:
        text = content.decode(found)
    except UnicodeError:
        got = Described(f"{path.name} in an unknown encoding")
        raise ArgumentError("data", got, wanted) from None
    if not found.startswith("utf-8"):
        notes.append(f"The file was read as {found}; `--encoding` names another encoding.")
    return text


def _found_encoding(content: bytes) -> str:
    """By the byte order mark, by zero bytes, or UTF-8 if it can be that; else Windows' own."""
    for mark, name in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return name
    start = content[:1000]
    if start.count(0) > len(start) // 4:
        return "utf-16-le" if start[1::2].count(0) >= start[::2].count(0) else "utf-16-be"
    try:
        content.decode("utf-8")
    except UnicodeError:
        return "cp1252"
    return "utf-8"


def _split(lines: Iterable[str], separator: str) -> list[list[str]]:
    if separator == r"\s+":
        return [line.split() for line in lines]
    if len(separator) > 1:
        return [re.split(separator, line) for line in lines]
    return list(csv.reader(lines, delimiter=separator, skipinitialspace=True))


def _separator(lines: list[str]) -> str:
    """That which splits the lines into the most columns of equal number; a comma if none does."""
    best, most = ",", 1
    for candidate in (",", ";", "\t", "|", r"\s+"):
        counts = [len(row) for row in _split(lines, candidate)]
        width = counts[0]
        # Names of rows, or a separator at the end of each, make rows one longer than the header.
        alike = sum(count in (width, width + 1) for count in counts) >= 0.9 * len(counts)
        if alike and width > most and not (candidate == r"\s+" and most > 1):
            best, most = candidate, width
    return best


def _shown(separator: str) -> str:
    return {"\t": "a tab", r"\s+": "white space"}.get(separator, repr(separator))


def _checked_separator(separator: str) -> str:
    separator = _SEPARATOR_NAMES.get(separator, separator)
    try:
        re.compile(separator if len(separator) > 1 else "")
    except re.error as error:
        got = Described(f"{separator!r}, which is no pattern ({error})")
        raise ArgumentError("separator", got, "one character, or a regular expression") from None
    if separator in ("", "\n", "\r", '"'):
        raise ArgumentError("separator", separator, "one character, or a regular expression")
    return separator


def _without_comments(text: str, separator: str | None, notes: list[str]) -> str:
    """The text without the lines before the header that begin with #. One with as many columns as
    the rows is the header."""
    lines = text[:_SAMPLE_BYTES].splitlines(keepends=True)[:_SAMPLE_LINES]
    count = next((k for k, line in enumerate(lines) if not line.startswith("#")), 0)
    rest = [line for line in lines[count:] if line.strip()]
    if count and rest:
        marked = _checked_separator(separator or _separator(rest))
        last, first = _split([lines[count - 1], rest[0]], marked)
        if len(last) == len(first):
            count -= 1
            text = text[: (start := sum(map(len, lines[:count])))] + text[start:].lstrip("# ")
    if count == 0:
        return text
    what = "One line that begins" if count == 1 else f"{count} lines that begin"
    notes.append(f"{what} with # before the header {'was' if count == 1 else 'were'} left out.")
    return text[sum(map(len, lines[:count])) :]


def _check_header(header: list[str], rows: list[list[str]], path: Path, separator: str) -> None:
    if all(_NUMBER.fullmatch(name) for name in header):
        got = Described(f"{path.name}, whose first line has numbers only")
        raise ArgumentError("data", got, "the names of the columns in the first line")
    wider = [row for row in rows if len(row) > len(header) + 1]
    if len(wider) > len(rows) / 2:
        got = Described(f"{path.name}, whose first line is {', '.join(header)[:60]!r}")
        raise ArgumentError("data", got, "the names of all columns in the first line")
    if len(header) == 1 and any(mark in header[0] for mark in ";|\t") and separator == ",":
        got = Described(f"{path.name} with the one column {header[0]!r}")
        raise ArgumentError("data", got, "two or more columns, or another `--separator`")


class _NumberFormat(NamedTuple):
    decimal: str = "."
    thousands: str | None = None


def _number_format(rows: list[list[str]], separator: str, notes: list[str]) -> _NumberFormat:
    """Commas as decimal or as thousands marks, by the numbers in the sample."""
    entries = [entry.strip() for row in rows for entry in row]
    if shown := next((e for e in entries if _POINTS_AND_COMMA.fullmatch(e)), None):
        notes.append(f"In numbers, as in {shown}, points mark thousands, and commas are decimal.")
        return _NumberFormat(decimal=",", thousands=".")
    commas = [entry for entry in entries if _WITH_COMMA.fullmatch(entry)]
    commas += [e for e in entries if _THOUSANDS.fullmatch(e) and e not in commas]
    if not commas:
        return _NumberFormat()
    in_thousands = all(_THOUSANDS.fullmatch(entry) for entry in commas)
    points = any(_WITH_POINT.fullmatch(entry) for entry in entries)
    if in_thousands and (points or separator == ","):
        notes.append(f"Commas in numbers, as in {commas[0]}, mark thousands.")
        return _NumberFormat(thousands=",")
    if points:
        return _NumberFormat()
    notes.append(f"Commas in numbers, as in {commas[0]}, are decimal points.")
    return _NumberFormat(decimal=",")


def _index_column(header: list[str], rows: list[list[str]], notes: list[str]):
    """0 where each row starts with a name that the header lacks, as R writes it; else False."""
    longer = [row for row in rows if len(row) == len(header) + 1]
    if not rows or len(longer) < len(rows) or all(row[-1].strip() == "" for row in longer):
        return False
    notes.append("The names of the rows, a column without a name, were left out.")
    return 0


def _repeated(header: list[str], notes: list[str]) -> tuple[str, ...]:
    """The names that occur twice; pandas appends .1, .2 and so on to the later ones."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    for name in twice:
        count = header.count(name)
        notes.append(f"{count} columns are named {name!r}; the second is {name}.1 here.")
    return tuple(twice)
