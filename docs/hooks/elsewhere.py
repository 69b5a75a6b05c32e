"""Pages of the site whose sources are not in docs/: the notebooks, as they were executed, and the
pages for contributors. Links between all of them are right in the repository and in the site."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
# Where pages of the repository stand in the site.
MOVED = {
    "CONTRIBUTING.md": "contributing.md",
    "tests/README.md": "tests.md",
}
MOVED |= {
    f"notebooks/{path.name}": f"notebooks/{path.stem}.md"
    for path in sorted(ROOT.glob("notebooks/*.ipynb"))
}
_SOURCES = {target: source for source, target in MOVED.items()}
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\()(?!https?:|mailto:)([^)\s#]+)")


def site_link(link: str, page: str) -> str:
    """The link of a page of the site, named by its place there, that a link in the repository
    becomes."""
    source = _SOURCES.get(page, f"docs/{page}")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if target in MOVED:
        target = f"docs/{MOVED[target]}"
    elif source.startswith("docs/") or not target.startswith("docs/"):
        return link
    return posixpath.relpath(target, posixpath.dirname(f"docs/{page}"))


def with_site_links(markdown: str, page: str) -> str:
    """Markdown whose links, those in code apart, are those of the site."""
    parts = _CODE.split(markdown)
    for i in range(0, len(parts), 2):
        parts[i] = _LINK.sub(lambda found: found[1] + site_link(found[2], page), parts[i])
    return "".join(parts)


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    exporter = MarkdownExporter()
    for source, target in MOVED.items():
        path = ROOT / source
        if path.suffix == ".md":
            files.append(File.generated(config, target, content=path.read_text("utf-8")))
            continue
        # Pictures get the names of their notebooks.
        name = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        markdown, resources = exporter.from_filename(str(path), name)
        files.append(File.generated(config, target, content=markdown))
        for picture, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{picture}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    return with_site_links(markdown, page.file.src_uri)
