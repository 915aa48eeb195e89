"""Processes without the start of Python: a server that has loaded torch and phema forks them.

Each is what a new process is, with its own number, signals, limits, streams, directory and
environment; but its modules are loaded already, which takes a second of every start. Where that
start is the point a test calls the console script itself. ``popen`` starts one, as
``subprocess.Popen`` does; ``programs`` has ``phema``, ``python`` and ``torchrun`` for shells.

Where no process can be forked, where coverage is measured, and for ``make faults``, which is to
interrupt the start too, new ones are started instead.
"""

from __future__ import annotations

import atexit
import ctypes
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any, NoReturn, cast

ROOT = Path(__file__).parent.parent
PHEMA = Path(sys.executable).with_name("phema")
#: what the programs of the tests load.
_LOADED = (
    "matplotlib.figure",
    "multiprocessing.popen_fork",
    "numpy.polynomial",
    "numpy.random",
    "phema_cli.api",
    "phema_cli.cli.app",
    "phema_cli.cli.sweep_report",
    "phema_cli.estimate.solve",
    "phema_cli.pack.write",
    "phema_cli.sweep.run",
    "phema_cli.synthesis.execute",
    "phema_cli.verify.check",
    "phema_cli.verify.recipe",
    "rich.table",
    "safetensors.torch",
    "torch.distributed.run",
    "typer.main",
)
#: the interpreter and the system's libraries read these when they start.
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "OPENBLAS_", "MKL_")
#: and these are heeded here all the same.
_HEEDED = {"OPENBLAS_NUM_THREADS", "PYTHONIOENCODING", "PYTHONPATH"}
#: why a process is not forked.
_COLD = "COLD"
#: a program that asks the server for one in its place; without it, it becomes what it stands for.
_ASKS = """\
#!{python} -IS
import json, os, signal, socket, sys
name = os.path.basename(sys.argv[0])
real = [{python!r}] if name == "python" else [os.path.join({scripts!r}, name)]
try:
    asked = {{"argv": [name, *sys.argv[1:]], "cwd": os.getcwd(), "env": dict(os.environ)}}
    asked["python"] = os.path.join(os.path.dirname(sys.argv[0]), "python")
    if {measured!r} & os.environ.keys():
        raise OSError
    server = socket.socket(socket.AF_UNIX)
    server.connect({address!r})
    socket.send_fds(server, [json.dumps(asked).encode() + b"\\n"], [0, 1, 2])
    replies = server.makefile("r")
    pid = int(replies.readline())
except (OSError, ValueError):
    os.execv(real[0], [*real, *sys.argv[1:]])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(pid, number))
status = os.waitstatus_to_exitcode(int(replies.readline()))
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""
_MEASURED = {"COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"}
#: what ``make faults`` sets.
_LONG_FORM = "PHEMA_KILLS"


class Forked:
    """A process that the server has forked; it has what the tests use of ``subprocess.Popen``."""

    def __init__(self, address: str, asked: dict[str, Any], streams: Mapping[str, Any]) -> None:
        self.returncode: int | None = None
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        given = []
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            wanted = streams.get(name)
            if wanted == subprocess.PIPE:
                ends = os.pipe()
                mine, its = ends if number else reversed(ends)
                setattr(self, name, os.fdopen(mine, "r" if number else "w", encoding="utf-8"))
                given.append(its)
            elif wanted == subprocess.DEVNULL:
                given.append(os.open(os.devnull, os.O_RDWR))
            else:
                given.append(_duplicate(number if wanted is None else wanted))
        self._server = socket.socket(socket.AF_UNIX)
        try:
            self._server.connect(address)
            message = json.dumps(asked).encode() + b"\n"
            sent = socket.send_fds(self._server, [message], given)
            self._server.sendall(message[sent:])
        finally:
            for descriptor in given:
                os.close(descriptor)
        self._replies = self._server.makefile("r", encoding="utf-8")
        said = self._replies.readline()
        assert said.strip().isdigit(), f"it has to be started anew: {said}"
        self.pid = int(said)

    def poll(self) -> int | None:
        """The exit code, if it is over."""
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it is over."""
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                assert timeout is not None
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = os.waitstatus_to_exitcode(int(self._replies.readline()))
            self._replies.close()
            self._server.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it writes to its pipes, up to its end; the tests' programs write little."""
        ends = None if timeout is None else time.monotonic() + timeout
        said = ["", ""]
        if self.stdin:
            self.stdin.close()
        for number, stream in enumerate((self.stdout, self.stderr)):
            while stream is not None:
                left = None if ends is None else max(0.0, ends - time.monotonic())
                if not select.select([stream], [], [], left)[0]:
                    assert timeout is not None
                    raise subprocess.TimeoutExpired(str(self.pid), timeout)
                said[number] = stream.read()
                stream.close()
                break
        self.wait(timeout)
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is not over."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for stream in (self.stdout, self.stderr, self.stdin):
            if stream is not None:
                stream.close()
        self.wait()


def _duplicate(stream: Any) -> int:
    return os.dup(stream if isinstance(stream, int) else stream.fileno())


def popen(
    command: Sequence[object],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    start_new_session: bool = False,
    system: str = "",
    layer: Path | None = None,
    changed: Mapping[str, object] | None = None,
    **streams: Any,
) -> Forked | subprocess.Popen[str]:
    """Start phema's console script or a program of Python.

    Args:
        command: ``PHEMA`` or ``sys.executable`` and what is behind them.
        cwd: where; here by default.
        env: all variables that it sees.
        start_new_session: whether it leads a group of processes.
        system: another system that it is to take itself to be on, of ``tests/systems.py``.
        layer: what is loaded before libc, as ``LD_PRELOAD`` does.
        changed: constants of phema that have other values, by module and name: shorter waits.
        streams: as ``subprocess.Popen`` has them; what is read from pipes is text.
    """
    given = [str(word) for word in command]
    variables = dict(os.environ if env is None else env)
    if layer is not None:
        variables["LD_PRELOAD"] = str(layer)
    if sys.platform != "linux" or (_MEASURED | {_LONG_FORM}) & variables.keys():
        if system:
            given[1:1] = [str(ROOT / "tests" / "systems.py"), system]
        more: dict[str, Any] = {"cwd": cwd, "start_new_session": start_new_session, **streams}
        return subprocess.Popen(given, text=True, env=variables, **more)
    given[0] = Path(given[0]).name.replace(Path(sys.executable).name, "python")
    asked = {
        "argv": given,
        "cwd": str(cwd or Path.cwd()),
        "env": variables,
        "session": start_new_session,
        "system": system,
        "changed": dict(changed or {}),
    }
    return Forked(_address(layer), asked, streams)


def run(
    command: Sequence[object], *, check: bool = False, timeout: float = 300, **options: Any
) -> subprocess.CompletedProcess[str]:
    """``popen``, and its end: what ``subprocess.run`` gives that captures the output as text."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = popen(command, **(pipes | options))
    out, err = process.communicate(timeout=timeout)
    assert process.returncode is not None
    done = subprocess.CompletedProcess([*map(str, command)], process.returncode, out, err)
    if check:
        assert done.returncode == 0, err
    return done


@cache
def programs() -> Path:
    """A directory of ``phema``, ``python`` and ``torchrun``, which are forked."""
    if sys.platform != "linux":
        return PHEMA.parent
    folder = Path(_address(None)).with_name("bin")
    folder.mkdir()
    text = _ASKS.format(
        python=sys.executable,
        scripts=sysconfig.get_path("scripts"),
        measured=_MEASURED,
        address=_address(None),
    )
    for name in ("phema", "python", "torchrun"):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def python() -> Path:
    """The one of these that stands for the interpreter."""
    return programs() / "python"


@cache
def _address(layer: Path | None) -> str:
    """The socket of a server, which is started; it ends with this process."""
    folder = tempfile.mkdtemp(prefix="warm-")
    address = f"{folder}/socket"
    kept = {k: v for k, v in os.environ.items() if k not in _MEASURED}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", address],
        cwd=ROOT,
        env=kept | {"OMP_NUM_THREADS": "1"} | ({"LD_PRELOAD": str(layer)} if layer else {}),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        server.terminate()
        server.wait()
        for path in sorted(Path(folder).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        Path(folder).rmdir()

    atexit.register(end)
    while not Path(address).exists():
        assert server.poll() is None, "the server of processes has ended"
        time.sleep(0.01)
    return address


# --- the server -----------------------------------------------------------------------------------


def _serve(address: str) -> Callable[[], object]:
    """Fork a process for each request; gives, in the process that was asked for, what it runs."""
    import gc

    # Whoever started the tests in the background has them ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in _LOADED:
        import_module(name)
    # More is loaded when a command reads its arguments.
    sys.argv = ["phema", "inspect", f"{address}.none", "--json"]
    with suppress(SystemExit), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        sys.modules["phema_cli.cli.app"].main()
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    # Who waits for the name can connect at once.
    Path(f"{address}.new").rename(address)
    parent = os.getppid()
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not select.select([listener], [], [], 0.5)[0]:
            if os.getppid() != parent:
                sys.exit()
            continue
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _nurse(connection)
        connection.close()


def _nurse(connection: socket.socket) -> Callable[[], object]:
    """Fork the process and tell its number and its end; gives, in it, what it runs."""
    message, given, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not message.endswith(b"\n"):
        message += connection.recv(1 << 20)
    asked = json.loads(message)
    reason = _unfit(asked)
    if reason:
        connection.sendall(f"{_COLD} {reason}\n".encode())
        os._exit(0)
    pid = os.fork()
    if pid == 0:
        connection.close()
        return _become(asked, given)
    for descriptor in given:
        os.close(descriptor)
    connection.sendall(f"{pid}\n".encode())
    over = os.pidfd_open(pid)
    if connection.fileno() in select.select([connection.fileno(), over], [], [])[0]:
        # Who asked for it was killed.
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        connection.sendall(f"{status}\n".encode())
    os._exit(0)


def _unfit(asked: dict[str, Any]) -> str:
    """Why a process that starts anew is needed; empty where none is."""
    for name, value in asked["env"].items():
        read = name.startswith(_READ_AT_START) and name not in _HEEDED
        is_utf8 = name.startswith(("LC_", "LANG")) and value.lower().endswith(("utf-8", "utf8"))
        if read and not is_utf8 and value != os.environ.get(name):
            return f"{name} is read at the start"
    name, *words = asked["argv"]
    if name != "python":
        return ""
    while words[:1] == ["-u"] or words[:1] == ["-W"]:
        words = words[1 if words[0] == "-u" else 2 :]
    return "" if words and (words[0] in ("-c", "-m") or words[0][0] != "-") else "options"


def _become(asked: dict[str, Any], given: list[int]) -> Callable[[], object]:
    """Be a new process, but for what is loaded."""
    if asked.get("session"):
        os.setsid()
    for number, descriptor in enumerate(given):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(asked["cwd"])
    variables = asked["env"]
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    name, *words = asked["argv"]
    unbuffered = bool(variables.get("PYTHONUNBUFFERED"))
    while name == "python" and words[0] in ("-u", "-W"):
        if words.pop(0) == "-u":
            unbuffered = True
        else:
            sys.warnoptions.append(words[0])
            warnings.simplefilter(cast("Any", words.pop(0)))
    _open_streams(unbuffered)
    threads = int(variables.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    sys.modules["torch"].set_num_threads(threads)
    # Python's own numbers of chance are others in each process that is forked; so are these now.
    sys.modules["torch"].seed()
    sys.modules["numpy"].random.seed()
    sys.path.remove(str(ROOT))
    sys.path[:0] = [p for p in variables.get("PYTHONPATH", "").split(":") if p not in sys.path]
    # What starts other programs.
    sys.executable = asked.get("python", sys.executable)
    _adapt(asked)
    return lambda: _program(name, words)


def _open_streams(unbuffered: bool) -> None:
    """Python's streams on the file descriptors, as the interpreter opens them."""
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    encoding = encoding or "utf-8"
    made = []
    for number in (0, 1, 2):
        raw = io.FileIO(number, "wb" if number else "rb", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw) if number else io.BufferedReader(raw),
            encoding=encoding,
            errors="backslashreplace" if number == 2 else errors or "strict",
            line_buffering=number == 2 or raw.isatty(),
            write_through=bool(number) and unbuffered,
        )
        made.append(stream)
    for name, stream in zip(("stdin", "stdout", "stderr"), made, strict=True):
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _adapt(asked: dict[str, Any]) -> None:
    """What tests change of the system and of phema."""
    if "FAULTS" in os.environ:
        # The layer is there since the server began; what it is to do is known from here on.
        ctypes.CDLL(None).begin_faults()
    if asked.get("system"):
        from tests import systems

        # They find out what there is when they are loaded.
        _forget("phema_cli", "filelock")
        systems.become(asked["system"])
    for place, value in asked.get("changed", {}).items():
        module, _, constant = place.rpartition(".")
        assert hasattr(import_module(module), constant), place
        setattr(sys.modules[module], constant, value)


def _forget(*names: str) -> None:
    """Modules that are loaded again, from where the program finds them."""
    for loaded in list(sys.modules):
        if loaded.partition(".")[0] in names:
            del sys.modules[loaded]


def _program(name: str, words: list[str]) -> None:
    """Run what was asked for, as the interpreter does."""
    # By it the command line tells how it was called.
    main = sys.modules["__main__"] = ModuleType("__main__")
    if name == "phema":
        sys.argv = [str(PHEMA), *words]
        from phema_cli.__main__ import run as script

        script()
    elif name == "torchrun":
        sys.argv = [str(PHEMA.with_name(name)), *words]
        sys.exit(import_module("torch.distributed.run").main())
    elif words[0] == "-m":
        here = Path.cwd()
        sys.path.insert(0, str(here))
        sys.argv = words[1:]
        if here != ROOT and (here / words[1].partition(".")[0]).exists():
            # A copy of the package, which is another one.
            _forget(words[1].partition(".")[0])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        is_code = words[0] == "-c"
        code = words[1] if is_code else Path(words[0]).read_text(encoding="utf-8")
        sys.path.insert(0, "" if is_code else str(Path(words[0]).resolve().parent))
        sys.argv = ["-c", *words[2:]] if is_code else words
        if not is_code:
            main.__file__ = words[0]
        exec(compile(code, "<string>" if is_code else words[0], "exec"), main.__dict__)  # noqa: S102 - as asked


def _end(program: Callable[[], object]) -> NoReturn:
    """Run a program and end as the interpreter does, but for taking all modules apart."""
    code = 0
    try:
        program()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:  # noqa: BLE001 - the interpreter shows whatever it is
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - the interpreter's own end
    atexit._run_exitfuncs()  # noqa: SLF001
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        code = 120
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    _end(_serve(sys.argv[1]))
