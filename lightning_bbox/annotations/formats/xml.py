"""XML of any encoding and namespace: parsed without entities, and walked with every position."""

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element  # the type only: parsing goes through defusedxml
from xml.parsers import expat  # only for content that defusedxml has passed already

import numpy as np
from defusedxml import DefusedXmlException, ElementTree

from lightning_bbox.annotations.formats.texts import read_bytes
from lightning_bbox.core.errors import BadInput

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
_DECLARED = re.compile(rb"""<\?xml[^>]{0,99}?\bencoding\s*=\s*["']([\w.:-]{1,40})["']""")


def xml_encoding(content: bytes) -> str:
    """Tell in which encoding an XML file is: by its first bytes, or as it declares.

    Examples:
        >>> xml_encoding(b'<?xml version="1.0" encoding="gb2312"?><a/>')
        'gb2312'
    """
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            return name
    declared = _DECLARED.match(content)
    return declared[1].decode("ascii") if declared else "utf-8"


def parse_xml(root: Path, file: str) -> Element:
    """Parse an XML file; names in the namespace of its root lose it.

    Args:
        root: Folder of the data set.
        file: The file, relative to the root.

    Raises:
        BadInput: If it can't be read, is not well-formed or declares entities.
    """
    content = read_bytes(root, file)
    try:
        text = content.decode(xml_encoding(content)).removeprefix("\ufeff")
        parser = ElementTree.DefusedXMLParser(encoding="utf-8")  # whatever the file declares
        parser.feed(text.encode("utf-8"))
        tree: Element = parser.close()
    except DefusedXmlException as error:
        problem = "declares entities, as files do that blow up or read others"
        raise BadInput.at(file, problem, "remove its <!DOCTYPE ...>") from error
    # ParseError is a SyntaxError; ValueError: bytes after a text's end; LookupError: encodings.
    except (SyntaxError, ValueError, LookupError) as error:
        raise BadInput.at(file, f"is not well-formed XML ({error})", "repair it") from error
    if space := _space_of(tree.tag):
        for node in nodes_below(tree):
            node.tag = node.tag.removeprefix(space)
    return tree


def nodes_below(tree: Element) -> Iterator[Element]:
    """Yield a node and all below it in the file's order, however deep they are nested."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(node)


def walk_xml(
    text: str,
    start: Callable[[str, Mapping[str, str], int], None],
    data: Callable[[str, int], None] = lambda *_: None,
    end: Callable[[str], None] = lambda _: None,
) -> None:
    """Walk through the text of an XML file; positions count its characters.

    Args:
        text: What `parse_xml` has read.
        start: Is called with the name of each element, its attributes, and where its tag begins.
        data: Is called with each piece of text, and where it begins.
        end: Is called with the name of each element that ends.

    Raises:
        ValueError: If it is not well-formed.
    """
    content = text.encode("utf-8")
    leads = (np.frombuffer(content, np.uint8) & 0xC0) != 0x80  # the first bytes of characters
    characters = leads.cumsum() - 1
    parser = expat.ParserCreate("utf-8", namespace_separator="}")
    space: str | None = None

    def position() -> int:
        return int(characters[parser.CurrentByteIndex])

    def on_start(name: str, attributes: Mapping[str, str]) -> None:
        nonlocal space
        if space is None:
            space = _space_of(name)
        start(name.removeprefix(space), attributes, position())

    parser.StartElementHandler = on_start
    parser.EndElementHandler = lambda name: end(name.removeprefix(space or ""))
    parser.CharacterDataHandler = lambda word: data(word, position())
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(str(error)) from error


def _space_of(name: str) -> str:
    """Return the namespace of a name as it stands before it, if it has one."""
    space, brace, _ = name.rpartition("}")
    return space + brace
