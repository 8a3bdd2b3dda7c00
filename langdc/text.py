"""Makes text of users and models harmless where it is shown: no markup, formula or control character.

There is one function for each kind of output. Records, answers and submissions are data and are written unchanged.
"""

import html
import re
from typing import Any

# all but tab and new line: codes of terminals, separators, byte order marks, and marks that turn the direction of text
_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_FORMULA = re.compile("\\s*[=+@\uff1d\uff0b\uff20\uff0d-]|[\t\n]")


def plain(text: str) -> str:
    """Text for a terminal: without control characters; a lone surrogate becomes "?"."""
    return _CONTROLS.sub("", text.encode(errors="replace").decode())


def counted(number: int, one: str, more: str = "") -> str:
    """Such as "1 row" and "1,200 rows"; `more`: what stands after other numbers than 1."""
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"


def markdown(text: str) -> str:
    """Text on one line in which Markdown and HTML find no markup, also in a cell of a table."""
    text = html.escape(" ".join(plain(text).split()), quote=False).replace("\\", "\\\\")
    return re.sub(r"([|`*~$\[\]]|^[#+>-]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def csv_cell(value: Any) -> Any:
    """A value for CSV: an apostrophe goes before text that a spreadsheet would take for a formula."""
    if not isinstance(value, str):
        return value
    value = plain(value)
    return f"'{value}" if _FORMULA.match(value) else value


def render(package: str, name: str, **values: Any) -> str:
    """The page of a template (HTML or Markdown) in which strings among the values are plain text, never markup."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not name.endswith(".html"):
            return " ".join(plain(value).replace("`", "'").split())
        return Markup(plain(value)) if isinstance(value, Markup) else plain(value)

    pages = Environment(loader=PackageLoader(package, ""), autoescape=name.endswith(".html"), finalize=finalize)
    pages.trim_blocks = pages.keep_trailing_newline = True
    return pages.get_template(name).render(values)
