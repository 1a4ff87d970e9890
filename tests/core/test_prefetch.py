"""Work done ahead: the same results in the same order, and threads that end."""

import threading
import time

import pytest

from lightning_bbox.core.prefetch import ahead


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_items_come_in_order_with_what_was_made_of_them():
    def work(number):
        time.sleep(0.001 * (number % 3))
        return -number

    for count in (0, 1, 2, 3, 20):
        for depth, threads in ((1, 1), (2, 1), (5, 4)):
            found = list(ahead(range(count), work, depth, threads))
            assert found == [(number, -number) for number in range(count)]
    assert not alive()


def test_items_are_taken_no_farther_ahead_than_asked():
    taken, used = [], []
    for item, _ in ahead((taken.append(n) or n for n in range(10)), str, depth=2):
        used.append(item)
        assert len(taken) <= len(used) + 2
    assert taken == used == list(range(10))


def test_the_first_item_is_worked_on_by_the_caller_and_others_while_it_is_used():
    names, done = [], threading.Event()

    def work(number):
        names.append(threading.current_thread())
        if number == 1:
            done.set()
        return number

    walk = ahead(range(3), work, depth=2)
    assert next(walk) == (0, 0)
    assert done.wait(5)
    assert names[0] is threading.current_thread() is not names[1]
    walk.close()


def test_an_error_comes_where_its_item_would_and_ends_the_threads():
    def work(number):
        if number == 3:
            msg = "three"
            raise KeyError(msg)
        return number

    walk, seen = ahead(range(9), work, depth=2), []
    with pytest.raises(KeyError, match="three"):
        seen.extend(item for item, _ in walk)
    assert not alive()
    walk = ahead(range(9), work, depth=2)
    assert [next(walk)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(walk)


@pytest.mark.parametrize("leave", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_the_thread_ends_with_a_walk_that_is_left(leave):
    walk = ahead(range(100), lambda _: time.sleep(0.001), depth=2)
    next(walk)
    assert alive()
    if leave is GeneratorExit:
        walk.close()
    else:
        with pytest.raises(leave):
            walk.throw(leave())
    assert not alive()


def test_the_thread_has_ended_when_the_last_item_is_there():
    walk = ahead(range(3), str, depth=2)
    for _ in range(3):
        next(walk)
    assert not alive()  # nobody asks for a fourth
