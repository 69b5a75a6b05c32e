"""The command line as a subprocess."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version

import jax
import numpy as np
import pytest
import xarray

from gflow.app.run_directory import load_run
from gflow.rates import RateStatus

QUICK = ("--data", "wave", "--num-points", "20", "--width", "6", "--activation", "tanh")


def gflow(*arguments, cwd, **options):
    # The run-time type checks of these tests do not reach the subprocess, as for users.
    command = [sys.executable, "-m", "gflow", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ended = gflow("run", *QUICK, "--t1", 5, "--out", "r", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "r", ended


@pytest.mark.slow
def test_the_main_job_on_a_smooth_network_measures_order_one(done):
    directory, ended = done
    assert "gradient flow" in ended.stdout and "Report: r/report.html" in ended.stdout
    assert "\x1b" not in ended.stdout + ended.stderr and "Warning" not in ended.stderr
    assert "wave: 20 rows, 1 feature, target wave." in ended.stderr
    assert "The flow to t = 5: " in ended.stderr
    text = ended.stdout[ended.stdout.index("with order") :].split()
    assert float(text[2]) == pytest.approx(1.0, abs=0.05)
    facts = json.loads((directory / "run.json").read_text())
    assert facts["status"] == "complete" and facts["seed"] == 85 and len(facts["descents"]) == 14
    assert {"jax", "diffrax", "commit", "device", "date"} <= set(facts["provenance"])
    assert facts["analysis"]["rates"]["flow"]["status"] in set(RateStatus)


@pytest.mark.slow
def test_the_run_directory_opens_with_standard_tools(done):
    directory, _ = done
    config = tomllib.loads((directory / "config.toml").read_text())
    assert config["activation"] == "tanh" and config["t1"] == 5.0
    flow = xarray.open_zarr(directory / "flow.zarr")
    descent = xarray.open_zarr(directory / "descent_5.zarr")
    assert flow["w"].dims == ("time", "unit", "feature")
    # All times of a descent are saved in the flow, to rounding.
    nearest = flow["risk"].sel(time=descent["time"], method="nearest")
    np.testing.assert_allclose(nearest["time"], descent["time"], rtol=1e-14)
    assert abs(float(nearest[-1] - descent["risk"][-1])) < 1e-3


@pytest.mark.slow
def test_the_report_is_one_file_without_links(done):
    page = (done[0] / "report.html").read_text()
    assert page.count("<svg") == 4 and "Provenance" in page and "tanh" in page
    for outside in ('src="http', 'href="http', "<script", "@import"):
        assert outside not in page


@pytest.mark.slow
def test_the_report_can_be_made_again(done):
    directory, _ = done
    first = (directory / "report.html").read_text()
    (directory / "report.html").unlink()
    again = gflow("report", "r", cwd=directory.parent)
    assert again.returncode == 0, again.stderr
    assert (directory / "report.html").read_text() == first


@pytest.mark.slow
def test_an_existing_directory_is_not_overwritten_silently(done):
    directory, _ = done
    ended = gflow("run", *QUICK, "--out", "r", cwd=directory.parent)
    assert ended.returncode == 2 and "`out`: got r, which exists" in ended.stderr


@pytest.mark.slow
def test_the_main_job_on_a_population_risk(tmp_path):
    ended = gflow(
        *("run", "--data", "tent", "--risk", "population", "--density", "triangular"),
        *("--width", 6, "--t1", 5, "--step-fractions", 0.1, 0.05, 0.025, "--out", "r"),
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    text = ended.stdout[ended.stdout.index("with order") :].split()
    # Seventy to six hundred steps: the fit allows for the first correction in h alone.
    assert float(text[2]) == pytest.approx(1.0, abs=0.1)
    page = (tmp_path / "r" / "report.html").read_text()
    assert "triangular density on [-1, 1], integrated exactly" in page
    assert page.count("<svg") == 5


@pytest.mark.slow
def test_command_line_options_take_precedence_over_the_config_file(tmp_path):
    lines = 'data = "tent"\nwidth = 5\nactivation = "tanh"\nt1 = 2\nstep_fractions = [0.5]\n'
    (tmp_path / "c.toml").write_text(lines)
    ended = gflow("run", "--config", "c.toml", "--width", 4, "--out", "r", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    config = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert (config["data"], config["width"], config["step_fractions"]) == ("tent", 4, [0.5])


@pytest.mark.slow
def test_divergence_and_a_spent_budget_are_reported(tmp_path):
    options = ("--t1", 40, "--step-fractions", 8, 0.5, "--max-steps", 60, "--out", "r")
    ended = gflow("run", *QUICK, *options, cwd=tmp_path)
    assert ended.returncode == 1
    assert "is above 2/sharpness" in ended.stderr and "diverges: from t = " in ended.stderr
    assert "diverged at t = " in ended.stdout
    assert "No order: fewer than three" in ended.stdout
    assert "The flow stopped at t = " in ended.stderr and "step budget" in ended.stderr
    page = (tmp_path / "r" / "report.html").read_text()
    assert "diverges: from t = " in page
    assert (tmp_path / "r" / "descent_1.zarr").exists()


@pytest.mark.slow
def test_an_interrupted_run_leaves_what_it_has(tmp_path):
    # Chattering across kinks, this flow takes many minutes.
    options = ("run", "--data", "zigzag", "--t1", 1e3, "--rtol", 1e-9, "--kinks", "ignore")
    options += ("--max-steps", 10**9, "--out", "r")
    command = [sys.executable, "-m", "gflow", *map(str, options)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Programs in the background start with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(tmp_path.glob("r/checkpoints/flow/*")):
        assert process.poll() is None
        time.sleep(0.2)
    time.sleep(2)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Interrupted: r holds the results so far" in errors
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    assert facts["status"] == "interrupted" and (tmp_path / "r" / "report.html").exists()
    assert (tmp_path / "r" / "flow.zarr").exists()
    assert not list(tmp_path.glob(".r*")) and not (tmp_path / "r" / "run.lock").exists()


TABLES = {
    "nan.csv": "u,v,y\n1,2,3\n2,nan,4\n3,1,5\n",
    "inf.csv": "u,v,y\n1,2,3\n2,1,4\n3,inf,5\n",
    "header.csv": "u,v,y\n",
    "nothing.csv": "",
    "one.csv": "u,y\n1,2\n",
    "constant.csv": "u,y\n1,2\n2,2\n3,2\n",
    "text.csv": "u,y\n1,a\n2,b\n",
    "ragged.csv": "u,y\n1,2\n2,3,4,5\n",
    "many.csv": "u,y\n" + "".join(f"k{i},{i}\n" for i in range(30)),
    "stray.csv": "u,y\n1,2\nn/a?,3\n3,1\n4,4\n",
    "bad.toml": "wdth = 3\n",
    "no.toml": "width = = 3\n",
    "type.toml": 'width = "a"\n',
}


BAD_INPUT = [
    ("--data missing.csv --target y", "`data`: got missing.csv: no such file"),
    ("--data nan.csv --target yy", "`target`: got 'yy', wanted a column of nan.csv (did you"),
    ("--data nan.csv", "`target`: got nothing, wanted the column to predict: one of u, v, y"),
    ("--data nan.csv --target y", "`data`: got 1 missing entries in 1 of 3 rows of nan.csv"),
    ("--data inf.csv --target y", "`data`: got inf in row 3 of column 'v' of inf.csv"),
    ("--data header.csv --target y", "`data`: got header.csv with 0 rows, wanted two"),
    ("--data nothing.csv --target y", "`data`: got nothing.csv, empty"),
    ("--data one.csv --target y", "`data`: got one.csv with 1 rows, wanted two"),
    ("--data constant.csv --target y", "`target`: got column 'y', which is 2 in every row"),
    ("--data text.csv --target y", "`target`: got text in the target column 'y' of text.csv"),
    ("--data ragged.csv --target y", "`data`: got ragged.csv, which cannot be read"),
    ("--data many.csv --target y", "with 30 distinct values, wanted at most 20"),
    ("--data parrot", "`data`: got 'parrot', wanted a .csv, .tsv, .txt or .parquet file, or"),
    ("--t1 -1", "`t1`: got -1.0, wanted a finite positive number"),
    ("--t1 nan", "`t1`: got nan"),
    ("--t1 1e300", "`t1`: got 1e+300, at a smallest step size of"),
    ("--scale 1e200", "`scale`: got 1e+200, for which the risk at the start is"),
    ("--seed 99999999999999999999", "`seed`: got 99999999999999999999"),
    ("--activation leaky_relu(nan)", "`activation`: got 'leaky_relu(nan)'"),
    ("--data stray.csv --target y", "`data`: got 'n/a?' in row 2 of column 'u' of stray.csv"),
    ("--hidden 16,x", "`hidden`: got '16,x', wanted numbers of units, separated by commas"),
    ("--hidden 16,0", "`hidden`: got '16,0', wanted numbers of units"),
    ("--hidden 4,4 --init ntk", "`init`: got 'ntk', wanted 'he' or 'standard_normal', for several"),
    ("--hidden 4,4 --data wave --risk population", "`hidden`: got '4,4', wanted none"),
    ("--weight-decay -1", "`weight_decay`: got -1.0, wanted a finite number, zero or more"),
    ("--width 0", "`width`: got 0, wanted a whole number of at least 1"),
    ("--step-fractions 0.5 -0.1", "`step_fractions`: got -0.1"),
    ("--rtol 0", "`rtol`: got 0.0"),
    ("--solver euler", "`solver`: got 'euler', wanted one of 'auto'"),
    ("--activation rleu", "`activation`: got 'rleu'"),
    ("--config missing.toml", "`config`: got missing.toml: no such file"),
    ("--config bad.toml", "unknown key 'wdth' in bad.toml, wanted a known field; the nearest"),
    ("--config no.toml", "`config`: got no.toml, which is not TOML"),
    ("--config type.toml", "`width`: got 'a', wanted a whole number"),
    ("--data wave --target y", "`target`: got 'y', wanted no target"),
    ("--risk population", "`data`: got 'linnerud', wanted one of"),
    ("--data tent --risk population --density flat", "`density`: got 'flat'"),
    ("--t1 20 --follow 3", "`follow`: got 3.0, wanted a time after t1 = 20"),
    ("--wdth 3", "gflow: Unrecognized options: --wdth, 3; perhaps you meant --width INT"),
    ("--width three", "gflow: Error parsing --width: invalid literal for int()"),
    ("--kinks no", "gflow: invalid choice 'no' for argument '--kinks'. Expected one of"),
    ("--data wave --missing drop", "`missing`: got 'drop', wanted no missing, unless `data`"),
    ("--data wave --loss logistic", "`loss`: got 'logistic', wanted 'squared', unless `data`"),
    # Found out before the flow, which would take minutes.
    ("--t1 1e6 --out file/r", "a directory that can be written"),
]
# Only runs are replaced.
KEPT = [("--data wave --out precious", "`out`: got"), ("--overwrite --out precious", "`out`: got")]
NO_REPORT = ("report nowhere", "`directory`: got 'nowhere', wanted a run")
REFUSED = [(f"run {line}", sentence) for line, sentence in BAD_INPUT + KEPT] + [NO_REPORT]
# One process for all of them: most of the time of each would be that of its imports.
COMMANDS = """
import contextlib, io, json, os, sys, traceback
from gflow.app.cli import main

for line in sys.stdin:
    code, out, err = None, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(line.split())
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue(), os.path.exists("runs")]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    for name, text in TABLES.items():
        (folder / name).write_text(text)
    (folder / "file").write_text("")
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.tex").write_text("all of it")
    lines = "".join(f"{line}\n" for line, _ in REFUSED)
    ended = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        **{"cwd": folder, "input": lines, "capture_output": True, "text": True, "timeout": 300},
    )
    assert ended.returncode == 0, ended.stderr
    assert (folder / "precious" / "thesis.tex").read_text() == "all of it"
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    return {line: end for (line, _), end in zip(REFUSED, found, strict=True)}


@pytest.mark.parametrize(("line", "sentence"), REFUSED)
def test_what_is_refused_gets_a_sentence(line, sentence, refusals):
    code, out, err, has_run = refusals[line]
    assert code == 2
    assert sentence in err + out
    assert "Traceback" not in err and not has_run


@pytest.mark.slow
def test_help_explains_every_field(tmp_path):
    from dataclasses import fields

    from gflow.app.config import Config

    text = gflow("run", "--help", cwd=tmp_path).stdout
    for field in fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "Number of hidden units" in text and "--config" in text


@pytest.mark.slow
def test_the_main_job_finds_the_critical_points_of_flow_and_descents(tmp_path):
    arguments = ["--data", "wave", "--num-points", "12", "--width", "4", "--t1", "20"]
    arguments += ["--step-fractions", "0.4", "0.2", "--follow", "1e6", "--out", "r"]
    ended = gflow("run", *arguments, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    flow, further = facts["ends"]["flow"], facts["ends"]["flow, further"]
    assert further["kind"] in ended.stdout and further["kind"].endswith("minimum")
    assert further["residual"] < 1e-12 and "At t = 1e+06" in ended.stdout
    assert flow["different"] is None and len(facts["ends"]) == 4
    page = (tmp_path / "r" / "report.html").read_text()
    assert "<h2>Critical points</h2>" in page and "Eigenvalues of the Hessian" in page
    assert f"<td>{further['kind']}</td>" in page
    # The summary is printed after float64 was left again; it has the numbers of the report.
    verdict = facts["analysis"]["rates"]["flow, further"]["verdict"]
    law = verdict.removeprefix("exponential ").split(" from ")[0]
    assert verdict.startswith("exponential ") and f"<td>{law}</td>" in page
    assert f" {law} |" in ended.stdout and "UserWarning" not in ended.stderr
    times = xarray.open_zarr(tmp_path / "r" / "further.zarr")["time"].to_numpy()
    assert times[0] == 20.0 and times[-1] == 1e6
    again = gflow("report", "r", cwd=tmp_path)
    assert again.returncode == 0 and (tmp_path / "r" / "report.html").read_text() == page


TWO_DESCENTS = ("run", *QUICK, "--t1", 2, "--step-fractions", 0.4, 0.2, "--out")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing ended early, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    ended = gflow(*TWO_DESCENTS, "r", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "r", time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [(signal.SIGTERM, 1), (signal.SIGKILL, 1)])
def test_a_run_that_is_killed_at_any_moment_is_readable_and_can_be_resumed(
    kind, count, whole, tmp_path
):
    command = [sys.executable, "-m", "gflow", *map(str, TWO_DESCENTS)]
    reference, seconds = whole
    rng = np.random.default_rng(int(kind))
    early = [0.1] if kind == signal.SIGTERM else []  # during imports
    for k, moment in enumerate(np.append(early, rng.uniform(0, seconds, count))):
        process = subprocess.Popen(
            [*command, f"r{k}"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(moment)
        process.send_signal(kind)
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, -kind, 128 + kind), errors
        assert "Traceback" not in errors and "Exception ignored" not in errors
        shown = [line for line in errors.splitlines() if " to t = 2: " in line]
        directory = tmp_path / f"r{k}"
        if not shown and not directory.exists():
            continue
        if process.returncode == 128 + kind:
            assert f"Interrupted: r{k} holds" in errors or f"results are in r{k}." in errors
        with jax.enable_x64(True):
            kept = load_run(directory).trajectories() if (directory / "run.json").exists() else {}
        assert len([t for t in kept.values() if t.succeeded]) >= len(shown)
        if k == np.size(early) + count - 1 and shown:
            resumed = gflow("resume", f"r{k}", cwd=tmp_path)
            assert resumed.returncode == 0, resumed.stderr
            with jax.enable_x64(True):
                runs = [load_run(path) for path in (directory, reference)]
            for label, trajectory in runs[1].trajectories().items():
                np.testing.assert_array_equal(trajectory.risk, runs[0].trajectories()[label].risk)


def test_version_and_help_do_not_wait_for_jax(tmp_path):
    assert gflow("--version", cwd=tmp_path).stdout == f"gflow {version('gflow-jax')}\n"
    script = (
        "import sys; from gflow.app.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print([m for m in ('jax', 'pandas') if m in sys.modules])"
    )
    for arguments in (["--help"], ["run", "--help"], ["run", "--wdth", "3"], ["--version"]):
        command = [sys.executable, "-c", script, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.stdout.endswith("[]\n"), ended.stderr


def test_without_the_extra_the_command_line_says_what_to_install():
    script = "import sys; sys.modules['tyro'] = None; from gflow.app.cli import main; main(['run'])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "needs tyro" in ended.stderr and "pip install '.[app]'" in ended.stderr


@pytest.mark.slow
def test_compiled_programs_are_kept_unless_the_user_says_no(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    options = ("--data", "wave", "--num-points", 8, "--width", 2, "--activation", "tanh")
    options += ("--t1", 0.1, "--step-fractions", 0.5)
    first = gflow("run", *options, "--out", "b", cwd=tmp_path, env=environment)
    again = gflow("resume", "b", cwd=tmp_path, env=environment)
    assert first.returncode == again.returncode == 0
    assert "Compiled programs are kept in" in first.stderr
    assert "Compiled programs" not in again.stderr
    (folder,) = (tmp_path / "cache" / "gflow").iterdir()
    assert any(folder.iterdir())
    for name, more in (("kept", ()), ("none", ("--no-cache",))):
        elsewhere = environment | {"XDG_CACHE_HOME": str(tmp_path / name)}
        assert gflow("resume", "b", *more, cwd=tmp_path, env=elsewhere).returncode == 0
        assert (tmp_path / name / "gflow").exists() == (name == "kept")


@pytest.mark.slow
def test_a_pipe_without_greek_letters_is_no_obstacle(done):
    directory, _ = done
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    again = gflow("resume", "r", cwd=directory.parent, env=environment)
    assert again.returncode == 0 and "h ?/2" in again.stdout and "complete already" in again.stderr
