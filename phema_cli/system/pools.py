"""Pools of workers: threads of this process, or processes forked from it.

Work is numbered, and a worker takes the next number when it is done with one. Threads of one
interpreter wait for one another after every call; forked processes don't. They start with all that
this process holds, without a copy.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from phema_cli.errors import StorageError, storage_errors
from phema_cli.system.signals import held_signals, ignore_signals

if TYPE_CHECKING:
    from multiprocessing.context import ForkContext

Result = TypeVar("Result")
Progress = Callable[[int], None]
Finished = Callable[[Sequence[int]], None]
#: seconds between two reports of how far workers are.
_REPORT_SECONDS = 0.05
#: seconds that workers have to stop by themselves.
_GRACE_SECONDS = 0.5


class Pool:
    """How far workers are: numbers in memory that they share.

    Args:
        count: pieces of work.
        lock: held while a shared number changes.
    """

    def __init__(self, count: int, lock: AbstractContextManager[bool]) -> None:
        self._count = count
        self._lock = lock
        # Anonymous memory is the same for a process and those forked from it.
        memory = mmap.mmap(-1, 3 * 8 + count)
        # The next number, the bytes reported, and whether to stop; then a flag for each number.
        self._shared = np.frombuffer(memory, np.int64, 3)
        self._ended = np.frombuffer(memory, np.uint8, count, 3 * 8)
        self._seen_bytes = 0
        self._seen_ended = np.zeros(count, np.uint8)

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
        """Mark a piece of work as done."""
        self._ended[number] = 1

    def stop(self) -> None:
        """Ask all workers to stop."""
        self._shared[2] = 1

    def stopped(self) -> bool:
        """Whether another worker has failed, or the program is interrupted."""
        return bool(self._shared[2])

    def pass_on(self, progress: Progress, finished: Finished) -> None:
        """Pass on the bytes reported and the numbers finished since the last call."""
        before, self._seen_bytes = self._seen_bytes, int(self._shared[1])
        progress(self._seen_bytes - before)
        new: list[int] = np.flatnonzero(self._ended > self._seen_ended).tolist()
        self._seen_ended[new] = 1
        finished(new)


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
    pool = Pool(count, threading.Lock())
    with ThreadPoolExecutor(jobs) as executor:
        futures = [executor.submit(work, pool) for _ in range(jobs)]
        left = set(futures)
        try:
            while left:
                ended, left = wait(left, _REPORT_SECONDS, FIRST_EXCEPTION)
                pool.pass_on(progress, finished)
                for future in ended:
                    future.result()
        finally:
            pool.stop()
        return [future.result() for future in futures]


def forked(
    work: Work[Result], count: int, jobs: int, progress: Progress, finished: Finished
) -> list[Result]:
    """Run workers as forked processes; as :func:`threaded`, results and errors are pickled.

    No worker outlives this call, or this process, whatever ends it. Workers ignore signals, which a
    terminal sends to them too.

    Raises:
        StorageError: the system has ended a worker.
    """
    fork = multiprocessing.get_context("fork")
    pool = Pool(count, fork.Lock())
    workers: dict[Connection, BaseProcess] = {}
    results: dict[Connection, Result] = {}
    # This process's end of the pipe is closed when the process ends, in whatever way.
    ends = os.pipe()
    try:
        with held_signals():
            workers.update(_fork(fork, pool, work, ends) for _ in range(jobs))
        left = list(workers)
        while left:
            ready = wait_for(left, _REPORT_SECONDS)
            pool.pass_on(progress, finished)
            for pipe in [pipe for pipe in left if pipe in ready]:
                results[pipe] = _result(pipe)
                left.remove(pipe)
        return [results[pipe] for pipe in workers]
    finally:
        pool.stop()
        with held_signals():
            _end(workers)
            for end in ends:
                os.close(end)


def _fork(
    fork: ForkContext, pool: Pool, work: Work[Result], ends: tuple[int, int]
) -> tuple[Connection, BaseProcess]:
    """Start a worker: the pipe that its result comes by, and its process."""
    with storage_errors(None, "start a worker process"):
        pipe, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=_child, args=(pool, work, theirs, *ends))
        process.start()
    # A worker that is forked later must not hold this end: when it closes, this worker has ended.
    theirs.close()
    return pipe, process


def _result(pipe: Connection) -> Any:  # noqa: ANN401 - whatever the worker returned
    """The result of a worker that has one, or has ended.

    Raises:
        BaseException: what it raised.
        StorageError: it was ended before it had a result.
    """
    try:
        succeeded, value = pipe.recv()
    except (EOFError, OSError) as error:
        raise StorageError(
            "a worker process was killed",
            remedy="see whether memory ran out; -j 1 needs the least",
        ) from error
    if not succeeded:
        raise value
    return value


def _end(workers: Mapping[Connection, BaseProcess]) -> None:
    """Wait a moment for workers to stop, then kill those that have not."""
    left = [process.sentinel for process in workers.values()]
    until = time.monotonic() + _GRACE_SECONDS
    while left and time.monotonic() < until:
        ended = wait_for(left, until - time.monotonic())
        left = [s for s in left if s not in ended]
    for pipe, process in workers.items():
        process.kill()
        process.join()
        process.close()
        pipe.close()


def _child(pool: Pool, work: Work[Result], pipe: Connection, parent: int, held: int) -> None:
    """A forked process: do the work of one worker, and end when the parent does."""
    ignore_signals()
    os.close(held)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    try:
        result: tuple[bool, object] = True, work(pool)
    except BaseException as error:  # noqa: BLE001 - the process that forked this one raises it
        result = False, error
    with suppress(OSError):
        # Nobody may read it any more.
        pipe.send(result)


def _end_after(parent: int) -> None:
    """End this process, which frees its locks, once nobody holds the pipe's other end."""
    os.read(parent, 1)
    os._exit(1)
