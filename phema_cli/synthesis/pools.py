"""Pools of workers: threads of this process, or processes forked from it.

Work is numbered, and a worker takes the next number when it is done with one. Threads of one
interpreter wait for one another after every call that they make; forked processes don't, start with
all that this one holds, and read it without a copy.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from typing import TypeVar, cast

import numpy as np

from phema_cli.errors import StorageError

Result = TypeVar("Result")
Progress = Callable[[int], None]
Finished = Callable[[Sequence[int]], None]
#: seconds between two looks at how far forked workers are.
_GLANCE_SECONDS = 0.05


class Pool:
    """What workers know of one another: numbers in memory that they share.

    Args:
        count: pieces of work.
        memory: the pool's, of ``Pool.size_bytes(count)`` zeros.
        lock: held while a number is taken.
    """

    def __init__(
        self,
        count: int,
        memory: bytearray | mmap.mmap,
        lock: AbstractContextManager[bool],
    ) -> None:
        self._count = count
        self._lock = lock
        # The next number, the bytes reported, and whether to stop; then a flag for each number.
        self._shared = np.frombuffer(memory, np.int64, 3)
        self._ended = np.frombuffer(memory, np.uint8, count, 3 * 8)
        self._seen_bytes = 0
        self._seen_ended = np.zeros(count, np.uint8)

    @staticmethod
    def size_bytes(count: int) -> int:
        """Bytes of memory for so many pieces of work."""
        return 3 * 8 + count

    def take(self) -> int:
        """The next number; the number of all work when none is left."""
        with self._lock:
            number = int(self._shared[0])
            self._shared[0] = min(number + 1, self._count)
        return number

    def report(self, done: int) -> None:
        """Count bytes that were read or written."""
        with self._lock:
            self._shared[1] += done

    def finish(self, number: int) -> None:
        """Say that a piece of work is done."""
        self._ended[number] = 1

    def stop(self) -> None:
        """Have all workers stop."""
        self._shared[2] = 1

    def stopped(self) -> bool:
        """Whether another worker has failed, or the program is interrupted."""
        return bool(self._shared[2])

    def reported(self) -> int:
        """Bytes reported since the last call."""
        before, self._seen_bytes = self._seen_bytes, int(self._shared[1])
        return self._seen_bytes - before

    def finished(self) -> list[int]:
        """Numbers that are done since the last call."""
        new: list[int] = np.flatnonzero(self._ended > self._seen_ended).tolist()
        self._seen_ended[new] = 1
        return new

    def run(self, work: Work[Result]) -> Result:
        """One worker, which stops the others when it fails."""
        try:
            return work(self)
        except BaseException:
            self.stop()
            raise


Work = Callable[[Pool], Result]


def threaded(
    work: Work[Result], count: int, jobs: int, progress: Progress, finished: Finished
) -> list[Result]:
    """Run workers as threads; what each returned.

    Args:
        work: a worker.
        count: pieces of work.
        jobs: workers.
        progress: called with the bytes that workers report, now and then.
        finished: called with the numbers of work that is done, now and then.

    Raises:
        BaseException: the first that a worker raised, after the others have stopped.
    """
    pool = Pool(count, bytearray(Pool.size_bytes(count)), threading.Lock())
    with ThreadPoolExecutor(jobs) as executor:
        futures = [executor.submit(pool.run, work) for _ in range(jobs)]
        return _results(futures, pool, progress, finished)


def forked(
    work: Work[Result], count: int, jobs: int, progress: Progress, finished: Finished
) -> list[Result]:
    """Run workers as forked processes; as :func:`threaded`, results and errors are pickled.

    Raises:
        StorageError: the system has ended a worker.
    """
    fork = multiprocessing.get_context("fork")
    # Anonymous memory is the same for a process and those forked from it.
    memory = mmap.mmap(-1, Pool.size_bytes(count))
    pool = Pool(count, memory, fork.Lock())
    # What this process holds of the pipe is closed when it ends, in whatever way.
    ends = os.pipe()
    try:
        with ProcessPoolExecutor(jobs, fork, _inherit, (pool, work, *ends)) as executor:
            futures = [executor.submit(_forked_work) for _ in range(jobs)]
            return cast("list[Result]", _results(futures, pool, progress, finished))
    finally:
        for end in ends:
            os.close(end)


def _results(
    futures: Sequence[Future[Result]], pool: Pool, progress: Progress, finished: Finished
) -> list[Result]:
    """What the workers return; none goes on when one has failed, or the program is interrupted."""
    left = set(futures)
    try:
        while left:
            ended, left = wait(left, timeout=_GLANCE_SECONDS)
            progress(pool.reported())
            finished(pool.finished())
            for future in ended:
                _result(future)
        return [_result(future) for future in futures]
    finally:
        pool.stop()


def _result(future: Future[Result]) -> Result:
    """What a worker returned."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise StorageError(
            "a worker process was ended from outside",
            remedy="see whether memory ran out; -j 1 needs the least",
        ) from error


#: in a forked process: its pool and its work, which need not be pickled so.
_inherited: list[tuple[Pool, Work[object]]] = []


def _inherit(pool: Pool, work: Work[object], parent: int, held: int) -> None:
    """Keep what a forked process starts with, and have it end with the one that forked it."""
    _inherited[:] = [(pool, work)]
    os.close(held)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    """End this process, and what it has locked, once there is nobody at the pipe's other end."""
    os.read(parent, 1)
    os._exit(1)


def _forked_work() -> object:
    """One worker in a process of its own."""
    ((pool, work),) = _inherited
    return pool.run(work)
