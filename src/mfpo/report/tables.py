"""The pages' tables."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Cell:
    """A text of a table; `mark` is its CSS class, `title` is shown when it is pointed at."""

    text: str
    mark: str = ""
    title: str = ""


def table(header: Sequence[str | Cell], rows: Sequence[Sequence[str | Cell]]) -> Markup:
    """A table, every text escaped; the first cell of a row names it."""
    head = Markup().join(_cell("th", text, ' scope="col"') for text in header)
    body = Markup().join(
        Markup("<tr>{}{}</tr>").format(
            _cell("th", name, ' scope="row"'), Markup().join(_cell("td", text) for text in cells)
        )
        for name, *cells in rows
    )
    return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        head, body
    )


def _cell(tag: str, cell: str | Cell, scope: str = "") -> Markup:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    marked = Markup(' class="{}"').format(cell.mark) if cell.mark else ""
    titled = Markup(' title="{}"').format(cell.title) if cell.title else ""
    return Markup("<{0}{1}{2}{3}>{4}</{0}>").format(tag, Markup(scope), marked, titled, cell.text)


def typeset(text: str) -> Markup:
    """`text` escaped, with the letters of CHAIR_s and CHAIR_i set low, and no line break before a percent sign.

    >>> typeset("<b> CHAIR_s")
    Markup('&lt;b&gt; CHAIR<sub>s</sub>')
    """
    escaped = str(escape(text)).replace(" %", "\N{NO-BREAK SPACE}%")
    return Markup(re.sub(r"\bCHAIR_([si])\b", r"CHAIR<sub>\1</sub>", escaped))
