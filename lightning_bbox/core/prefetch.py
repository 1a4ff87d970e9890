"""Work that is done ahead, in threads, while what was done before is used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    items: Iterable[T], work: Callable[[T], R], depth: int, threads: int = 1
) -> Generator[tuple[T, R], None, None]:
    """Yield items with what work makes of them, in order, some of them worked on ahead.

    An error of the work is raised where its item would come. The threads end with the last item,
    with an error, or when the iterator is closed.

    Args:
        items: What to work on; taken from in the caller's own thread.
        work: What to do, in another thread; for the first item it is done in the caller's.
        depth: How many items are worked on ahead.
        threads: How many at once.
    """
    source, waiting = iter(items), deque[tuple[T, "Future[R]"]]()
    pool = ThreadPoolExecutor(threads, "ahead")
    try:
        for item in islice(source, 1):
            # What has to be compiled is compiled here: that saves and restores random states.
            done: Future[R] = Future()
            done.set_result(work(item))
            waiting.append((item, done))
        while waiting:
            for item in islice(source, depth + 1 - len(waiting)):
                waiting.append((item, pool.submit(work, item)))
            item, future = waiting.popleft()
            result = future.result()
            if not waiting:  # who knows how many there are doesn't come back after the last
                pool.shutdown()
            yield item, result
    finally:
        for _, future in waiting:
            future.cancel()
        pool.shutdown()
