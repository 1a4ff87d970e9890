"""A cache's file is used where it is whole and ours, and replaced where it is ours."""

import pytest

from lightning_bbox.core.cache_file import CacheFile, Content
from lightning_bbox.core.errors import BadInput

CONTENT = bytes(range(200))


@pytest.fixture
def file(tmp_path):
    file = CacheFile(tmp_path / "a.cache", {"seed": "0", "weights": "abc"}, "--cache")
    with file.making():
        file.write(len(CONTENT), [CONTENT[:50], memoryview(CONTENT)[50:]], {"shape": [2, 100]})
    return file


def test_a_file_holds_what_was_written_and_says_what_it_is(file):
    found = file.open()
    with found.file:
        assert found.start % 4096 == 0
        assert found.file.read() == CONTENT
        assert found.facts == {"shape": [2, 100]}
    assert CacheFile(file.path.with_name("b"), file.key, "").open() == ""


def test_a_file_of_another_key_is_stale(file):
    other = CacheFile(file.path, {"seed": "1", "weights": "abc", "more": ""}, "--cache")
    assert other.open() == "stale (made of other seed, more)"


def test_any_change_is_noticed_wherever_it_is(file):
    whole, refused, problems = file.path.read_bytes(), 0, set()
    places = [*range(whole.index(b"  ") + 2), 4000, 4095, *range(4096, len(whole), 20)]
    for place in places:
        file.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            problem = file.open()
        except BadInput:
            refused += 1
        else:
            assert not isinstance(problem, Content), place
            problems.add(problem.partition(" ")[0])
    assert 0 < refused < len(places)
    assert problems == {"damaged"}


def test_a_file_that_was_only_copied_is_as_good(file):
    file.path.write_bytes(file.path.read_bytes())
    found = file.open()
    with found.file:
        assert found.file.read() == CONTENT


def test_pieces_that_fail_leave_the_file_of_before(file):
    before = file.path.read_bytes()

    def pieces():
        yield CONTENT[:10]
        msg = "a picture can't be decoded"
        raise BadInput(msg)

    with pytest.raises(BadInput, match="decoded"):
        file.write(200, pieces())
    assert file.path.read_bytes() == before
    assert [path.suffix for path in file.path.parent.iterdir()].count(".tmp") == 0
