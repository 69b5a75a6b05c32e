"""Whether every link and picture of the built site leads somewhere, in the text of notebooks and
docstrings, too, and nothing is fetched from elsewhere."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_CODE = re.compile(r"<script\b[^>]*>[^<]+</script>")  # what it holds is no HTML
_LINK = re.compile(r'<(\w+)\b[^>]*?\s(href|src)="([^"]*)"')
_ANCHOR = re.compile(r'\s(?:id|name)="([^"]+)"')


def faults(site: Path) -> list[str]:
    """What is wrong with the links of the pages in a folder, in words."""
    # The page of what is not there has links from the root of a server.
    paths = [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]
    pages = {path: path.read_text("utf-8") for path in paths}
    anchors = {path: {"", *_ANCHOR.findall(text)} for path, text in pages.items()}
    found = []
    for page, text in pages.items():
        for tag, kind, link in _LINK.findall(_CODE.sub("", text)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if (kind == "src" or tag == "link") and parts.scheme != "data":
                    found.append(f"{page}: fetches {link}")
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{page}: {link} leads nowhere")
            elif target in anchors and unquote(parts.fragment) not in anchors[target]:
                found.append(f"{page}: {link} has no such anchor")
    return found


def on_post_build(config: MkDocsConfig) -> None:
    if wrong := faults(Path(config.site_dir).resolve()):
        raise PluginError("\n".join(wrong))
