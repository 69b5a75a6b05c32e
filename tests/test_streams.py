"""Output that nobody reads, or that cannot be written, ends no run."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from gflow.app.streams import discard, open_closed_streams, say
from gflow.progress import _Lines

open_closed_streams()
lines = _Lines(3, "flow")
for _ in range(3):
    say("a line")
    lines._shown = -1e9
    lines.advance(1, "t = 1")
try:
    print("the end", flush=True)
except OSError:
    discard(sys.stdout)
"""


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", ">&-", ">/dev/full", ">&- 2>&-", ""])
def test_no_line_ends_a_program(where, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"{sys.executable} script.py {where}"
    ended = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr
    assert ("the end" in ended.stdout) == (not where.startswith(">"))
    if not where or where == ">&-":
        assert ended.stderr.count("a line") == ended.stderr.count("t = 1") == 3


def test_help_that_nobody_reads_ends_without_a_word(tmp_path):
    command = f"{sys.executable} -m gflow run --help | true"
    ended = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("where", [">/dev/full", "2>&1 | true"])
def test_runs_are_kept_where_their_output_is_not(where, tmp_path):
    options = "--data wave --num-points 10 --width 2 --t1 1 --step-fractions 0.2 --activation tanh"
    command = f"{sys.executable} -m gflow run {options} --out kept {where}"
    ended = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0
    assert Path(tmp_path, "kept", "report.html").exists()
    if where == ">/dev/full":
        assert "The summary could not be printed: No space left on device." in ended.stderr
        assert "The results are in kept." in ended.stderr
