"""Other systems: this process without what CPython documents as missing on macOS or on Windows.

``python tests/systems.py windows -m phema_cli inspect ckpts`` runs a module there, and ``-c`` a
program. Libraries that are in use on Linux are loaded before; phema and filelock find out what
there is afterwards.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

Usage = Callable[[str], object]


def _words(text: str) -> list[str]:
    return text.split()


#: what ``os`` lacks; names are those of its documentation, "Availability".
NOT_ON_MACOS = _words(
    """
    sched_getaffinity sched_setaffinity sched_getscheduler sched_setscheduler posix_fadvise
    posix_fallocate copy_file_range splice memfd_create eventfd getrandom pipe2 fdatasync getresuid
    getresgid setresuid setresgid O_PATH O_NOATIME O_DIRECT
    """
)
NOT_ON_WINDOWS = _words(
    """
    fork forkpty register_at_fork posix_spawn posix_spawnp killpg getpgid getpgrp setpgid setsid
    getsid getuid geteuid getgid getegid getgroups setuid setgid getpriority nice uname sysconf
    confstr statvfs fstatvfs pread pwrite preadv pwritev readv writev lockf sync fdatasync
    fchmod fchown chown lchown fchdir mkfifo mknod openpty ttyname ctermid getloadavg wait wait3
    wait4 waitid WIFSIGNALED WTERMSIG set_blocking get_blocking O_CLOEXEC O_NOFOLLOW O_NONBLOCK
    O_DIRECTORY O_ACCMODE O_SYNC O_DSYNC O_NOCTTY
    """
)
SIGNALS_NOT_ON_WINDOWS = _words(
    """
    SIGALRM SIGVTALRM SIGPROF SIGPIPE SIGHUP SIGUSR1 SIGUSR2 SIGCHLD SIGQUIT SIGSTOP SIGCONT
    setitimer getitimer ITIMER_REAL ITIMER_VIRTUAL ITIMER_PROF alarm pause pthread_kill
    pthread_sigmask sigwait sigpending siginterrupt
    """
)
_MODULES_NOT_ON_WINDOWS = ("fcntl", "resource", "termios", "tty", "pty", "grp", "pwd", "syslog")
#: libraries that ask the system for more when they are loaded, and are not what is tested.
_LOADED_BEFORE = (
    "concurrent.futures.process",
    "concurrent.futures.thread",
    "ctypes.util",
    "matplotlib.figure",
    "multiprocessing.pool",
    "numpy.linalg",
    "rich.console",
    "rich.table",
    "safetensors.torch",
    "tempfile",
    "torch.distributed",
    "typer",
    "unittest.mock",
)
SYSTEMS = ("macos", "windows")


def become(system: str) -> None:
    """Take away what a system lacks."""
    for name in _LOADED_BEFORE:
        import_module(name)
    assert "phema_cli" not in sys.modules, "it has asked what there is"
    statvfs, disk_usage = os.statvfs, shutil.disk_usage
    sys.modules.pop("filelock", None)
    missing = NOT_ON_MACOS + (NOT_ON_WINDOWS if system == "windows" else [])
    _take(os, missing)
    if system == "windows":
        _take(signal, SIGNALS_NOT_ON_WINDOWS)
        for name in _MODULES_NOT_ON_WINDOWS:
            sys.modules[name] = None  # type: ignore[assignment]  # as Python marks what is missing
        # The library's own ways there.
        subprocess.Popen.kill = subprocess.Popen.terminate  # type: ignore[method-assign]
        shutil.disk_usage = _with(disk_usage, statvfs)  # type: ignore[assignment]


def _with(disk_usage: Usage, statvfs: Callable[[str], object]) -> Usage:
    """The library's function, which asks ``os`` when it is called."""

    def usage(path: str) -> object:
        os.statvfs = statvfs  # type: ignore[assignment]
        try:
            return disk_usage(path)
        finally:
            del os.statvfs

    return usage


def _take(module: ModuleType, names: list[str]) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def main(system: str, how: str, what: str, *arguments: str) -> None:
    """Run a module or a program there."""
    become(system)
    sys.argv = [what, *arguments]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "program", "exec"), {"__name__": "__main__"})  # noqa: S102 - a test's own


if __name__ == "__main__":
    main(*sys.argv[1:])
