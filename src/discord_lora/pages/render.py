"""Pages for people: one file with its style in it, no script, nothing loaded from elsewhere.

The templates lie beside this file: page.html is the shell that every page extends, with page.css
in it, charts.html draws what charts.py computes. Whatever a page shows is escaped, and
page.html's Content-Security-Policy forbids the browser to run or load anything at all.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from discord_lora.console import printable

LONGEST_NAME = 300
"""Characters of foreign text that are kept; Discord's own names have at most 100."""


def render_page(template: str, **values: Any) -> bytes:
    """A page as UTF-8. `values` are the template's variables; its macros may call functions."""
    # A file's name may hold bytes that are no text: they become question marks.
    return _environment().get_template(template).render(values).encode("utf-8", "replace")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Keeps the templates that it has compiled: training writes its page again and again."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=count, plain=plain)
    return environment


def count(number: int) -> str:
    return f"{number:,}"


def plain(text: str, longest: int = LONGEST_NAME) -> str:
    """Foreign text without controls and changes of direction, cut to a bearable length."""
    shown = printable(text)
    return shown if len(shown) <= longest else shown[:longest] + "…"
