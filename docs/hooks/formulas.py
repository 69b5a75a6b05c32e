"""Formulas become MathML when the site is built: browsers show it without a script."""

import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink

# What pymdownx.arithmatex leaves of $…$, $$…$$ and ```math; in headings, also in the contents.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_IN_CONTENTS = re.compile(r"\\\((.*?)\\\)", re.DOTALL)


_PRIMES = {"\u2032", "\u2033"}
_BARS = {"|", "\u2016", "\u2223", "\u2225"}  # browsers stretch them beyond their partners
_MATHML = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", _MATHML)


def mathml(latex: str, *, block: bool) -> str:
    """MathML of a formula. It must not hold a command that latex2mathml does not know."""
    known = re.sub(r"\\mathbb\s+(\w)", r"\\mathbb{\1}", latex.strip())
    known = known.replace(r"\arg\min", r"\mathrm{arg\,min}").replace("{aligned}", "{split}")
    made = convert(known, display="block" if block else "inline")
    try:
        root = ElementTree.fromstring(made)
    except ElementTree.ParseError:
        raise PluginError(f"latex2mathml does not understand {latex}") from None
    if "\\" in made:
        raise PluginError(f"latex2mathml does not know a command in {latex}")
    for element in list(root.iter()):
        if (element.text or "") in _BARS and "stretchy" not in element.attrib:
            element.set("stretchy", "false")
        _lower_primes(element)
    return ElementTree.tostring(root, encoding="unicode")


def _lower_primes(element: ElementTree.Element) -> None:
    """Primes are raised in most fonts: as superscripts they would be small, and too high."""
    kind, last = element.tag.rpartition("}")[2], element[-1] if len(element) else None
    if kind not in ("msup", "msubsup") or last is None or last.text not in _PRIMES:
        return
    rest = list(element)[:-1]
    prime = ElementTree.Element(f"{{{_MATHML}}}mo", {"lspace": "0", "rspace": "0"})
    prime.text, prime.tail = last.text, ""
    for child in list(element):
        element.remove(child)
    if kind == "msubsup":
        lowered = ElementTree.Element(f"{{{_MATHML}}}msub")
        lowered.extend(rest)
        rest = [lowered]
    element.tag = f"{{{_MATHML}}}mrow"
    element.extend([*rest, prime])


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
