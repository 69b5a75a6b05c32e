"""Formulas become MathML when the site is built: browsers show it without a script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink

# What pymdownx.arithmatex leaves of $…$, $$…$$ and ```math; in headings, also in the contents.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_IN_CONTENTS = re.compile(r"\\\((.*?)\\\)", re.DOTALL)


def mathml(latex: str, *, block: bool) -> str:
    """MathML of a formula. It must not hold a command that latex2mathml does not know."""
    known = re.sub(r"\\mathbb\s+(\w)", r"\\mathbb{\1}", latex.strip())
    known = known.replace(r"\arg\min", r"\mathrm{arg\,min}")
    made = convert(known, display="block" if block else "inline")
    if "\\" in made:
        raise PluginError(f"a command that latex2mathml does not know, in {latex}")
    return made


def on_page_content(content: str, page: Page, **_: Any) -> str:
    def formula(found: re.Match[str]) -> str:
        made = mathml(html.unescape(found[2]), block=found[1] == "div")
        return f'<div class="formula">{made}</div>' if found[1] == "div" else made

    _translate(page.toc.items)
    return _FORMULA.sub(formula, content)


def _translate(entries: list[AnchorLink]) -> None:
    def formula(found: re.Match[str]) -> str:
        return mathml(html.unescape(found[1]), block=False)

    for entry in entries:
        entry.title = _IN_CONTENTS.sub(formula, entry.title)
        _translate(entry.children)
