"""`python -m gflow.testsets DIR`: the test set as plain files."""

import sys
from pathlib import Path

from gflow.arguments import ArgumentError
from gflow.testsets.plain_files import write


def main(arguments: list[str]) -> int:
    """Writes the files, and says how many."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m gflow.testsets DIRECTORY", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        written = write(Path(arguments[0]))
    except ArgumentError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(written)} files in {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
