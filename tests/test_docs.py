"""What the pages say of the code: links, the options of the command line, the layers, the names of
the API, the version; and that the site has all of them."""

import dataclasses
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import gflow
from gflow.app.config import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


def anchor_of(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def test_links_lead_somewhere():
    links = 0
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), (page.name, link)
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
                assert anchor in map(anchor_of, titles), (page.name, link)
            links += 1
    assert links > 150


def test_the_options_of_the_command_line_are_documented():
    def shown(default: Any) -> str:
        if default is None:
            return "none"
        if isinstance(default, bool):
            return "yes" if default else "no"
        if isinstance(default, tuple):
            return " ".join(map(str, default))
        return f"`{default}`" if isinstance(default, str) else str(default)

    page = (ROOT / "docs" / "command_line.md").read_text()
    documented = re.findall(r"^\| `--([\w-]+)` \| (.*?) \|", page, flags=re.MULTILINE)
    fields = dataclasses.fields(Config)
    assert documented == [(f.name.replace("_", "-"), shown(f.default)) for f in fields]


def test_the_layers_that_are_drawn_are_those_that_are_checked():
    blocks = (ROOT / "CONTRIBUTING.md").read_text().split("```")
    (house,) = [block for block in blocks if block.startswith("\n__main__ ")]
    drawn = [line.split("  ")[0].split() for line in house.strip().splitlines()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    assert drawn == [layer.replace("gflow.", "").split(" : ") for layer in layers]


def hook(name: str) -> Any:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_navigation() -> list[str]:
    _, navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")
    return re.findall(r"^ +- (?:[\w ]+: )?(\S+\.md)$", navigation, flags=re.MULTILINE)


def test_the_site_has_every_page():
    names = in_navigation()
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    there = {str(page.relative_to(ROOT).with_suffix(".md")).removeprefix("docs/") for page in pages}
    assert there <= {*names} - {"contributing.md", "tests.md"}
    assert len(names) == len({*names}) >= 25


def test_the_front_page_leads_to_the_answers_of_five_questions():
    front = (ROOT / "docs" / "index.md").read_text()
    questions = (
        "How do I follow my own network?",
        "My flow does not end",
        "Which solver?",
        "Is this rate real?",
        "How do I run twenty seeds?",
    )
    for question in questions:
        assert f"[{question}](" in front


def test_the_api_pages_have_every_public_name():
    text = "".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    names = {name.split(".")[-1] for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    assert {*gflow.__all__} - {"__version__", "piecewise", "plots"} <= names
    assert {*gflow.plots.__all__} <= names


def test_version_and_date_of_the_citation_are_those_of_the_changelog():
    citation = (ROOT / "CITATION.cff").read_text()
    (version,) = re.findall(r"^version: (\S+)$", citation, flags=re.MULTILINE)
    assert re.search(r"^date-released: \d{4}-\d\d-\d\d$", citation, flags=re.MULTILINE)
    first = re.findall(r"^## (\S+)", (ROOT / "docs/changelog.md").read_text(), re.MULTILINE)[0]
    assert first == version
    assert f"version = {{{version}}}" in (ROOT / "docs/citing.md").read_text()


def test_links_between_pages_hold_in_the_site():
    site_link = hook("elsewhere").site_link
    assert site_link("theory/kinks.md", "kinks.md") == "theory/kinks.md"
    assert site_link("../notebooks/02_kinks.ipynb", "kinks.md") == "notebooks/02_kinks.md"
    assert site_link("../../notebooks/02_kinks.ipynb", "api/flows.md") == "../notebooks/02_kinks.md"
    assert site_link("docs/theory.md", "contributing.md") == "theory.md"
    assert site_link("02_kinks.ipynb", "notebooks/01_quickstart.md") == "02_kinks.md"
    assert hook("elsewhere").with_site_links("`[a](../CONTRIBUTING.md)`", "x.md")[0] == "`"


def test_broken_links_and_fetched_files_of_a_site_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="here"></h1><a href="b.html">b</a> <a href="#here">')
    faults = hook("links").faults
    assert [fault.split(": ")[1] for fault in faults(tmp_path)] == ["b.html leads nowhere"]
    (tmp_path / "b.html").write_text('<a href="a.html#there"></a><script src="https://x/y.js">')
    assert [fault.split(": ", 1)[1] for fault in faults(tmp_path)] == [
        "a.html#there has no such anchor",
        "fetches https://x/y.js",
    ]


def test_formulas_become_mathml_or_are_refused():
    pytest.importorskip("latex2mathml")
    formulas = hook("formulas")
    made = formulas.mathml(r"\theta' = -\lVert G \rVert", block=False)
    assert made.startswith("<math") and "<msup" not in made and 'stretchy="false"' in made
    assert "<mtable" in formulas.mathml(r"\begin{aligned} a &= b \end{aligned}", block=True)
    for wrong in (r"\unknown", "a & b"):
        with pytest.raises(formulas.PluginError, match="latex2mathml"):
            formulas.mathml(wrong, block=False)


def test_names_in_the_text_lead_to_the_api():
    with_links = hook("names").with_links
    linked = with_links("<p><code>gflow.refine(risk, net)</code> <code>t1</code></p>", str)
    assert linked.count("<autoref") == 1 and 'identifier="gflow.refine"' in linked
    apart = "<h2><code>refine</code></h2><a><code>refine</code></a>"
    assert with_links(apart, str) == apart
    command = "<code>gflow gallery --page docs/gallery.md</code>"
    assert with_links(command, str) == command
