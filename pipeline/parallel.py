"""Work that a stage shares among several processes."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from ..data.errors import DataError
from .console import quiet_libraries

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(begin: Callable[[], Callable[[T], R]], items: Iterable[T], processes: int) -> Iterator[R]:
    """Yield what the function that `begin` returns makes of every item, in order.

    More than one process are started for it, and each calls `begin` for itself; items and results are pickled. Few
    items are under way at a time, whatever their number. Raises DataError where a process is ended from outside.
    """
    if processes == 1:
        yield from map(begin(), items)
        return
    # Not forked: threads of this process, which other libraries start, would be missing there.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=(begin,))
    try:
        under_way: deque[Future[R]] = deque()
        for item in items:
            under_way.append(pool.submit(_work, item))
            if len(under_way) > 2 * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {processes} processes was ended from outside, as happens where memory runs out. Use fewer."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(begin: Callable[[], Callable[[Any], Any]]) -> None:
    global _begin
    _begin = cache(begin)
    quiet_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one answers an interrupt
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _work(item: Any) -> Any:
    # Begun here, not in `_start`, whose errors would not reach the user.
    return _begin()(item)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)


_begin: Callable[[], Callable[[Any], Any]]
