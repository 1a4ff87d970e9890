"""Keyed randomness that makes up numbers, words and structures, most of them sound, some odd."""

import random
from collections.abc import Sequence
from typing import Any

ODD_NUMBERS = (
    *("0", "-0", "-1", "+5", "5.", ".5", ".", "", " 7 ", "--5", "1e", "1e+", "0x10", "1,5", "1_0"),
    *("1e5", "1e308", "-1e308", "1e309", "1e-320", "1e999999999", "nan", "NaN", "-nan", "inf"),
    *("-inf", "Infinity", "-Infinity", "null", "true", '"5"', "[]", "{}", "٣", "½", "5\u00a0"),
    *("2147483648", "4294967296", "9223372036854775808", "18446744073709551616", "16777217"),
    *("0.1" + "0" * 400, "9" * 400, "0" * 400 + "1", "1" * 5000, "1.0000000000000000000001"),
)
ODD_WORDS = (
    *("", " ", "\0", "\ufeff", "\u2028", "\x85", "\x0b", "\x1b[2J", "\r", "\n", "a\nb", "\r\nc"),
    *("é", "細胞", "🔬", "e\u0301", "\u202e", "\ufffe", "../a.png", "/etc/passwd", "./a.png", ".."),
    *("a" * 300, "a/" * 200, "%s%n", "{}", "{0}", "<", "&amp;", "&", "]]>", "<![CDATA[", "-->"),
    *('"', '""', "'", ";", ",", "\t", "\\", "\\u0000", "\\ud800", "C:\\a.png", "a.png ", "A.PNG"),
    *("true", "null", "~", "- x", ": ", "#", "*a", "&a", "!!int", "train", "0", "-1", "1e3"),
)
SPACES = ("", " ", "\n", "\t", "\r\n", "  \n ")


class Dice(random.Random):
    """Draw what a file holds.

    Args:
        key: Two dice of one key draw the same.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.odd = self.choice((0.0, 0.0, 0.01, 0.05, 0.25))

    def chance(self, rate: float) -> bool:
        return self.random() < rate

    def word(self, usual: str) -> str:
        return self.choice(ODD_WORDS) if self.chance(self.odd) else usual

    def number(self, usual: float) -> str:
        if self.chance(self.odd):
            return self.choice(ODD_NUMBERS)
        return self.choice((f"{usual:.10g}", f"{usual:.3f}", f"{usual:.12e}", repr(usual)))

    def space(self) -> str:
        return self.choice(SPACES) if self.chance(0.1) else ""

    def some(self, parts: Sequence[Any], in_order: bool = False) -> list[Any]:
        """Take the parts, of which a few may be missing, there twice or elsewhere."""
        parts = [part for part in parts for _ in range(self.times())]
        if self.chance(self.odd if in_order else 0.3):
            self.shuffle(parts)
        return parts

    def times(self) -> int:
        return self.choice((0, 2)) if self.chance(self.odd / 2) else 1

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Draw `xyxy` edges inside a picture, some of them thin, empty or outside."""
        x1, x2 = sorted(self.uniform(0, width) for _ in range(2))
        y1, y2 = sorted(self.uniform(0, height) for _ in range(2))
        if self.chance(0.5):
            x1, y1, x2, y2 = (float(round(edge)) for edge in (x1, y1, x2, y2))
        if self.chance(self.odd):
            x1, x2 = self.choice(((x2, x1), (x1, x1), (x1, x1 + 1e-3), (-1.0, x2), (x1, 1e4)))
        return x1, y1, x2, y2
