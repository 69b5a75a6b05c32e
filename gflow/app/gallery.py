"""`gflow gallery`: runs experiments, and prints a line for each of their claims."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from gflow.arguments import ArgumentError
from gflow.gallery import NAMES, Claim, Exhibit, exhibit, text, title

_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")

INTRODUCTION = """\
# The gallery

Each section is an experiment of [gflow's gallery](command_line.md#the-gallery): a claim of a
paper, theory's number, and the number that gflow obtains. A *finding* is a row where they differ
for a known reason. `gflow gallery` runs them all in some minutes, `gflow gallery NAME` one
of them, with `--long` in more cases; `gflow gallery --page docs/gallery.md` writes this page."""


def list_experiments() -> None:
    """Prints the name and the title of each."""
    width = max(len(name) for name in NAMES)
    for name in NAMES:
        print(f"{name:{width}}  {title(name)}")


def show_gallery(
    names: Sequence[str], *, long: bool, as_json: bool, figures: Path | None, page: Path | None
) -> bool:
    """Runs the experiments of these names, of all if there are none, and prints what they show.
    Figures go to a directory, and a page in Markdown to a file, if they are asked for. If an
    experiment raises, that is a claim which does not agree, without a figure; the others go on.

    **Returns:** whether each claim agrees, or is a finding. **Raises:** `ArgumentError` for a name
    that there is not, or a directory that cannot be written; what was run before is printed.
    """
    names = tuple(dict.fromkeys(names)) or NAMES
    titles = [title(name) for name in names]
    stands, found, parts = True, {}, [INTRODUCTION]
    for name, of_experiment in zip(names, titles, strict=True):
        shown = _run(name, long=long)
        stands &= shown.stands
        if as_json:
            found[name] = {"title": of_experiment, "claims": [c.as_json() for c in shown.claims]}
        else:
            _print_claims(name, of_experiment, shown)
        if figures is not None and shown.figure is not None:
            _write(shown.figure, figures, name, "figures", suffixes=("svg", "png"))
        if page is not None:
            parts += [f"## {of_experiment}", text(name), _table(shown.claims)]
            if shown.figure is not None:
                _write(shown.figure, page.with_suffix(""), name, "page", suffixes=("png",))
                parts.append(f"![{of_experiment}]({page.stem}/{name}.png)")
            with _written("page", page):  # as far as it goes, so that nothing is lost
                page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        plt.close("all")
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return stands


def _run(name: str, *, long: bool) -> Exhibit:
    """The experiment, or what it raises as a claim that does not agree."""
    try:
        return exhibit(name, long=long)
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        ran = Claim("the experiment runs to its end", "gflow", "no error", told, agrees=False)
        return Exhibit((ran,), None)


def _print_claims(name: str, of_experiment: str, shown: Exhibit) -> None:
    print(f"{name}: {of_experiment}")
    for claim in shown.claims:
        numbers = f"expected {claim.expected}, obtained {claim.obtained}"
        print(f"  {claim.verdict:9}  {claim.says}: {numbers} [{claim.source}]", flush=True)
        if claim.finding and not claim.agrees:
            print(f"             {claim.finding}", flush=True)


def _table(claims: Sequence[Claim]) -> str:
    lines = [("", "claim", "expected", "obtained", "source"), ("---",) * 5]
    for claim in claims:
        reason = f" ({claim.finding})" if claim.verdict == "finding" else ""
        told = claim.says + reason, claim.expected, claim.obtained, claim.source
        lines.append((claim.verdict, *map(_cell, told)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(entry: str) -> str:
    """With what would be markup in a cell as text, and papers on arXiv as links."""
    entry = entry.replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")
    return _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", entry)


def _write(figure: Any, directory: Path, name: str, argument: str, suffixes: Sequence[str]) -> None:
    with _written(argument, directory):
        directory.mkdir(parents=True, exist_ok=True)
        for suffix in suffixes:
            figure.savefig(directory / f"{name}.{suffix}", dpi=150)


@contextmanager
def _written(argument: str, path: Path) -> Iterator[None]:
    """Turns an error of writing into one that names the argument."""
    try:
        yield
    except OSError as error:
        wanted = f"a place that can be written ({error.strerror})"
        raise ArgumentError(argument, str(path), wanted) from None
