"""Annotation files that hypothesis draws, in every shape a format allows, with slots for numbers.

A draft knows its bytes for any boxes, so that a test can tell every byte a writer should write
without the writer's own arithmetic and without its parsing.
"""

import json
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import strategies as st

WIDTH, HEIGHT = 64, 32  # powers of two: fractions of quarter pixels end within nine digits
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Slot(NamedTuple):
    """The place of one of a box's four numbers."""

    box: int
    which: int


@dataclass
class Draft:
    """A file with slots.

    Args:
        file: Its path.
        pieces: Its text, with slots between.
        boxes: `xyxy` in pixel edges, some with their sides swapped.
        numbers: Turns a box into the four numbers of the format.
        styles: How each box's old numbers are spelled.
        codec: How the text becomes bytes.
        mark: The bytes before the text.
        beside: Other files that belong to it, by path.
        options: How it is to be read.
    """

    file: str
    pieces: list
    boxes: list
    numbers: object
    styles: list
    codec: str = "utf-8"
    mark: bytes = b""
    beside: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)

    def content(self, moved=None):
        """Compose the file, the boxes in `moved`, old to new, replaced."""
        texts = []
        for box, style in zip(self.boxes, self.styles, strict=True):
            old, new = self.numbers(box), self.numbers((moved or {}).get(box, box))
            texts.append(
                [
                    (style if there == here and there >= 0 else "{}").format(plain(there))
                    for here, there in zip(old, new, strict=True)
                ]
            )
        text = "".join(
            texts[piece.box][piece.which] if isinstance(piece, Slot) else piece
            for piece in self.pieces
        )
        return self.mark + text.encode(self.codec)

    def files(self):
        """Return all that is to be on the disk: the file, what is beside it and two pictures."""
        pictures = dict.fromkeys(("a.png", "b.png"), (WIDTH, HEIGHT))
        return pictures | self.beside | {self.file: self.content()}


def plain(number):
    """Write a number without an exponent or needless zeros."""
    return f"{number:.9f}".rstrip("0").rstrip(".")


def intervals(side):
    """Draw two different multiples of a quarter within a side, the smaller first."""
    quarters = st.integers(0, 4 * side)
    pairs = st.tuples(quarters, quarters).filter(lambda ends: abs(ends[0] - ends[1]) > 4)
    return pairs.map(lambda ends: (min(ends) / 4, max(ends) / 4))


good_boxes = st.tuples(intervals(WIDTH), intervals(HEIGHT)).map(
    lambda sides: (sides[0][0], sides[1][0], sides[0][1], sides[1][1])
)
# Some are invalid: their left side lies right of their right one.
box_lists = st.lists(
    st.tuples(good_boxes, st.sampled_from((False, False, False, True))).map(
        lambda drawn: (drawn[0][2], drawn[0][1], drawn[0][0], drawn[0][3]) if drawn[1] else drawn[0]
    ),
    min_size=1,
    max_size=4,
    unique=True,
)


def is_good(box):
    return box[0] < box[2]


def joined(draw, parts, gaps):
    """Put a drawn gap between parts."""
    pieces = []
    for part in parts:
        pieces += [*part, draw(st.sampled_from(gaps))]
    return pieces


VOC_CODECS = [  # codec, byte order mark, declared name, a label that it can hold
    ("utf-8", b"", "", "cell"),
    ("utf-8", b"", "UTF-8", "細胞 🔬"),
    ("utf-8", b"\xef\xbb\xbf", "utf-8", "Zelle &amp; Größe"),
    ("utf-16-le", b"\xff\xfe", "UTF-16", "細胞 🔬"),
    ("utf-16-be", b"\xfe\xff", "utf-16", "&#x7d30; 🔬"),
    ("utf-16-be", b"\xfe\xff", "", "细胞"),
    ("utf-16-le", b"", "UTF-16", "细胞"),
    ("latin-1", b"", "ISO-8859-1", "Größe"),
    ("cp1252", b"", "windows-1252", "5 €"),
]
VOC_AROUND = [
    ("", ""),
    (" \n\t", "\n"),
    ("<!-- 7 -->", ""),
    ("", "<?tool 8?><!-- was 9 -->"),
    ("<![CDATA[", "]]>"),
    (" <![CDATA[\n", " ]]>\t"),
    ("", "<unit>1</unit>"),
]
VOC_OTHERS = [
    "",
    "\n",
    "<!-- <object><bndbox><xmin>1</xmin></bndbox></object> -->",
    "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin></bndbox></part>",
    "<pose>&lt;bndbox&gt; &quot;1&quot;</pose>",
    "<xmin>3</xmin>",
    '<bndbox xmlns="urn:other"><xmin>4</xmin></bndbox>',
    "<polygon><xmin>5</xmin><bndbox/></polygon>",
]


@st.composite
def voc_drafts(draw):
    boxes = draw(box_lists)
    codec, mark, declared, label = draw(st.sampled_from(VOC_CODECS))
    base = draw(st.sampled_from((0, 1)))
    other = st.sampled_from(VOC_OTHERS)
    pieces = [f"<?xml version='1.0' encoding=\"{declared}\"?>\n"] if declared else []
    if draw(st.booleans()):
        pieces += ['<!DOCTYPE annotation SYSTEM "voc.dtd">']
    pieces += ["<annotation verified='yes'><filename>a.png</filename>", draw(other)]
    for n in range(len(boxes)):
        inner = []
        for which in draw(st.permutations(range(4))):
            before, after = draw(st.sampled_from(VOC_AROUND))
            name = CORNERS[which]
            inner += [draw(st.sampled_from((f"<{name}>", f"\n <{name} of='1'>"))), before]
            inner += [Slot(n, which), after, f"</{name}>"]
        inner += draw(
            st.sampled_from([[], ["<xmin>99</xmin>"], ["<n:ymin xmlns:n='u'>9</n:ymin>"]])
        )
        parts = [[f"<name>{label}</name>"], ["<bndbox>", *inner, "</bndbox>"]]
        parts = draw(st.permutations(parts))
        pieces += ["<object id='1'>", *joined(draw, parts, VOC_OTHERS)]
        pieces += [draw(st.sampled_from(("", "<bndbox><xmin>6</xmin></bndbox>")))]
        pieces += ["</object>", draw(other)]
        if draw(st.booleans()):
            pieces += ["<object xmlns='urn:other'><bndbox><xmin>1</xmin></bndbox></object>\r\n"]
    pieces += ["</annotation>\n<!-- end -->"]

    def numbers(box):
        x1, y1, x2, y2 = box
        return x1 + base, y1 + base, x2 + base - 1, y2 + base - 1

    spelled = st.sampled_from(("{}", "+{}", "00{}", "{}e0"))
    styles = [draw(spelled) for _ in boxes]
    options = {"format": "voc", "voc_base": base}
    return Draft("a.xml", pieces, boxes, numbers, styles, codec, mark, {}, options)


COCO_SPACES = ("", " ", "\n\t", "\r\n  ")
COCO_FIELDS = [
    '"score": 0.75',
    '"segmentation": [[1, 2, 3, 4], [5.5]]',
    '"note": "\\"bbox\\": [1, 2, 3, 4]}], {[ \\\\"',
    '"kept": {"bbox": [9, 9, 9, 9], "annotations": [{"bbox": []}]}',
    '"big": 123456789012345678901234567890',
    '"\\u00e9\\ud83d\\udd2c": "\\u007d"',
    '"細胞 }": null',
    '"bbox": [0, 0, 1, 1]',  # the last of a name counts
    '"bbox": {"bbox": [1]}',
    '"empty": {}, "none": [], "nan": NaN, "exact": 1E-7',
]
COCO_LISTS = ['"annotations": []', '"info": {"annotations": [1]}', '"licenses": [{"id": 1}]']


@st.composite
def coco_drafts(draw, results=False):
    boxes = draw(box_lists)
    space = st.sampled_from(COCO_SPACES)
    entries = []
    for n in range(len(boxes)):
        key = draw(st.sampled_from(('"bbox"', '"b\\u0062ox"')))
        box = [key, draw(space), ":", draw(space), "["]
        for which in range(4):
            box += [draw(space), Slot(n, which), draw(space), "]" if which == 3 else ","]
        fields = [[f'"image_id": {n % 2}'], ['"category_id": 5']]
        fields += [] if results else [[f'"id": {n + 10}']]
        extra = [[text] for text in draw(st.lists(st.sampled_from(COCO_FIELDS), max_size=3))]
        members = [*draw(st.permutations([*fields, *extra])), box]
        later = [[draw(st.sampled_from(COCO_FIELDS[:-3]))]] if draw(st.booleans()) else []
        entries.append(["{", *listed(draw, members + later), "}"])
    array = ["[", *listed(draw, entries), "]"]
    images = [{"id": n, "file_name": name} for n, name in enumerate(("a.png", "b.png"))]
    head = {"images": images, "categories": [{"id": 5, "name": "cell"}]}
    if results:
        pieces, file = array, "results.json"
        beside = {"pictures.json": json.dumps(head | {"annotations": []})}
    else:
        lists = [[json.dumps(key), ":", json.dumps(value)] for key, value in head.items()]
        extra = [[text] for text in draw(st.lists(st.sampled_from(COCO_LISTS), max_size=2))]
        before = draw(st.permutations([*lists, *extra]))
        cut = len(before) if any("annotations" in "".join(part) for part in extra) else 0
        at = draw(st.integers(cut, len(before)))
        members = [*before[:at], ['"annotations"', draw(space), ": ", *array], *before[at:]]
        pieces, file, beside = ["{", *listed(draw, members), "}"], "boxes.json", {}
    pieces = [draw(space), *pieces, draw(space)]
    mark = draw(st.sampled_from((b"", b"\xef\xbb\xbf")))
    styles = [draw(st.sampled_from(("{}", "{}e0", "{}E+0"))) for _ in boxes]
    options = {"annotations": [*beside, file]}

    def numbers(box):
        x1, y1, x2, y2 = box
        return x1, y1, x2 - x1, y2 - y1

    return Draft(file, pieces, boxes, numbers, styles, "utf-8", mark, beside, options)


def listed(draw, members):
    """Put commas between the members of an object or list, and drawn spaces around them."""
    pieces = []
    for n, member in enumerate(members):
        space = draw(st.sampled_from(COCO_SPACES))
        pieces += [space if n == 0 else f",{space}", *member, draw(st.sampled_from(COCO_SPACES))]
    return pieces


LINE_ENDS = ("\n", "\r\n", "\r", "\n\n", "\r\n \t\r\n")


@st.composite
def yolo_drafts(draw):
    boxes = draw(box_lists)
    space = st.sampled_from((" ", "\t", "  ", " \t ", "\u00a0", "\x0b"))
    lines = []
    for n in range(len(boxes)):
        line = [draw(st.sampled_from(("", " "))), "0"]
        for which in range(4):
            line += [draw(space), Slot(n, which)]
        score = st.sampled_from(("", " ", "\t0.875", " 1e-3 "))
        lines.append([*line, draw(score)])
    end = [draw(st.sampled_from(("", *LINE_ENDS)))] if draw(st.booleans()) else []
    pieces = joined(draw, lines[:-1], LINE_ENDS) + lines[-1] + end

    def numbers(box):
        x1, y1, x2, y2 = box
        centre = (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT
        return *centre, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT

    mark = draw(st.sampled_from((b"", b"\xef\xbb\xbf")))
    styles = [draw(st.sampled_from(("{}", "+{}", "0{}", "{}e0"))) for _ in boxes]
    return Draft("a.txt", pieces, boxes, numbers, styles, "utf-8", mark, {}, {"format": "yolo"})


CSV_REMARKS = (
    "",
    "dark",
    '"a{}b"',
    '"say ""hi"" {}"',
    '"two\nlines\r\nof text"',
    'half "quoted"',
    "é",
)
CSV_AROUND = (("", ""), (" ", "  "), ('"', '"'), ('" ', ' "'), ('"', '" '))


@st.composite
def csv_drafts(draw):
    boxes = draw(box_lists)
    delimiter = draw(st.sampled_from((",", ";", "\t")))
    names = [st.sampled_from(pair) for pair in (("xmin", "X1"), ("ymin", "y1 "), ("xmax", "x2"))]
    titles = [*(draw(name) for name in names), "ymax", draw(st.sampled_from(("image", "File")))]
    titles += ["label", f'"remark {delimiter}"', "more"]
    columns = draw(st.permutations(range(len(titles))))
    rows = [[[titles[column]] for column in columns]]
    for n in range(len(boxes)):
        remarks = [draw(st.sampled_from(CSV_REMARKS)).format(delimiter) for _ in range(2)]
        cells = [["ab"[n % 2] + ".png"], ['"ce""ll"'], *([remark] for remark in remarks)]
        around = [draw(st.sampled_from(CSV_AROUND)) for _ in range(4)]
        corners = [[left, Slot(n, which), right] for which, (left, right) in enumerate(around)]
        rows.append([[*corners, *cells][column] for column in columns])
    lines = []
    for row in rows:
        line = [piece for cell in row for piece in (delimiter, *cell)]
        lines.append(line[1:])
    ends = LINE_ENDS if delimiter != "\t" else LINE_ENDS[:-1]  # there a tab alone is two cells
    last = joined(draw, lines[-1:], ends) if draw(st.booleans()) else lines[-1]
    pieces = joined(draw, lines[:-1], ends) + last
    mark = draw(st.sampled_from((b"", b"\xef\xbb\xbf")))
    styles = [draw(st.sampled_from(("{}", "+{}", "0{}", "{}e0"))) for _ in boxes]
    return Draft("boxes.csv", pieces, boxes, tuple, styles, "utf-8", mark)


DRAFTS = {
    "voc": voc_drafts(),
    "coco": coco_drafts(),
    "results": coco_drafts(results=True),
    "yolo": yolo_drafts(),
    "csv": csv_drafts(),
}
