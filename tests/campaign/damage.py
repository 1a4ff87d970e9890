"""What may befall a file: flipped bytes, cuts, swaps, extreme numbers, bombs, other encodings."""

import random
import re
import struct
import zlib
from collections.abc import Sequence

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
TOKENS = {
    "voc": (
        *("<object>", "</object>", "<bndbox>", "</bndbox>", "<xmin>", "</xmin>", "<xmax>5</xmax>"),
        *("<!--", "-->", "<![CDATA[", "]]>", "&amp;", "&#0;", "&#53;", "&#x110000;", "&bogus;"),
        *("<!DOCTYPE annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]>", "<?xml version='1.1'?>"),
        *("<?p?>", " xmlns='urn:a'", "<a:xmin xmlns:a='b'>1</a:xmin>", "<name/>", "<size/>"),
        *("<?xml version='1.0' encoding='cp037'?>", "<?xml version='1.0' encoding='idna'?>"),
    ),
    "coco": (
        *("[", "]", "{", "}", ",", ":", '"', "\\", "null", "true", "NaN", "-Infinity", "1e400"),
        *('"bbox"', '"bbox": [1, 2, 3, 4], ', '"annotations": [], ', '"images": {}, ', '"id": 1, '),
        *('"image_id": null, ', '"iscrowd": 1, ', '"\\ud800"', '"\\u0000"', "\ufeff", "//", "'"),
        *('"file_name": "..", ', '"width": -1, ', '"height": 1e999, ', '"id": "a\\nb", ', "-0"),
    ),
    "yolo": ("\n", "0 .5 .5 .1 .1\n", "7 ", "-1 ", " 1e999", "\t", "nan", "\ufeff", "\x1c", "0.5"),
    "csv": (*',;\t"\n\r\0', '""', '"\n', "a.png", "xmin", "image,", "\ufeff"),
    "yaml": (
        *("&a ", "*a", "<<: *a\n", "!!int ''", "!!timestamp x", "!!binary =", "? ", "- ", "|\n"),
        *("!!python/object:os.system x", "%YAML 9.9\n", "---\n", "=", "[", "{", "names: *a\n"),
        *("0: ", "1: [", "2001-13-45", "1:99:99", "0x", "\0", "\t", "!!set {a}", "!!omap [a]"),
    ),
}
TOKENS["results"] = TOKENS["coco"]
TOKENS["cvat"] = (
    *("<image name='a.png'>", "</image>", "<box label='a' xtl='1' ytl='2' xbr='3' ybr='4'/>"),
    *("<polygon points='1,2;3,4;5,6'/>", "<mask/>", "<track id='0'>", " rotation='7'", " xtl='9'"),
    *(" points=''", "<ellipse cx='1' cy='1' rx='1' ry='1'/>", " outside='1'", *TOKENS["voc"][8:]),
)
TOKENS["labelme"] = TOKENS["labelstudio"] = (
    *('"points": [], ', '"points": [[1, 2]], ', '"shape_type": "circle", ', '"shapes": [], '),
    *('"value": {}, ', '"result": [], ', '"rotation": 7, ', '"x": null, ', '"annotations": 3, '),
    *('"rectanglelabels": [1], ', '"image": 1, ', *TOKENS["coco"][:16]),
)
TOKENS["mot"] = TOKENS["otb"] = ("\n", ",", ",,", "-1", "1e999", "nan", "\t", "\ufeff", "0", "7.5")
TOKENS["openimages"] = TOKENS["automl"] = TOKENS["csv"]
TOKENS["via"] = TOKENS["kaggle"] = (
    *('""x"":1,', "{", "}", "[", "]", '""name"":""circle"",', "[[1,2,3,4],", "'x': 1", "nan"),
    *TOKENS["csv"],
)
TOKENS["viajson"] = (
    *('"regions": {}, ', '"regions": 3, ', '"shape_attributes": {}, ', '"name": "circle", '),
    *('"all_points_x": [1], ', '"filename": "", ', '"_via_img_metadata": 1, ', '"x": null, '),
    *TOKENS["coco"][:16],
)
TOKENS["via3"] = (
    *(
        '"xy": [], ',
        '"xy": [2, 1], ',
        '"xy": [7, 1, 2, 3], ',
        "[2, ",
        '"vid": "2", ',
        '"view": {}, ',
    ),
    *('"fid_list": [], ', '"type": 4, ', '"av": {"2": "a"}, ', '"options": [], ', '"src": "..", '),
    *TOKENS["coco"][:16],
)
"""Words that mean something in a format."""
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_LINE_ENDS = (b"\n", b"\r\n", b"\r", b"\n\n", b"\x0b", b"\xe2\x80\xa8", b"\0", b"")
_OPENINGS = (b"[", b"{", b'{"a":', b"<a>", b"<object>", b"(", b"- ", b'"', b"<!--", b"a: ", b"? ")
_PAIRS = ((b"[", b"]"), (b'{"a":', b"}"), (b"<a>x", b"</a>"), (b"<object>", b"</object>"))
_LARGEST = 4_000_000  # bytes: changes multiply
_WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "utf-8-sig", "cp037")


def mutated(content: bytes, dice: random.Random, tokens: Sequence[str]) -> bytes:
    """Change a file one to four times.

    Args:
        content: The file.
        dice: What decides.
        tokens: Words that mean something in its format.
    """
    changes = (_flip, _cut, _swap, _double, _insert_bytes, _rare, *[_replace_number] * 3)
    for _ in range(dice.choice((1, 1, 1, 1, 2, 4))):
        if dice.random() < 0.3:
            content = _insert(content, dice, dice.choice(tokens or ODD_WORDS).encode())
        else:
            content = dice.choice(changes)(content, dice)
        content = content[:_LARGEST]
    return content


def _rare(content: bytes, dice: random.Random) -> bytes:
    changes = (_end_lines_otherwise, _encode_otherwise, _lengthen, _nest, _repeat)
    return dice.choice(changes)(content, dice)


def _span(content: bytes, dice: random.Random) -> tuple[int, int]:
    """Choose a part of a file, half of the time one of whole lines."""
    start = dice.randint(0, len(content))
    end = min(len(content), start + int(2 ** dice.uniform(0, 9)))
    if dice.random() < 0.5:
        start = content.rfind(b"\n", 0, start) + 1
        end = (content.find(b"\n", end) + 1) or len(content)
    return start, end


def _insert(content: bytes, dice: random.Random, inserted: bytes) -> bytes:
    at = dice.randint(0, len(content))
    return content[:at] + inserted + content[at:]


def _flip(content: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 3, 20)) if changed else 0):
        at = dice.randrange(len(changed))
        changed[at] = dice.choice((changed[at] ^ 1 << dice.randrange(8), dice.randrange(256)))
    return bytes(changed)


def _cut(content: bytes, dice: random.Random) -> bytes:
    start, end = _span(content, dice)
    part = content[:start] + content[end:]
    return dice.choice((part, part, part, content[:start], content[end:]))


def _swap(content: bytes, dice: random.Random) -> bytes:
    first, second = sorted((_span(content, dice), _span(content, dice)))
    (a, b), (c, d) = (first[0], min(first[1], second[0])), second
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _double(content: bytes, dice: random.Random) -> bytes:
    start, end = _span(content, dice)
    double = content[:end] + content[start:]
    return dice.choice((double, _insert(content, dice, content[start:end])))


def _replace_number(content: bytes, dice: random.Random) -> bytes:
    spans = [match.span() for match in _NUMBER.finditer(content)]
    if not spans:
        return content
    start, end = dice.choice(spans)
    return content[:start] + dice.choice(ODD_NUMBERS).encode() + content[end:]


def _insert_bytes(content: bytes, dice: random.Random) -> bytes:
    odd = dice.choice(ODD_WORDS).encode()
    return _insert(content, dice, dice.choice((odd, dice.randbytes(dice.randint(1, 9)))))


def _end_lines_otherwise(content: bytes, dice: random.Random) -> bytes:
    return content.replace(b"\n", dice.choice(_LINE_ENDS))


def _encode_otherwise(content: bytes, dice: random.Random) -> bytes:
    return content.decode("utf-8", "replace").encode(dice.choice(_WIDE), "replace")


def _lengthen(content: bytes, dice: random.Random) -> bytes:
    token = dice.choice((b"1", b"a", b" ", b"0", b".", b"\t", b'""', b"e1", b"\xc2\xa0", b"&#49;"))
    count = int(10 ** dice.uniform(3, 5.7))
    spans = [match.span() for match in _NUMBER.finditer(content)]
    if spans and dice.random() < 0.5:
        start, end = dice.choice(spans)
        tail = dice.choice((b"", b"x"))
        return content[:start] + token * count + tail + content[end:]
    return _insert(content, dice, token * count)


def _nest(content: bytes, dice: random.Random) -> bytes:
    depth = int(10 ** dice.uniform(1, 5))
    opening, closing = dice.choice((dice.choice(_PAIRS), (dice.choice(_OPENINGS), b"")))
    nest = opening * depth + b"1" + closing * depth
    places = [match.start() + 1 for match in re.finditer(rb"[>:,\[]", content)]
    if not places or dice.random() < 0.3:
        return _insert(content, dice, nest)
    at = dice.choice(places)  # where it may well fit
    return content[:at] + nest + content[at:]


def _repeat(content: bytes, dice: random.Random) -> bytes:
    start, end = _span(content, dice)
    return _insert(content, dice, content[start:end] * dice.choice((10, 100, 1000)))


def mutated_picture(content: bytes, dice: random.Random) -> bytes:
    """Change the file of a picture; half of the PNGs get checksums that fit again."""
    changes = (_flip, _flip, _cut, _swap, _double, _insert_bytes, _extreme_field, _extreme_field)
    for _ in range(dice.choice((1, 1, 2, 3, 8))):
        content = dice.choice(changes)(content, dice)
    return _with_checksums(content) if dice.random() < 0.5 else content


def _extreme_field(content: bytes, dice: random.Random) -> bytes:
    """Overwrite a field, more often one near the beginning, by a number that is hard to bear."""
    reach = min(len(content), dice.choice((64, 256, 1 << 20)))
    order, form = dice.choice("<>"), dice.choice("BHIQ")
    top = (1 << 8 * struct.calcsize(form)) - 1
    value = dice.choice((0, 1, top, top // 2, top // 2 + 1, 9000, 30_000, 65_535, 100_000))
    field = struct.pack(order + form, min(value, top))
    at = dice.randint(0, reach)
    return content[:at] + field + content[at + len(field) :]


def _with_checksums(content: bytes) -> bytes:
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    fixed, at = bytearray(content), 8
    while at + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, at)
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)
