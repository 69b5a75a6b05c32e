"""The test set as plain files: a JSON file for each flow, the table of all in CSV, and a page."""

import csv
import json
from collections import Counter
from pathlib import Path

from gflow.arguments import ArgumentError
from gflow.testsets import NAMES, NOT_FLOWS, KnownFlow, known_flow

PAGE = Path(__file__).parent / "page.md"
COLUMNS = ("name", "size", "t1", "known", "accuracy", "events", "shows", "source")


def write(directory: Path) -> list[Path]:
    """Writes all flows to the directory, which is made if there is none.

    **Returns:** the files. **Raises:** `ArgumentError` if they cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        flows = [known_flow(name) for name in NAMES]
        written = [directory / f"{flow.name}.json" for flow in flows]
        for flow, file in zip(flows, written, strict=True):
            file.write_text(json.dumps(flow.as_json(), indent=1) + "\n", encoding="utf-8")
        table, page = directory / "flows.csv", directory / "README.md"
        with table.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([COLUMNS, *map(row, flows)])
        page.write_text(page_of(flows), encoding="utf-8")
    except OSError as error:
        wanted = f"a directory that can be written ({error.strerror})"
        raise ArgumentError("directory", str(directory), wanted) from None
    return [*written, table, page]


def row(flow: KnownFlow) -> tuple[str, ...]:
    """The entries of `COLUMNS`."""
    counted = Counter(event.kind for event in flow.events)
    events = ", ".join(f"{number} {kind}" for kind, number in counted.items())
    numbers = str(len(flow.start)), f"{flow.times[-1]:g}"
    known = flow.known, f"{flow.accuracy:.0e}"
    return (flow.name, *numbers, *known, events, flow.shows, flow.source)


def page_of(flows: list[KnownFlow]) -> str:
    """The page beside the files."""
    table = [COLUMNS, ("---",) * len(COLUMNS), *map(row, flows)]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    others = "\n".join(f"- {name}: {words}." for name, words in NOT_FLOWS.items())
    text = PAGE.read_text(encoding="utf-8")
    return text.replace("{flows}", lines).replace("{others}", others)
