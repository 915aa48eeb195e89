"""Pools of workers: threads of this process, or processes forked from it.

Work is numbered, and a worker takes the next number when it is done with one. Threads of one
interpreter wait for one another after every call that they make; forked processes don't, start with
all that this one holds, and read it without a copy.
"""

from __future__ import annotations

import itertools
import mmap
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol, TypeVar, cast

import numpy as np

from phema_cli.errors import StorageError

Result = TypeVar("Result")
Progress = Callable[[int], None]
#: seconds between two looks at how far forked workers are.
_GLANCE_SECONDS = 0.05


class Pool(Protocol):
    """What a worker knows of the others."""

    def take(self) -> int:
        """The next number; the number of all work when none is left."""
        ...

    def report(self, done: int) -> None:
        """Count bytes that were read or written."""
        ...

    def stopped(self) -> bool:
        """Whether another worker has failed, or nobody waits for the result."""
        ...


Work = Callable[[Pool], Result]


def threaded(work: Work[Result], count: int, jobs: int, progress: Progress) -> list[Result]:
    """Run workers as threads; what each returned.

    Args:
        work: a worker.
        count: pieces of work.
        jobs: workers.
        progress: called with what workers report, by one at a time.

    Raises:
        BaseException: the first that a worker raised, after the others have stopped.
    """
    pool = _Threads(count, progress)
    with ThreadPoolExecutor(jobs) as executor:
        futures = [executor.submit(pool.run, work) for _ in range(jobs)]
        with _stopping(pool.stop):
            return [future.result() for future in futures]


def forked(work: Work[Result], count: int, jobs: int, progress: Progress) -> list[Result]:
    """Run workers as forked processes; as :func:`threaded`, results and errors are pickled.

    Raises:
        StorageError: the system has ended a worker.
    """
    pool = _Processes(count)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, fork, _inherit, (pool, work)) as executor:
        futures = [executor.submit(_forked_work) for _ in range(jobs)]
        with _stopping(pool.stop):
            left = set(futures)
            while left:
                ended, left = wait(left, timeout=_GLANCE_SECONDS)
                progress(pool.reported())
                for future in ended:
                    _result(future)
            return cast("list[Result]", [_result(future) for future in futures])


@contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Let no worker go on when one has failed, or the program is interrupted."""
    try:
        yield
    finally:
        stop()


def _result(future: Future[Result]) -> Result:
    """What a forked worker returned."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise StorageError(
            "a worker process was ended from outside",
            remedy="see whether memory ran out; -j 1 needs the least",
        ) from error


class _Threads:
    """A pool of threads."""

    def __init__(self, count: int, progress: Progress) -> None:
        self._numbers = itertools.chain(range(count), itertools.repeat(count))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._progress = progress
        self.stop, self.stopped = self._stop.set, self._stop.is_set

    def run(self, work: Work[Result]) -> Result:
        """One worker, which stops the others when it fails."""
        try:
            return work(self)
        except BaseException:
            self.stop()
            raise

    def take(self) -> int:
        """The next number."""
        with self._lock:
            return next(self._numbers)

    def report(self, done: int) -> None:
        """Count bytes that were read or written."""
        with self._lock:
            self._progress(done)


class _Processes:
    """A pool of processes: numbers in memory that they share."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = multiprocessing.get_context("fork").Lock()
        # Anonymous memory is the same for a process and those forked from it: the next number, the
        # bytes reported, and whether to stop.
        self._shared = np.frombuffer(mmap.mmap(-1, 3 * 8), np.int64)
        self._parent = os.getpid()
        self._seen = 0

    def take(self) -> int:
        """The next number."""
        with self._lock:
            number = int(self._shared[0])
            self._shared[0] = min(number + 1, self._count)
        return number

    def report(self, done: int) -> None:
        """Count bytes that were read or written."""
        with self._lock:
            self._shared[1] += done

    def reported(self) -> int:
        """Bytes reported since the last call."""
        before, self._seen = self._seen, int(self._shared[1])
        return self._seen - before

    def stop(self) -> None:
        """Have all workers stop."""
        self._shared[2] = 1

    def stopped(self) -> bool:
        """Whether a worker has failed, or the process that started them is gone."""
        return bool(self._shared[2]) or os.getppid() != self._parent


#: in a forked process: its pool and its work, which need not be pickled so.
_inherited: list[tuple[_Processes, Work[object]]] = []


def _inherit(pool: _Processes, work: Work[object]) -> None:
    """Keep what a forked process starts with."""
    _inherited[:] = [(pool, work)]


def _forked_work() -> object:
    """One worker in a process of its own, which stops the others when it fails."""
    ((pool, work),) = _inherited
    try:
        return work(pool)
    except BaseException:
        pool.stop()
        raise
