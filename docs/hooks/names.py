"""Public names in the text of a page lead to their place in the API pages, and names of pages, as
docstrings have them, to the pages."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

API = Path(__file__).resolve().parents[1] / "api"
# Last word -> the whole name, as the API pages have it.
PLACES = {
    name.split(".")[-1]: name
    for path in sorted(API.glob("*.md"))
    for name in re.findall(r"^::: (\S+)", path.read_text("utf-8"), re.MULTILINE)
}
# Names of plots are words of other meanings, too.
_SHORT = {word for word, name in PLACES.items() if re.fullmatch(r"gflow\.\w+", name)}
# Commands that name a page stay as they are.
_APART = re.compile(
    r"(<(a|h[1-6]|pre|autoref)\b.*?</\2>|<code>[^<]*\sdocs/[^<]*</code>)", re.DOTALL
)
_PAGE = re.compile(r"docs/([\w/]+)\.md")
_NAME = re.compile(r"<code>((?:gflow\.(?:\w+\.)*)?(\w+))(\([^<]*\))?</code>")


def with_links(content: str, page_link: Callable[[re.Match[str]], str]) -> str:
    """The HTML of a page, in which names of the API and of pages within the text are references."""
    parts = _APART.split(content)
    # Each match gives two further parts: the whole, and the name of its tag.
    return "".join(
        _PAGE.sub(page_link, _NAME.sub(_reference, part)) if k % 3 == 0 else part
        for k, part in enumerate(parts)
        if k % 3 != 2
    )


def _reference(found: re.Match[str]) -> str:
    word, place = found[1], PLACES.get(found[2])
    if place is None or (word != place and word not in _SHORT):
        return found[0]
    return f'<autoref identifier="{place}">{found[0]}</autoref>'


def on_page_content(content: str, page: Page, files: Files, **_: Any) -> str:
    def page_link(found: re.Match[str]) -> str:
        if (target := files.get_file_from_path(f"{found[1]}.md")) is None:
            return found[0]
        return f'<a href="{target.url_relative_to(page.file)}">{found[0]}</a>'

    return with_links(content, page_link)
