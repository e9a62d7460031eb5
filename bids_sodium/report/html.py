"""Pieces of a page: escaped text, tables, figures, sections; one style for every report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from bids_sodium import __version__

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["box", "escape", "figure", "number", "page", "section", "table"]

_STYLE = """
:root { --ink: #1d2733; --soft: #5b6775; --line: #d9dfe6; --accent: #0072b2; --warn: #8a4b00; --warnbg: #fff6e8;
  --bad: #8c1d18; --badbg: #fdeceb; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--ink); margin: 0; background: #f5f7f9; }
header { background: #12293d; color: #fff; padding: 1.1rem 2rem; }
header h1 { font-size: 1.35rem; margin: 0; font-weight: 600; }
header p { margin: .2rem 0 0; color: #b9c7d4; font-size: .9rem; }
nav { position: sticky; top: 0; background: #fff; border-bottom: 1px solid var(--line); padding: .5rem 2rem;
  z-index: 1; }
nav a { display: inline-block; margin-right: 1.1rem; color: var(--accent); text-decoration: none; font-size: .9rem;
  white-space: nowrap; }
main { max-width: 1180px; margin: 0 auto; padding: 1rem 2rem 4rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.4rem; margin: 1rem 0; }
h2 { font-size: 1.1rem; margin: .1rem 0 .6rem; } h3 { font-size: .98rem; margin: 1rem 0 .4rem; }
figure { margin: .6rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .86rem; max-width: 62rem; }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.n { text-align: right; white-space: nowrap; } th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.wide { overflow-x: auto; } .wrap th { white-space: normal; vertical-align: bottom; }
.wrap th, .wrap td { padding: .22rem .4rem; }
.box { border-left: 4px solid var(--warn); background: var(--warnbg); padding: .5rem 1rem; margin: .6rem 0; }
.box.bad { border-color: var(--bad); background: var(--badbg); } .box ul { margin: .3rem 0; padding-left: 1.2rem; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: #f5f7f9; padding: .8rem; overflow-x: auto; font-size: .8rem; white-space: pre-wrap; }
footer { color: var(--soft); font-size: .8rem; padding: 0 2rem 2rem; text-align: center; }
"""


def number(value: Any) -> str:
    """Return a value as a reader wants it: four significant digits, a hyphen where there is none.

    Examples
    --------
    >>> number(40.61234), number(float("nan")), number("raw"), number(0.00001234)
    ('40.61', '-', 'raw', '1.234e-05')
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    try:
        real = float(value)
    except (TypeError, ValueError):
        return str(value)
    if math.isnan(real):
        return "-"
    if math.isinf(real):
        return "unbounded"
    if abs(real) < 1e6 and real == int(real):
        return str(int(real))
    return f"{real:.4g}"


def table(frame: DataFrame, *, columns: Sequence[str] | None = None, headings: Sequence[str] | None = None) -> str:
    """Return a data frame as an HTML table; numbers are rounded for reading, files keep them whole."""
    names = list(frame.columns if columns is None else columns)
    head = "".join(f"<th>{escape(str(name))}</th>" for name in (names if headings is None else headings))
    rows = []
    for record in frame[names].itertuples(index=False):
        cells = []
        for value in record:
            text = number(value)
            kind = "" if isinstance(value, str) else ' class="n"'
            cells.append(f"<td{kind}>{escape(text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def figure(source: str, caption: str, *, alt: str = "") -> str:
    """Return a picture with its caption; ``source`` is relative to the page."""
    return (
        f'<figure><img src="{escape(source)}" alt="{escape(alt or caption)}" loading="lazy">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def box(title: str, lines: Iterable[str], *, bad: bool = False) -> str:
    """Return a box that cannot be overlooked."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="box{" bad" if bad else ""}"><strong>{escape(title)}</strong><ul>{items}</ul></div>'


def section(name: str, title: str, *parts: str) -> tuple[str, str, str]:
    """Return a section as (anchor, title, body)."""
    return name, title, "\n".join(part for part in parts if part)


def page(title: str, subtitle: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """Return a whole page that needs no network and no script."""
    listed = [entry for entry in sections if entry[2]]
    links = "".join(f'<a href="#{escape(name)}">{escape(heading)}</a>' for name, heading, _ in listed)
    body = "".join(
        f'<section id="{escape(name)}"><h2>{escape(heading)}</h2>{content}</section>'
        for name, heading, content in listed
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header><nav>{links}</nav><main>{body}</main>"
        f"<footer>bids_sodium {escape(__version__)}</footer></body></html>\n"
    )
