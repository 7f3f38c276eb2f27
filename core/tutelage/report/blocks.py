"""The parts that a report is made of, and how each is written as HTML and as Markdown. All text is escaped here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape


@dataclass
class Heading:
    """A title; level 1 is the report's own."""

    text: str
    level: int

    def html(self) -> str:
        return f"<h{self.level}>{escape(self.text)}</h{self.level}>"

    def markdown(self) -> str:
        return f"{'#' * self.level} {plain(self.text)}"


@dataclass
class Paragraph:
    """Running text."""

    text: str

    def html(self) -> str:
        return f"<p>{escape(self.text)}</p>"

    def markdown(self) -> str:
        return plain(self.text)


@dataclass
class Bullets:
    """A list."""

    items: list[str]

    def html(self) -> str:
        return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in self.items) + "</ul>"

    def markdown(self) -> str:
        return "\n".join(f"- {plain(item)}" for item in self.items)


@dataclass
class Table:
    """Rows of text; without columns, the first cell of a row says what the second is."""

    rows: list[list[str]]
    columns: list[str] | None = None

    def html(self) -> str:
        head = ""
        if self.columns:
            head = "<thead><tr>" + "".join(f"<th>{escape(name)}</th>" for name in self.columns) + "</tr></thead>"
        lead = "td" if self.columns else 'th scope="row"'
        body = "".join(
            f"<tr><{lead}>{escape(row[0])}</{lead.split()[0]}>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'

    def markdown(self) -> str:
        columns = self.columns or ["", ""]
        lines = [columns, *self.rows]
        written = ["| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines]
        written.insert(1, "| " + " | ".join(["---"] * len(columns)) + " |")
        return "\n".join(written)


@dataclass
class Code:
    """Text as it stands."""

    text: str
    language: str = ""

    def html(self) -> str:
        return f"<pre><code>{escape(self.text)}</code></pre>"

    def markdown(self) -> str:
        longest = max((len(run) for run in re.findall(r"`+", self.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}{self.language}\n{self.text.rstrip()}\n{fence}"


@dataclass
class Plot:
    """A drawing: inline in HTML, a file beside it in Markdown."""

    title: str
    svg: str
    file: str

    def html(self) -> str:
        return f"<figure>{self.svg}</figure>"

    def markdown(self) -> str:
        return f"![{plain(self.title)}]({self.file})"


Block = Heading | Paragraph | Bullets | Table | Code | Plot


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escape(" ".join(text.split()), quote=False))


def page(title: str, blocks: list[Block]) -> str:
    """A whole HTML page that loads nothing from anywhere."""
    body = "\n".join(block.html() for block in blocks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8884; padding-bottom: .2rem; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top; border-bottom: 1px solid #8883; }
th { font-weight: 600; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
figure { display: inline-block; width: min(100%, 29rem); margin: .5rem .5rem .5rem 0; vertical-align: top; }
pre { overflow-x: auto; padding: .8rem; background: #8881; border-radius: 6px; }
"""
