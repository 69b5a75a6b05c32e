"""What the pages say of the code: links, the options of the command line, the layers."""

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

from gflow.app.config import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


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
    assert links > 30


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
