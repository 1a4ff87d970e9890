"""The frame that all pages have: one HTML file that needs nothing else, light and dark."""

import base64
import html
from collections.abc import Sequence
from io import BytesIO

from PIL import Image


def page(title: str, body: Sequence[str], script: str = "", style: str = "") -> str:
    """Write a page.

    Args:
        title: Its title, as text.
        body: Pieces of HTML.
        script: JavaScript.
        style: CSS beside that of all pages.

    Examples:
        >>> page("a & b", ["<p>c</p>"]).count("a &amp; b")
        1
    """
    parts = {"style": _STYLE + style, "body": "\n".join(body), "script": script}
    return FRAME.format(title=html.escape(title), **parts)


def picture_tag(name: str, picture: Image.Image) -> str:
    """Return a picture as HTML that holds it.

    Args:
        name: What is said where it can't be seen.
        picture: The picture.
    """
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{html.escape(name)}" src="data:image/png;base64,{data}"></p>'


FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{style}</style></head>
<body>
{body}
<script>{script}</script></body></html>
"""
"""What a page is put into."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 80rem; margin: auto; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid #8884; }
th, td { text-align: right; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; }
td.word, th.word { text-align: left; white-space: pre-wrap; min-width: 7rem; }
tbody tr:hover { background: #8882; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\25b4"; }
th[aria-sort=descending] button::after { content: " \\25be"; }
img { max-width: 100%; background: white; border-radius: 6px; }
li { overflow-wrap: anywhere; }
.verdict { padding: .6rem .9rem; border-left: 5px solid #2a9d4a; background: #2a9d4a22; }
.verdict.refused { border-color: #d23c32; background: #d23c3222; }
"""
