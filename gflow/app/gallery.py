"""`gflow gallery`: runs experiments, and prints a line for each of their claims."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from gflow.arguments import ArgumentError
from gflow.gallery import NAMES, Exhibit, exhibit, title


def list_experiments() -> None:
    """Prints the name and the title of each."""
    width = max(len(name) for name in NAMES)
    for name in NAMES:
        print(f"{name:{width}}  {title(name)}")


def show_gallery(names: Sequence[str], *, long: bool, as_json: bool, figures: Path | None) -> bool:
    """Runs the experiments of these names, of all if there are none, and prints what they show.

    **Returns:** whether each claim agrees, or is a finding. **Raises:** `ArgumentError` for a name
    that there is not, or a directory that cannot be written; what was run before is printed.
    """
    names = tuple(dict.fromkeys(names)) or NAMES
    titles = [title(name) for name in names]
    stands, found = True, {}
    for name, of_experiment in zip(names, titles, strict=True):
        shown = exhibit(name, long=long)
        stands &= shown.stands
        if as_json:
            found[name] = {"title": of_experiment, "claims": [c.as_json() for c in shown.claims]}
        else:
            _print_claims(name, of_experiment, shown)
        if figures is not None:
            _write(shown.figure, figures, name)
        plt.close(shown.figure)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return stands


def _print_claims(name: str, of_experiment: str, shown: Exhibit) -> None:
    print(f"{name}: {of_experiment}")
    for claim in shown.claims:
        numbers = f"expected {claim.expected}, obtained {claim.obtained}"
        print(f"  {claim.verdict:9}  {claim.says}: {numbers} [{claim.source}]", flush=True)
        if claim.finding and not claim.agrees:
            print(f"             {claim.finding}", flush=True)


def _write(figure: Any, directory: Path, name: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for suffix in ("svg", "png"):
            figure.savefig(directory / f"{name}.{suffix}", dpi=150)
    except OSError as error:
        wanted = f"a directory that can be written ({error.strerror})"
        raise ArgumentError("figures", str(directory), wanted) from None
