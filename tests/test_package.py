"""The package as a whole: its imports, its README, its layout."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("matplotlib", "xarray", "zarr", "sklearn", "pandas", "rich", "tyro", "tqdm")


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_it_is_used():
    script = f"import gflow, sys; gflow.solve_flow; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


@pytest.mark.slow
def test_import_does_not_ask_for_float64():
    script = "import gflow, jax; print(jax.config.jax_enable_x64)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_the_code_of_the_readme_and_of_the_docs_runs(tmp_path):
    # In one process, which compiles once what several pages use, each with names of its own.
    pages = {page: python_blocks(page) for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))}
    assert pages[ROOT / "README.md"] and sum(map(bool, pages.values())) >= 15
    script = ["import matplotlib; matplotlib.use('agg')"]
    for page, blocks in pages.items():
        script.append(f"exec(compile({chr(10).join(blocks)!r}, {page.name!r}, 'exec'), {{}})")
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    # The picture that the README shows is the one that its code makes.
    (picture,) = tmp_path.glob("*.png")
    assert (ROOT / "docs" / picture.name).is_file()


EXAMPLES = {
    str(path.relative_to(ROOT)): blocks
    for path in sorted(ROOT.glob("gflow/**/*.py"))
    if (blocks := python_blocks(path))
}


def test_there_are_docstring_examples():
    assert len(EXAMPLES) >= 8 and "gflow/networks.py" in EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES)
def test_docstring_examples_run(path):
    for block in EXAMPLES[path]:
        exec("import jax, gflow, jax.numpy as jnp\n" + textwrap.dedent(block), {})


def test_the_page_of_the_tests_names_every_file():
    page = (ROOT / "tests" / "README.md").read_text()
    files = [*ROOT.glob("tests/test_*.py"), *ROOT.glob("tests/helpers/[!_]*.py")]
    assert not [path for path in files if f"`{path.stem}`" not in page]


@pytest.mark.slow
def test_a_benchmark_runs(tmp_path):
    out = tmp_path / "d.json"
    command = [sys.executable, "-m", "benchmarks.accelerators", "--quick", "--out", str(out)]
    command += ["--only", "descent, 16", "--seconds", "0"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert '"provenance"' in out.read_text()
