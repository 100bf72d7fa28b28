"""What a browser would see of a report."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from asg_core.runs.report.render import render_report

SVG = "data:image/svg+xml;base64,"


class Page(HTMLParser):
    """Tags with their attributes, the visible text, and the texts of <td>/<th> by row."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def rendered(run: Path) -> Page:
    return Page(render_report(run))
