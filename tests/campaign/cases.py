"""The cases of the campaign against the readers: data sets made up, or real ones maltreated."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from tests.campaign.dice import Dice
from tests.campaign.mutations import mutated, mutated_picture

WIDTH, HEIGHT = 64, 48
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class Case:
    """A data set, or a picture.

    Args:
        kind: The reader it is for.
        files: What is on the disk, by path.
        options: How it is to be read.
    """

    kind: str
    files: dict[str, bytes]
    options: dict[str, Any] = field(default_factory=dict)


def case_of(seed: int, number: int, data: Path | None) -> Case:
    """Make a case, a function of the seed, its number, and whether there is real data.

    Args:
        seed: Another seed, other cases.
        number: Cases of the kinds take turns.
        data: Folder of the real data sets, if they are there.
    """
    kind = KINDS[number % len(KINDS)]
    dice = Dice(f"{seed}:{number}")
    if kind == "picture":
        name, content = dice.choice(_pictures(data))
        if dice.chance(0.98):
            content = mutated_picture(content, dice)
        return Case(kind, {f"a.{name}": content})
    real = _real_sets(data)[kind] if data else []
    case = dice.choice(real) if real and dice.chance(0.5) else _MAKERS[kind](dice)
    case = Case(kind, dict(case.files), dict(case.options))
    if case in real or dice.chance(0.3):
        words = [file for file, content in case.files.items() if content[:4] != b"\x89PNG"]
        file = dice.choice(words)
        tokens = _TOKENS["yaml" if file.endswith(".yaml") else kind]
        case.files[file] = mutated(case.files[file], dice, tokens)
    if dice.chance(0.1):
        case.options["on_bad"] = "error"
    if dice.chance(0.1):
        case.options["group_pattern"] = r"(.)[^/]*$"
    if dice.chance(0.1):
        names = "\n".join(dice.some(["a", "./b.png", "c"])).encode()
        case.files["split.txt"] = mutated(names, dice, ()) if dice.chance(0.5) else names
        case.options["split_file"] = "split.txt"
    return case


@cache
def _blank(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def _set(kind: str, files: dict[str, str | bytes], **options: str | int | list[str]) -> Case:
    encoded = {name: c.encode() if isinstance(c, str) else c for name, c in files.items()}
    return Case(kind, encoded, options)


_XML_ENCODINGS = (
    *("utf-8", "UTF-16", "ISO-8859-1", "windows-1252", "us-ascii", "koi8-r", "cp037", "utf-7"),
    *("idna", "rot13", "hex", "undefined", "shift_jis", "unicode_escape", "x", "utf-16le"),
)


def _voc(dice: Dice) -> Case:
    files: dict[str, str | bytes] = {}
    for stem in "abc"[: dice.randint(1, 3)]:
        files[f"Annotations/{stem}.xml"] = _voc_file(dice, stem)
        files[f"JPEGImages/{stem}.png"] = _blank(WIDTH, HEIGHT)
    return _set("voc", files, voc_base=dice.randint(0, 1))


def _voc_file(dice: Dice, stem: str) -> bytes:
    name = f"<filename>{_xml_word(dice, stem + '.png')}</filename>"
    size = f"<size><width>{dice.number(WIDTH)}</width><height>{dice.number(HEIGHT)}</height></size>"
    objects = [_voc_object(dice) for _ in range(dice.randint(0, 4))]
    body = dice.space().join(dice.some([name, size, *objects]))
    encoding = dice.choice(_XML_ENCODINGS[:4] if dice.chance(0.8) else _XML_ENCODINGS)
    head = "" if dice.chance(0.5) else f"<?xml version='1.0' encoding='{encoding}'?>"
    head += "<!DOCTYPE annotation SYSTEM 'voc.dtd'>" if dice.chance(0.1) else ""
    space = dice.choice(("", "", " xmlns:a='urn:a'", " id='1'"))
    space = " xmlns='urn:a'" if dice.chance(dice.odd) else space
    text = f"{head}<annotation{space}>{body}</annotation>"
    try:
        plain = "utf-16" if dice.chance(0.1) else "utf-8"
        return text.encode(encoding if "<?" in head else plain, "xmlcharrefreplace")
    except (LookupError, UnicodeError):
        return text.encode()


def _voc_object(dice: Dice) -> str:
    x1, y1, x2, y2 = dice.box(WIDTH - 1, HEIGHT - 1)
    corners = (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2 + 1), ("ymax", y2 + 1))
    tags = [f"<{tag}>{_voc_number(dice, edge)}</{tag}>" for tag, edge in corners]
    box = f"<bndbox>{dice.space().join(dice.some(tags))}</bndbox>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    parts = [f"<name>{_xml_word(dice, 'cell')}</name>", box, *([part] if dice.chance(0.2) else [])]
    space = " xmlns='urn:b'" if dice.chance(dice.odd) else ""
    return f"<object{space}>{dice.space().join(dice.some(parts))}</object>"


def _xml_word(dice: Dice, usual: str) -> str:
    word = dice.word(usual)
    return word if dice.chance(0.2) else escape("".join(filter(str.isprintable, word)))


def _voc_number(dice: Dice, edge: float) -> str:
    number = dice.number(edge)
    if not dice.chance(0.1):
        return number
    around = ("<!-- 1 -->{}", "<![CDATA[{}]]>", "{}<?p 1?>", " {}\n", "{}<u>1</u>", "&#48;{}", "{}")
    return dice.choice(around).format(number)


def _coco(dice: Dice) -> Case:
    stems = "abc"[: dice.randint(1, 3)]
    images, boxes = [], []
    for n, stem in enumerate(stems):
        image = [("id", str(n)), ("file_name", _text(dice, f"{stem}.png"))]
        sizes = [("width", dice.number(WIDTH)), ("height", dice.number(HEIGHT))]
        images.append(_object(dice, image + (sizes if dice.chance(0.5) else [])))
        boxes += [_coco_box(dice, n, 10 * n + k) for k in range(dice.randint(0, 3))]
    dice.shuffle(boxes)
    classes = [
        _object(dice, [("id", str(n)), ("name", _text(dice, f"class{n}"))]) for n in range(2)
    ]
    lists = [("images", images), ("annotations", boxes), ("categories", classes)]
    members = [(key, f"[{_joined(dice, dice.some(entries))}]") for key, entries in lists]
    document = _object(dice, [*members, ("info", '{"annotations": [{"bbox": []}]}')])
    files: dict[str, str | bytes] = {f"{stem}.png": _blank(WIDTH, HEIGHT) for stem in stems}
    if dice.chance(0.2):
        files |= {"pictures.json": document, "results.json": f"[{_joined(dice, boxes)}]"}
        return _set("coco", files, annotations=["pictures.json", "results.json"])
    mark = "\ufeff" if dice.chance(0.1) else ""
    file = dice.choice(("boxes.json", "instances_train2017.json", "val/_annotations.coco.json"))
    options = {"format": "coco", "images": "."} if dice.chance(0.5) or "/" in file else {}
    return _set("coco", files | {file: mark + document}, **options)


def _coco_box(dice: Dice, image: int, identity: int) -> str:
    x1, y1, x2, y2 = dice.box(WIDTH, HEIGHT)
    numbers = dice.some([dice.number(n) for n in (x1, y1, x2 - x1, y2 - y1)], in_order=True)
    known = [("id", str(identity)), ("image_id", dice.word(str(image))), ("category_id", "1")]
    more = [("score", dice.number(0.5)), ("note", _text(dice, "bbox [1, 2]}")), ("iscrowd", "0")]
    return _object(dice, [*known, ("bbox", f"[{_joined(dice, numbers)}]"), *more])


def _object(dice: Dice, members: list[tuple[str, str]]) -> str:
    parts = dice.some([f'"{key}"{dice.space()}:{dice.space()}{value}' for key, value in members])
    return "{" + _joined(dice, parts) + "}"


def _joined(dice: Dice, parts: list[str]) -> str:
    between = f"{dice.space()},{dice.space()}"
    return dice.space() + between.join(parts) + dice.space()


def _text(dice: Dice, usual: str) -> str:
    return json.dumps(dice.word(usual), ensure_ascii=dice.chance(0.5))


def _yolo(dice: Dice) -> Case:
    files: dict[str, str | bytes] = {}
    for stem in "abc"[: dice.randint(1, 3)]:
        lines = [_yolo_line(dice) for _ in range(dice.randint(0, 4))]
        mark = "\ufeff" if dice.chance(0.1) else ""
        files[f"labels/{stem}.txt"] = mark + dice.choice(("\n", "\r\n", "\r")).join(lines)
        files[f"images/{stem}.png"] = _blank(WIDTH, HEIGHT)
    names = [dice.word(name) for name in ("cell", "plate", "tile")]
    listed = {
        "classes.txt": "\n".join(names),
        "data.yaml": f"names: [{', '.join(names)}]\n",
        "labels/data.yaml": "names:\n"
        + "".join(f"  {n}: {name}\n" for n, name in enumerate(names)),
        "data.yml": f"a: &a {{x: 1}}\nnames: {json.dumps(names)}\n",
    }
    file = dice.choice(("", *listed))
    return _set("yolo", files | ({file: listed[file]} if file else {}))


def _yolo_line(dice: Dice) -> str:
    x1, y1, x2, y2 = dice.box(WIDTH, HEIGHT)
    numbers = (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT
    cells = [dice.word(str(dice.randint(0, 2))), *(dice.number(number) for number in numbers)]
    cells += [dice.number(0.5)] if dice.chance(0.3) else []
    return dice.choice((" ", " ", "\t", "  ", "\u3000")).join(dice.some(cells, in_order=True))


def _csv(dice: Dice) -> Case:
    stems = "abc"[: dice.randint(1, 3)]
    delimiter = dice.choice(",;\t")
    columns = dice.some(["image", *CORNERS, "label", "group", "remark"])
    lines = [delimiter.join(columns)]
    for stem in stems:
        for _ in range(dice.randint(0, 4)):
            edges = dict(zip(CORNERS, dice.box(WIDTH, HEIGHT), strict=True))
            row = {name: dice.number(edge) for name, edge in edges.items()}
            row |= {"image": dice.word(f"{stem}.png"), "label": dice.word("cell")}
            row |= {"group": "g", "remark": dice.word("dark")}
            cells = [_cell(dice, row[name]) for name in columns]
            lines.append(delimiter.join(cells + [""] * (dice.times() - 1)))
    ends = dice.choice(("\n", "\n", "\r\n", "\r", "\n \n"))
    text = ("\ufeff" if dice.chance(0.1) else "") + ends.join(lines) + dice.choice(("", ends))
    files: dict[str, str | bytes] = {f"{stem}.png": _blank(WIDTH, HEIGHT) for stem in stems}
    file = dice.choice(("boxes.csv", "val.tsv"))
    options = {"annotations": [file]} if dice.chance(0.7) else {}
    return _set("csv", files | {file: text}, **options)


def _cell(dice: Dice, text: str) -> str:
    if dice.chance(0.8):
        return text
    quoted = '"' + text.replace('"', '""') + '"'
    if dice.chance(dice.odd):
        return dice.choice((" " + quoted, quoted + "0", text + '"', '"' + text))
    return dice.choice((quoted, f" {text} ", quoted + " "))


_MAKERS: dict[str, Callable[[Dice], Case]] = {
    "voc": _voc,
    "coco": _coco,
    "yolo": _yolo,
    "csv": _csv,
}
KINDS = (*_MAKERS, "picture")
_TOKENS = {
    "voc": (
        *("<object>", "</object>", "<bndbox>", "</bndbox>", "<xmin>", "</xmin>", "<xmax>5</xmax>"),
        *("<!--", "-->", "<![CDATA[", "]]>", "&amp;", "&#0;", "&#53;", "&#x110000;", "&bogus;"),
        *("<!DOCTYPE annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]>", "<?xml version='1.1'?>"),
        *("<?p?>", " xmlns='urn:a'", "xml:space='preserve'", "<a:xmin xmlns:a='b'>1</a:xmin>"),
        *("<name/>", "<object/>", "<size/>", "<annotation>", "</annotation>", "\ufeff"),
        *(f"<?xml version='1.0' encoding='{name}'?>" for name in _XML_ENCODINGS),
    ),
    "coco": (
        *("[", "]", "{", "}", ",", ":", '"', "\\", "null", "true", "NaN", "-Infinity", "1e400"),
        *('"bbox"', '"bbox": [1, 2, 3, 4], ', '"annotations": [], ', '"images": {}, ', '"id": 1, '),
        *('"image_id": null, ', '"iscrowd": 1, ', '"\\ud800"', '"\\u0000"', "\ufeff", "//", "'"),
        *('"file_name": "..", ', '"width": -1, ', '"height": 1e999, ', '"id": "a\\nb", ', "-0"),
        *('"name": "\\udfff", ', '"file_name": "a\\u0000", ', '"id": 1.0, ', '"id": true, '),
    ),
    "yolo": ("\n", "0 .5 .5 .1 .1\n", "7 ", "-1 ", " 1e999", "\t", "nan", "\ufeff", "\x1c", "0.5"),
    "csv": (
        ",",
        ";",
        "\t",
        '"',
        '""',
        "\n",
        "\r",
        '"\n',
        "\0",
        "a.png",
        "xmin",
        "image,",
        "\ufeff",
    ),
    "yaml": (
        *(
            "&a ",
            "*a",
            "<<: *a\n",
            "!!int ''",
            "!!float ''",
            "!!timestamp x",
            "!!bool x",
            "!!binary =",
        ),
        *("!!python/object:os.system x", "? ", "- ", "|\n", ">\n", "%YAML 9.9\n", "---\n", "...\n"),
        *(
            "=",
            "[",
            "{",
            "]",
            "}",
            "names: *a\n",
            "0: ",
            "1: [",
            "2001-13-45",
            "1:99:99",
            "0x",
            "\0",
        ),
        *("\t", "!!set {a}", "!!omap [a]", "!!pairs [a]", "!!merge x", "0b", "0o9", ".inf: 1\n"),
    ),
}


@cache
def _real_sets(data: Path) -> dict[str, list[Case]]:
    """Take small parts of the real data sets, with blank pictures of the same sizes."""
    voc = [_real_voc(data / "bccd", start) for start in range(0, 12, 3)]
    return {
        "voc": voc,
        "coco": [_real_coco(data / "rbc/valid", start) for start in range(0, 8, 2)],
        "yolo": [_as_yolo(case) for case in voc],
        "csv": [_real_csv(data / "deeppcb", start) for start in (0, 4000, 9000)],
    }


def _real_voc(root: Path, start: int) -> Case:
    files: dict[str, str | bytes] = {}
    for path in sorted((root / "Annotations").glob("*.xml"))[start : start + 3]:
        files[f"Annotations/{path.name}"] = path.read_bytes()
        files[f"JPEGImages/{path.stem}.png"] = _blank(640, 480)
    return _set("voc", {k: v.replace(b".jpg", b".png") for k, v in files.items()})


def _real_coco(root: Path, start: int) -> Case:
    document = json.loads((root / "_annotations.coco.json").read_text())
    document["images"] = document["images"][start : start + 2]
    kept = {image["id"] for image in document["images"]}
    boxes = [box for box in document["annotations"] if box["image_id"] in kept]
    document["annotations"] = boxes[:12]
    blank = {image["file_name"]: _blank(416, 416) for image in document["images"]}
    return _set("coco", blank | {"_annotations.coco.json": json.dumps(document, indent=4)})


def _as_yolo(case: Case) -> Case:
    files: dict[str, str | bytes] = {"classes.txt": "RBC\nWBC\nPlatelets\n"}
    for file, content in case.files.items():
        name = PurePosixPath(file)
        if name.suffix == ".png":
            files[f"images/{name.name}"] = content
            continue
        lines = []
        for node in ElementTree.fromstring(content).iterfind("object"):
            x1, y1, x2, y2 = (int(node.findtext(f"bndbox/{tag}", "")) for tag in CORNERS)
            centre = f"{(x1 - 1 + x2) / 2 / 640} {(y1 - 1 + y2) / 2 / 480}"
            label = ("RBC", "WBC", "Platelets").index(node.findtext("name", ""))
            lines.append(f"{label} {centre} {(x2 - x1 + 1) / 640} {(y2 - y1 + 1) / 480}\n")
        files[f"labels/{name.stem}.txt"] = "".join(lines)
    return _set("yolo", files)


def _real_csv(root: Path, start: int) -> Case:
    lines = (root / "boxes.csv").read_text().split("\n")
    rows = lines[start + 1 : start + 13]
    names = {row[0] for row in csv.reader(rows)}
    return _set(
        "csv", dict.fromkeys(names, _blank(640, 640)) | {"b.csv": "\n".join([lines[0], *rows])}
    )


@cache
def _pictures(data: Path | None) -> list[tuple[str, bytes]]:
    """Save small pictures in every format and mode, and take some real ones."""
    pixels = np.random.default_rng(0).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    smooth = np.tile(np.arange(40, dtype=np.uint8), (30, 1))
    rgb, grey = Image.fromarray(pixels), Image.fromarray(smooth)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    wide = Image.fromarray(smooth.astype(np.uint16) * 999)
    palette = rgb.quantize(16)
    saved: list[tuple[str, Image.Image, dict[str, Any]]] = [
        *(("png", rgb.convert(mode), {}) for mode in ("RGB", "RGBA", "L", "LA", "1", "P")),
        ("png", wide, {}),
        ("png", rgb, {"exif": exif}),
        ("png", palette, {"transparency": 3}),
        ("png", rgb, {"save_all": True, "append_images": [rgb.rotate(90)], "duration": 5}),
        *(("jpg", image, {"exif": exif}) for image in (rgb, grey, rgb.convert("CMYK"))),
        ("jpg", grey, {"progressive": True, "restart_marker_rows": 1}),
        ("gif", palette, {"transparency": 1}),
        (
            "gif",
            palette,
            {"save_all": True, "append_images": [rgb.rotate(9).quantize(8)], "loop": 0},
        ),
        *(("bmp", rgb.convert(mode), {}) for mode in ("RGB", "L", "1", "P", "RGBA")),
        ("webp", rgb, {"lossless": True, "exif": exif}),
        ("webp", rgb.convert("RGBA"), {"quality": 40}),
        ("webp", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        *(("ppm", rgb.convert(mode), {}) for mode in ("RGB", "L", "1")),
        ("tif", wide, {}),
        *(
            ("tif", rgb.convert(mode), {"compression": name, "exif": exif})
            for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
            for mode in ("RGB", "L")
        ),
        ("tif", rgb.convert("1"), {"compression": "group4"}),
        ("tif", rgb, {"save_all": True, "append_images": [rgb]}),
        # Pillow looks at the content, so a file of any suffix may be one of these.
        *((name, rgb, {}) for name in ("avif", "dds", "ico", "jp2", "pcx", "sgi", "tga")),
        *((name, palette, {}) for name in ("pcx", "tga")),
        *((name, rgb.convert("1"), {}) for name in ("msp", "xbm")),
        ("mpo", rgb, {"save_all": True, "append_images": [rgb]}),
        ("icns", rgb.resize((16, 16)), {}),
    ]
    formats = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}
    made = []
    for suffix, image, options in saved:
        buffer = BytesIO()
        image.save(buffer, formats.get(suffix, suffix.upper()), **options)
        made.append((suffix, buffer.getvalue()))
    plain = b"P3\n2 2\n255\n" + b"1 2 3 " * 4
    made += [
        ("ppm", plain),
        ("ppm", b"P2\n# a\n2 2\n65535\n1 2 3 65535\n"),
        ("ppm", b"P1\n2 2\n0110"),
    ]
    if data:
        real = [
            data / "bccd/JPEGImages/BloodImage_00000.jpg",
            *sorted(data.glob("deeppcb/images/*"))[:2],
        ]
        made += [(path.suffix[1:], path.read_bytes()) for path in real]
    return made
