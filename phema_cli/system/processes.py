"""Processes of the operating system: limits, processors, commands and all that they start."""

import os
import shlex
import signal
import subprocess
from contextlib import suppress

try:
    import resource
except ImportError:
    _LIMITS = False
else:
    _LIMITS = True

#: files that may be open where the system does not say.
_OPEN_FILES = 512
#: seconds that a command which is to end may take to clean up.
_GRACE_SECONDS = 5.0
#: forked processes start with all that this one holds; macOS's own libraries do not survive that.
FORKS = hasattr(os, "fork") and hasattr(os, "sched_getaffinity")


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def files_of_each(workers: int) -> int:
    """Files that each worker may have open to read, and as many to write."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if _LIMITS else _OPEN_FILES
    return max(4, (most - 64) // (2 * workers))


def most_memory_bytes() -> int | None:
    """Bytes of memory that this process may use; None if there is no limit."""
    if not _LIMITS:
        return None
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    limits = [resource.getrlimit(kind)[0] for kind in kinds]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)


def quoted(*words: str) -> str:
    """Words of a command as the system's shell takes them, which :func:`start` uses too."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def start(line: str, out: int, errors: int | None) -> subprocess.Popen[bytes]:
    """Start a line of shell without stdin, in a group of its own.

    Args:
        line: the user's own.
        out: descriptor for its stdout.
        errors: the same for its stderr; None to share this process's.
    """
    return subprocess.Popen(  # noqa: S602 - what the user wants run, pipelines and all
        line,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=errors,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of :func:`start`, and all processes that it has started."""
    if not hasattr(os, "killpg"):
        # Before their leader is gone: afterwards nobody knows whose they were.
        with suppress(OSError):
            subprocess.run(  # noqa: S603 - a number
                ["taskkill", "/T", "/F", "/PID", str(process.pid)],  # noqa: S607 - of the system
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        process.kill()
        process.wait()
        return
    # The group has the number of its leader, and outlives it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
