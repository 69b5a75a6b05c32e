"""Facts by name, as text and as an HTML table."""

import html
from collections.abc import Mapping


def fact_lines(title: str, facts: Mapping[str, str]) -> str:
    """A title, followed by one indented line for each fact."""
    width = max(map(len, facts), default=0)
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


class Shown:
    """A result that shows its `summary`: as lines of text, and as a table in a notebook."""

    def title(self) -> str:
        """What stands above the facts."""
        return type(self).__name__

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return fact_lines(self.title(), self.summary())

    def _repr_html_(self) -> str:
        return fact_table(self.summary(), caption=self.title())
