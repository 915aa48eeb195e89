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
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkContext
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar, cast

import numpy as np

from phema_cli.errors import StorageError
from phema_cli.system.processes import held_signals, ignore_signals

Result = TypeVar("Result")
Progress = Callable[[int], None]
Finished = Callable[[Sequence[int]], None]
#: seconds between two looks at how far forked workers are.
_GLANCE_SECONDS = 0.05
#: seconds that workers are given to stop by themselves.
_GRACE_SECONDS = 0.5


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
        left = set(futures)
        try:
            while left:
                ended, left = wait(left, timeout=_GLANCE_SECONDS)
                progress(pool.reported())
                finished(pool.finished())
                for future in ended:
                    future.result()
        finally:
            pool.stop()
        return [future.result() for future in futures]


def forked(
    work: Work[Result], count: int, jobs: int, progress: Progress, finished: Finished
) -> list[Result]:
    """Run workers as forked processes; as :func:`threaded`, results and errors are pickled.

    No worker outlives this call, or this process, whatever ends it. The process alone heeds
    signals, also where a terminal sends them to the workers too.

    Raises:
        StorageError: the system has ended a worker.
    """
    fork = multiprocessing.get_context("fork")
    # Anonymous memory is the same for a process and those forked from it.
    memory = mmap.mmap(-1, Pool.size_bytes(count))
    pool = Pool(count, memory, fork.Lock())
    workers: list[_Forked[Result]] = []
    # What this process holds of the pipe is closed when it ends, in whatever way.
    ends = os.pipe()
    try:
        with held_signals():
            workers.extend(_Forked.start(fork, pool, work, ends) for _ in range(jobs))
        left = list(workers)
        while left:
            ready = connection.wait([w.pipe for w in left], _GLANCE_SECONDS)
            progress(pool.reported())
            finished(pool.finished())
            for worker in [w for w in left if w.pipe in ready]:
                worker.take()
                left.remove(worker)
        return [cast("Result", worker.value) for worker in workers]
    finally:
        pool.stop()
        with held_signals():
            _end(workers)
            for end in ends:
                os.close(end)


@dataclass(slots=True)
class _Forked(Generic[Result]):
    """A worker in a process of its own.

    Attributes:
        process: that process.
        pipe: what its result comes by; at its end when the process is.
        value: what it returned; None while it is at work.
    """

    process: BaseProcess
    pipe: connection.Connection
    value: Result | None = None

    @classmethod
    def start(
        cls, fork: ForkContext, pool: Pool, work: Work[Result], ends: tuple[int, int]
    ) -> _Forked[Result]:
        """Fork it."""
        try:
            pipe, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(pool, work, theirs, *ends))
            process.start()
        except OSError as error:
            raise StorageError.wrap(error, None, "start a worker process") from error
        # One that is forked later does not hold it: its end is this process' end.
        theirs.close()
        return cls(process, pipe)

    def take(self) -> None:
        """Take its result, or wait for it.

        Raises:
            BaseException: what it raised.
            StorageError: it was ended before it had one.
        """
        try:
            succeeded, value = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise StorageError(
                "a worker process was ended from outside",
                remedy="see whether memory ran out; -j 1 needs the least",
            ) from error
        if not succeeded:
            raise value
        self.value = value


def _end(workers: Sequence[_Forked[Result]]) -> None:
    """Wait a moment for workers that were told to stop, then end those that have not."""
    left = [w.process.sentinel for w in workers]
    until = time.monotonic() + _GRACE_SECONDS
    while left and time.monotonic() < until:
        ended = connection.wait(left, until - time.monotonic())
        left = [s for s in left if s not in ended]
    for worker in workers:
        worker.process.kill()
        worker.process.join()
        worker.process.close()
        worker.pipe.close()


def _work(
    pool: Pool, work: Work[Result], pipe: connection.Connection, parent: int, held: int
) -> None:
    """A forked process: do the work of one worker, and end with the process that forked it."""
    ignore_signals()
    os.close(held)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    try:
        result: tuple[bool, object] = True, pool.run(work)
    except BaseException as error:  # noqa: BLE001 - the process that forked this one raises it
        result = False, error
    with suppress(OSError):
        # Where nobody reads it any more, nobody wants it.
        pipe.send(result)


def _end_after(parent: int) -> None:
    """End this process, and what it has locked, once there is nobody at the pipe's other end."""
    os.read(parent, 1)
    os._exit(1)
