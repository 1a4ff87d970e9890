"""The page to review boxes, in a browser: keys, mouse, undo, reload, and what it saves."""

import json
import re
import shutil

import pytest

from lightning_bbox.annotations.read import read_annotations
from lightning_bbox.cli.main import main
from tests import annotation_files
from tests.reviews import held_by, reviewed

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
    """A headless browser; Debian's package chromium and PyPI's playwright bring one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; see extra test")
    if BROWSER is None:
        pytest.skip("no chromium; on Debian, apt install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Seventy boxes of two classes in seven pictures."""
    each = [
        (("cell", "plate")[n % 2], (4.0 + 8 * n, 5.0 + n, 34.0 + 8 * n, 30.0 + n))
        for n in range(10)
    ]
    scene = {f"p{n}": (160, 90, each) for n in range(7)}
    monkeypatch.setattr(annotation_files, "SCENE", scene)
    annotation_files.write_csv(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def opened(browser, root, tmp_path):
    """Return the page in a browser, what it knows, and what went wrong in it."""
    path = reviewed(root, tmp_path / "page")
    page = browser.new_context().new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda each: problems.append(each.url) if "http" in each.url[:5] else None)
    page.goto(path.as_uri())
    yield page, held_by(path)["boxes"]
    page.context.close()
    assert problems == []


def counts(page):
    words = re.findall(r"(\d+) (\w+)", page.inner_text("#counts"))
    return {word: int(number) for number, word in words if int(number)}


def saved(page, tmp_path):
    with page.expect_download() as found:
        page.click("#export")
    path = tmp_path / "decisions.json"
    found.value.save_as(path)
    return json.loads(path.read_text())["boxes"]


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def middle_of(page, side):
    place = page.locator(f"[data-side='{side}'] .hit").bounding_box()
    return place["x"] + place["width"] / 2, place["y"] + place["height"] / 2


def drag(page, side, right, down):
    x, y = middle_of(page, side)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right / 2, y + down / 2)
    page.mouse.move(x + right, y + down)
    page.mouse.up()


def test_keys_decide_and_go_on(opened, tmp_path):
    page, _ = opened
    press(page, "a", "r", "ArrowRight", "A", "ArrowLeft", "ArrowLeft", "c")
    assert counts(page) == {"accepted": 2, "rejected": 1, "undecided": 67}
    words = [box["decision"] for box in saved(page, tmp_path)]
    assert words == ["accept", "reject", "undecided", "accept"] + ["undecided"] * 66


def test_an_edge_moves_by_keys_pixel_by_pixel(opened, tmp_path):
    page, boxes = opened
    press(page, "e", "ArrowLeft", "Shift+ArrowLeft", "Control+ArrowRight", "ArrowUp")
    press(page, "e", "e", "e", "ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "bottom edge"
    left, top, right, bottom = boxes[0]["new"]
    expected = [max(left - 10.9, 0.1), top, right, bottom + 1]
    box = saved(page, tmp_path)[0]
    assert box["decision"] == "edit"
    assert box["box"] == pytest.approx(expected, abs=1.1e-3)
    press(page, "Escape", "ArrowRight", "a")
    assert counts(page) == {"edited": 1, "accepted": 1, "undecided": 68}


@pytest.mark.parametrize(
    ("side", "right", "down"), [(0, -20, 7), (1, 5, 30), (2, 25, 0), (3, 0, -40)]
)
def test_an_edge_is_dragged_as_far_as_the_mouse_goes(opened, tmp_path, side, right, down):
    page, boxes = opened
    shown = page.locator("#view").bounding_box()
    drag(page, side, right, down)
    view = page.evaluate("document.getElementById('drawing').getAttribute('viewBox')").split()
    pixel = float(view[2]) / shown["width"]
    expected = list(boxes[0]["new"])
    expected[side] += (down if side % 2 else right) * pixel
    box = saved(page, tmp_path)[0]
    assert box["decision"] == "edit"
    assert box["box"] == pytest.approx(expected, abs=2e-3)


def test_a_rejected_box_is_dragged_from_where_it_was(opened, tmp_path):
    page, boxes = opened
    press(page, "r", "ArrowLeft")
    drag(page, 3, 0, 20)
    given = saved(page, tmp_path)[0]["box"]
    assert given[:3] == boxes[0]["old"][:3]
    assert given[3] > boxes[0]["old"][3]


def test_a_box_never_leaves_its_picture_or_turns_over(opened, tmp_path):
    page, _ = opened
    drag(page, 0, 3000, 0)
    press(page, "e")
    for _ in range(20):
        press(page, "Shift+ArrowUp")
    left, top, right, bottom = saved(page, tmp_path)[0]["box"]
    assert 0 <= left < right <= 160
    assert 0 <= top < bottom <= 90
    assert top == 0


def test_undo_goes_back_step_by_step_and_survives_a_reload(opened, tmp_path):
    page, _ = opened
    press(page, "a", "a", "r", "e", "ArrowLeft", "ArrowLeft")
    page.reload()
    assert counts(page) == {"accepted": 2, "rejected": 1, "edited": 1, "undecided": 66}
    first = saved(page, tmp_path)[3]["box"][0]
    press(page, "u")
    assert saved(page, tmp_path)[3]["box"][0] == pytest.approx(first + 1, abs=1e-3)
    press(page, "u", "Control+z")
    assert counts(page) == {"accepted": 2, "undecided": 68}
    page.click("#undo")
    press(page, "u", "u")
    assert counts(page) == {"undecided": 70}
    assert page.is_disabled("#undo")


def test_filters_by_class_shift_probability_and_decision(opened):
    page, boxes = opened

    def shown():
        return int(re.search(r"(\d+) boxes", page.inner_text("#page"))[1])

    page.select_option("#class", label="plate")
    assert shown() == sum(box["label"] == "plate" for box in boxes)
    page.select_option("#class", label="all")
    shifts = [max(abs(n - o) for n, o in zip(b["new"], b["old"], strict=True)) for b in boxes]
    page.fill("#least", "3")
    page.fill("#most", "3.5")
    page.press("#most", "Tab")
    assert shown() == sum(3 <= shift <= 3.5 for shift in shifts)
    page.fill("#least", "")
    page.fill("#most", "")
    page.fill("#likely", "50")
    page.press("#likely", "Tab")
    assert shown() == sum(box["wrong"] >= 0.5 for box in boxes)
    page.click("#all")
    assert counts(page)["accepted"] == shown()
    page.fill("#likely", "")
    page.press("#likely", "Tab")
    page.select_option("#state", "undecided")
    assert shown() == counts(page)["undecided"]
    page.select_option("#state", "reject")
    assert shown() == 0
    press(page, "a", "r", "e", "ArrowRight", "End")
    assert "No box is" in page.evaluate("getComputedStyle(grid, '::after').content")


def test_orders_put_first_what_they_say(opened):
    page, boxes = opened
    shifts = [max(abs(n - o) for n, o in zip(b["new"], b["old"], strict=True)) for b in boxes]

    def first():
        return int(page.locator(".box").first.get_attribute("data-box"))

    page.select_option("#order", "shift")
    assert shifts[first()] == max(shifts)
    page.select_option("#order", "gain")
    assert boxes[first()]["gain"] == max(box["gain"] for box in boxes)
    page.select_option("#order", "file")
    assert boxes[first()]["id"] == "boxes.csv:2"


def test_pages_hold_sixty_boxes_and_keys_cross_them(opened):
    page, _ = opened
    assert page.locator(".box").count() == 60
    press(page, "End")
    assert page.locator(".box").count() == 10
    assert "page 2 of 2" in page.inner_text("#page")
    press(page, "PageUp")
    assert page.locator(".box[aria-selected=true]").get_attribute("data-box") == "9"
    page.click("#after")
    assert page.locator(".box[aria-selected=true]").get_attribute("data-box") == "60"


def test_what_a_screen_reader_says(opened):
    page, boxes = opened
    option = page.locator(".box").nth(1)
    assert option.get_attribute("role") == "option"
    assert "undecided" in option.get_attribute("aria-label")
    press(page, "ArrowRight", "a")
    assert "accepted" in option.get_attribute("aria-label")
    assert boxes[1]["id"] in page.inner_text("[role=status]")
    assert page.evaluate("document.activeElement.getAttribute('aria-posinset')") == "3"
    unnamed = page.evaluate("""() => [...document.querySelectorAll(
        "button, input, select, [role=slider], [role=option], [role=listbox], progress, img")]
        .filter(each => !(each.getAttribute("aria-label") || each.textContent.trim() ||
            each.labels?.length || each.hasAttribute("alt"))).map(each => each.outerHTML)""")
    assert unnamed == []
    assert page.locator("[tabindex='0'].box").count() == 1


def test_decisions_are_loaded_again_where_they_fit(opened, tmp_path):
    page, _ = opened
    press(page, "a", "r", "e", "ArrowLeft")
    before = saved(page, tmp_path)
    press(page, "u", "u", "u")
    page.set_input_files("#load", tmp_path / "decisions.json")
    page.wait_for_function("document.getElementById('counts').textContent.startsWith('1 ')")
    assert saved(page, tmp_path) == before
    (tmp_path / "other.json").write_text('{"key": 1}')
    page.set_input_files("#load", tmp_path / "other.json")
    page.wait_for_function("said.textContent.includes('holds no decisions')")


def test_without_room_in_the_browser_the_page_says_so_and_works(browser, root, tmp_path):
    path = reviewed(root, tmp_path / "page")
    page = browser.new_context().new_page()
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
    )
    page.goto(path.as_uri())
    press(page, "a")
    assert "save your decisions" in page.inner_text("[role=alert]")
    assert counts(page) == {"accepted": 1, "undecided": 69}
    page.context.close()


def test_a_page_without_boxes_opens(browser, root, tmp_path):
    path = reviewed(root, tmp_path / "page", moves=False)
    page = browser.new_context().new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(path.as_uri())
    press(page, "a", "u", "e", "End")
    assert problems == []
    page.context.close()


def test_the_files_equal_what_was_decided_in_the_browser(opened, root, tmp_path):
    page, _ = opened
    press(page, "a", "r", "e", "ArrowLeft", "Escape", "ArrowRight", "a")
    decided = saved(page, tmp_path)
    command = ["apply", str(tmp_path / "decisions.json"), f"--runs={tmp_path}", "--name=out"]
    assert main(command) == 0
    shutil.copy(tmp_path / "out" / "refined" / "boxes.csv", root)
    table = read_annotations(root)
    found = dict(zip(table.ids, table.boxes.tolist(), strict=True))
    for box in decided:
        which = {"accept": "new", "edit": "box"}.get(box["decision"], "old")
        assert found[box["id"]] == pytest.approx(box[which], abs=1e-3)
