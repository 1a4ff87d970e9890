"""JSON: parsed with a clear refusal, and walked with every position."""

import json
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_bbox.annotations.formats.format import Span
from lightning_bbox.annotations.formats.texts import read_text
from lightning_bbox.core.errors import BadInput

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[^\s,\[\]]+")
_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|(-?(?:\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|Infinity)|NaN)', re.ASCII | re.DOTALL
)
_DECODER = json.JSONDecoder()
_SKIPPER = json.JSONDecoder(object_pairs_hook=lambda _: None)  # objects are forgotten at once
_EXACT = 1 << 53  # whole numbers up to here are the same as floats


def parse_json(root: Path, file: str) -> Any:  # noqa: ANN401 - JSON
    """Parse a JSON file.

    Args:
        root: Folder of the data set.
        file: The file, relative to the root.

    Raises:
        BadInput: If it can't be read or is not well-formed.
    """
    try:
        return json.loads(read_text(root, file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput.at(file, f"is not well-formed JSON ({error})", "repair it") from error


def take(entry: Mapping[str, Any], key: str, kind: type | tuple[type, ...], place: str) -> Any:  # noqa: ANN401 - JSON
    """Take the value of a key, which must be of the kind (and a bool is not an int).

    Args:
        entry: A JSON object.
        key: The key.
        kind: The types that its value may have.
        place: Where the object stands.

    Raises:
        BadInput: If it is missing or of another kind.
    """
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(kind.__name__ for kind in kinds)
        found = reprlib.repr(value) if key in entry else "missing"
        raise BadInput.at(place, f"{key!r} is {found}, expected {expected}", "correct it")
    return value


def as_object(entry: object, place: str) -> Mapping[str, Any]:
    """Return a value that must be a JSON object.

    Raises:
        BadInput: If it is none.
    """
    if not isinstance(entry, dict):
        raise BadInput.at(place, f"is {reprlib.repr(entry)}, no JSON object", "correct it")
    return entry


def is_number(value: object) -> bool:
    """Tell whether a JSON value is a number, which true isn't."""
    return isinstance(value, (int, float)) and value is not True and value is not False


def as_float(number: int | float) -> float:
    """Return a number that fits a float; integers beyond are infinite, and as bad in a box.

    Examples:
        >>> as_float(10**400), as_float(7)
        (inf, 7)
    """
    if isinstance(number, int) and abs(number) > _EXACT:
        return float("inf") if abs(number) > 1e308 else float(number)
    return number


class Spotted(float):
    """A number of a JSON text that knows where it stands.

    Attributes:
        span: Where.
    """

    span: Span


def spotted_json(text: str) -> Any:  # noqa: ANN401 - JSON
    """Parse a JSON text whose numbers become `Spotted`.

    Args:
        text: What `parse_json` has read.

    Raises:
        ValueError: If it is not well-formed.

    Examples:
        >>> [number.span for number in spotted_json('{"a": [1, 23.5]}')["a"]]
        [(7, 8), (10, 14)]
    """
    spans = (match.span(1) for match in _TOKEN.finditer(text) if match[1])

    def spot(word: str) -> Spotted:
        number = Spotted(word)
        number.span = next(spans, (0, 0))
        return number

    plain = text.removeprefix("\ufeff")
    return json.loads(plain, parse_float=spot, parse_int=spot, parse_constant=spot)


def span_of(number: float) -> Span:
    """Return where a number of `spotted_json` stands; nowhere for any other."""
    return number.span if isinstance(number, Spotted) else (0, 0)


def members(
    text: str, position: int, decoder: json.JSONDecoder = _DECODER
) -> Iterator[tuple[str, Any, Span]]:
    """Walk through a JSON object: yield each key with its value and where that stands.

    Args:
        text: The text.
        position: Where the object begins.
        decoder: What decodes the values.
    """
    position = skip(text, position + 1)
    while text[position] == '"':
        key, position = _DECODER.raw_decode(text, position)
        start = skip(text, skip(text, position) + 1)
        value, position = decoder.raw_decode(text, start)
        yield key, value, (start, position)
        position = skip(text, position)
        if text[position] == ",":
            position = skip(text, position + 1)


def spans_of(text: str, position: int, key: str) -> list[Span]:
    """Find where values of a JSON object stand, without keeping any, however many boxes they hold.

    Args:
        text: The text.
        position: Where the object begins.
        key: Theirs; of several the last one counts.

    Examples:
        >>> spans_of('{"a": [{"b": 1}], "c": 2, "a": 3}', 0, "a")
        [(6, 16), (31, 32)]
    """
    return [span for name, _, span in members(text, position, _SKIPPER) if name == key]


def elements(text: str, position: int) -> Iterator[int]:
    """Walk through a JSON list: yield where each of its elements begins.

    Args:
        text: The text.
        position: Where the list begins.
    """
    position = skip(text, position + 1)
    while text[position] != "]":
        yield position
        position = skip(text, _DECODER.raw_decode(text, position)[1])
        if text[position] == ",":
            position = skip(text, position + 1)


def number_spans(text: str, span: Span) -> list[Span]:
    """Find the numbers of a list, or of lists in lists, that stands in a span."""
    return [match.span() for match in _NUMBER.finditer(text, *span)]


def skip(text: str, position: int) -> int:
    """Skip JSON's white space, and return what comes behind it."""
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def document_start(text: str) -> int:
    """Return where a JSON text begins, behind a byte order mark and white space."""
    return skip(text, 1 if text.startswith("\ufeff") else 0)
