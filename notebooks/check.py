"""Whether the outputs stored in the notebooks are those of their source, and fit to be shown.

    python -m notebooks.check

Fails for a notebook whose code changed since it was executed, for outputs with an error, a message
on stderr, an absolute path or a memory address, and for files that are too large. What changed in
gflow itself is not seen here: the tests execute every notebook.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MOST_BYTES = 400_000
# The key in a notebook's metadata that holds the hash of the code that was executed.
EXECUTED = "executed_source"

_PATH = re.compile(r"""(?:^|[\s'"(=:])(?:(?:~|/[\w.+-]+)/[\w.+-]+|[A-Za-z]:\\)""", re.MULTILINE)
_ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")


def source_hash(notebook: dict[str, Any]) -> str:
    """The hash of the source of all code cells, in order."""
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    sources = ["".join(cell["source"]) for cell in cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def faults(path: Path) -> list[str]:
    """What is wrong with the stored outputs of a notebook, in words."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    found = []
    if notebook["metadata"].get(EXECUTED) != source_hash(notebook):
        found.append("its code changed since it was executed; `make notebooks` executes it")
    if (size := path.stat().st_size) > MOST_BYTES:
        found.append(f"it takes {size:,} bytes, and {MOST_BYTES:,} are allowed")
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            found += [f"cell {cell['id']}: {fault}" for fault in _faults_of_output(output)]
    return found


def _faults_of_output(output: dict[str, Any]) -> list[str]:
    if output["output_type"] == "error":
        return [f"{output['ename']} in its output"]
    if output.get("name") == "stderr":
        return [f"a message on stderr: {_joined(output['text'])[:200]}"]
    texts = [_joined(output.get("text", ""))]
    texts += [_joined(of) for kind, of in output.get("data", {}).items() if kind.startswith("text")]
    found = []
    for text in texts:
        if match := _PATH.search(text):
            found.append(f"an absolute path: {text[match.start() :][:80].strip()}")
        if match := _ADDRESS.search(text):
            found.append(f"a memory address: {match.group()}")
    return found


def _joined(text: str | list[str]) -> str:
    return "".join(text)


def main() -> int:
    paths = sorted(FOLDER.glob("*.ipynb"))
    wrong = [f"{path.name}: {fault}" for path in paths for fault in faults(path)]
    print("\n".join(wrong) if wrong else f"The outputs of {len(paths)} notebooks are up to date.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
