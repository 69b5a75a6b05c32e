"""Facts by name, as text and as an HTML table."""

import html
from collections.abc import Mapping


def fact_lines(title: str, facts: Mapping[str, str]) -> str:
    """A title, followed by one indented line for each fact."""
    width = max(map(len, facts))
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in facts.items())])


def fact_table(facts: Mapping[str, str], *, caption: str = "", css_class: str = "") -> str:
    """An HTML table with one row for each fact."""
    left = ' style="text-align:left"'
    rows = "".join(
        f"<tr><th{left}>{html.escape(name)}</th><td{left}>{html.escape(str(text))}</td></tr>"
        for name, text in facts.items()
    )
    kind = f' class="{css_class}"' if css_class else ""
    head = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table{kind}>{head}{rows}</table>"
