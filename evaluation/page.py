"""The parts that every report is put together from: a page, sections, tables, pictures, all of them strings of HTML.

A page holds everything it shows and fetches nothing: a content policy in it forbids that, and scripts too. Whatever
goes in as text comes out escaped.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence

import numpy as np

from evaluation.draw import encode_jpeg, encode_png
from evaluation.style import STYLE

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(value: str) -> str:
    """Escaped, for content and attributes alike."""
    return html.escape(value, quote=True)


def document(title: str, about: str, sections: Sequence[str], *, contents: bool = False) -> str:
    """A whole document. contents: a line of links to the sections after the title."""
    links = ""
    if contents:
        found = [match for section_ in sections for match in re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', section_)]
        links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in found)
        links = f"<nav>{links}</nav>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{text(title)}</h1><p>{text(about)}</p>{links}</header>\n"
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A section under a heading that can be linked to."""
    anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f'<section><h2 id="{anchor}">{text(title)}</h2>{body}</section>\n'


def paragraphs(texts: Sequence[str]) -> str:
    """Each a paragraph."""
    return "".join(f"<p>{text(one)}</p>" for one in texts)


def table(name: str, head: Sequence[str], body: str, *, words: int | None = None) -> str:
    """name: the table's id; head: column titles; body: rows; words: the column that holds words, not figures. Wider
    than the page, it scrolls by itself."""
    cells = "".join(
        f'<th scope="col"{" class=words" if number == words else ""}>{text(title)}</th>'
        for number, title in enumerate(head)
    )
    return f'<div class="wide"><table id="{name}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def row(name: str, cells: Sequence[str], note: str = "", kind: str = "") -> str:
    """name: of the row; cells: HTML of the figures; note: a small line under the name; kind: a class of the style."""
    small = f"<small>{text(note)}</small>" if note else ""
    return f'<tr class="{kind}"><th scope="row">{text(name)}{small}</th>{"".join(cells)}</tr>'


def cell(value: str, kind: str = "", note: str = "") -> str:
    """One figure; kind: a class of the style; note: a small line under it."""
    small = f"<small>{text(note)}</small>" if note else ""
    return f'<td class="{kind}">{text(value)}{small}</td>' if kind else f"<td>{text(value)}{small}</td>"


def bar_cell(value: float, shown: str, most: float = 1.0) -> str:
    """A figure over a bar of its share of `most`."""
    return f'<td class="bar" style="--share:{_percent(value, most)}%">{text(shown)}</td>'


def heat_cell(value: float, shown: str, most: float = 1.0) -> str:
    """A figure on a ground whose strength is its share of `most`."""
    return f'<td class="heat" style="--share:{_percent(value, most)}%">{text(shown)}</td>'


def _percent(value: float, most: float) -> float:
    if not (np.isfinite(value) and most > 0):
        return 0.0
    return round(100 * min(1.0, max(0.0, float(value) / most)), 1)


def gallery(title: str, caption: str, bev: np.ndarray | None, cameras: np.ndarray | None) -> str:
    """A frame's pictures, RGB arrays, and what is to be seen on them."""
    pictures = []
    if cameras is not None:
        pictures.append(_picture(encode_jpeg(cameras), "image/jpeg", f"{title}: six cameras", cameras))
    if bev is not None:
        pictures.append(_picture(encode_png(bev), "image/png", f"{title}: bird's-eye view", bev))
    figcaption = f"<figcaption><b>{text(title)}</b> {text(caption)}</figcaption>"
    return f'<figure class="frame">{"".join(pictures)}{figcaption}</figure>'


def _picture(data: bytes, mime: str, alt: str, image: np.ndarray) -> str:
    height, width = image.shape[:2]
    encoded = base64.b64encode(data).decode("ascii")
    kind = "bev" if mime == "image/png" else "cameras"
    return (
        f'<img class="{kind}" width="{width}" height="{height}" alt="{text(alt)}" src="data:{mime};base64,{encoded}">'
    )


def facts(made: Sequence[tuple[str, str]], commands: Sequence[str]) -> str:
    """(what, value) pairs as a table, and commands under it."""
    rows = "".join(f'<tr><th scope="row">{text(what)}</th><td>{text(value)}</td></tr>' for what, value in made)
    shown = f'<div class="wide"><table id="made" class="facts"><tbody>{rows}</tbody></table></div>' if rows else ""
    return shown + (code(commands) if commands else "")


def code(commands: Sequence[str]) -> str:
    """Commands to copy."""
    return f"<pre><code>{text(chr(10).join(commands))}</code></pre>"
