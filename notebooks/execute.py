"""Executes the notebooks and stores their outputs, without what differs from run to run.

    python -m notebooks.execute [NAME ...]

By default all notebooks, one at a time, with the gflow of this checkout.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from notebooks.check import EXECUTED, FOLDER, faults, source_hash

_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_TIMEOUT = 1800


def execute(path: Path) -> None:
    """Executes one notebook in place."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=_TIMEOUT,
        kernel_name=_KERNEL["name"],
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    executed = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    notebook.metadata = nbformat.from_dict(executed | {EXECUTED: source_hash(notebook)})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    nbformat.write(notebook, path)


def main(names: list[str]) -> int:
    # The kernels are processes of their own.
    root = str(FOLDER.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    paths = [FOLDER / f"{name.removesuffix('.ipynb')}.ipynb" for name in names]
    wrong = []
    for path in paths or sorted(FOLDER.glob("*.ipynb")):
        start = time.perf_counter()
        execute(path)
        size, seconds = path.stat().st_size, time.perf_counter() - start
        print(f"{path.name}: {seconds:.0f} s, {size:,} bytes", flush=True)
        wrong += [f"{path.name}: {fault}" for fault in faults(path)]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
