"""Snapshots behind URLs: a real HTTP server, fsspec's memory, and what goes wrong with them."""

import http.server
import re
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import fsspec
import pytest
from safetensors.torch import load_file
from upath import UPath

from phema_cli import scan
from phema_cli.errors import InputError, StorageError, UsageError
from tests.builders import phema, run, synthesize, write_run


class Handler(http.server.SimpleHTTPRequestHandler):
    """A directory's files, in ranges as object stores send them."""

    ranges = True
    asked: list[str]

    def do_GET(self):
        """One range of a file, or all of it."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        self.asked.append(self.headers.get("Range", self.path))
        if not (self.ranges and found and path.is_file()):
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = int(found[1]), min(int(found[2]), len(data) - 1)
        if first > last:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def log_message(self, *_):
        """Be silent."""

    def copyfile(self, source, outputfile):
        """Send a whole file to whoever still listens."""
        with suppress(ConnectionError):
            super().copyfile(source, outputfile)


@pytest.fixture
def serve(tmp_path):
    """Start a server of ``tmp_path``; gives its URL and the list of what it is asked for."""
    servers = []

    def start(ranges=True):
        kind = type("Own", (Handler,), {"ranges": ranges, "asked": []})
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(kind, directory=str(tmp_path))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", kind.asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_http_gives_the_bytes_of_local_files(serve, tmp_path):
    """A directory that a server lists: inspected, and synthesized to the same bytes."""
    write_run(tmp_path / "ckpts", shape=(300, 100))
    url, asked = serve()
    # What reads from far is a process of its own: fsspec keeps a thread and its sockets to the end.
    shown = phema("inspect", f"{url}/ckpts/", "--json", forked=True)
    assert shown.code == 0, shown.err
    local = phema("inspect", tmp_path / "ckpts", "--json").json["snapshots"]
    assert [s["name"] for s in shown.json["snapshots"]] == [s["name"] for s in local]
    asked.clear()
    options = ("-g", "7", "-q", "-o")
    # The verification of what came from far would ask for all of it once more, from this process.
    far = (*options, tmp_path / "far.safetensors")
    run("synthesize", f"{url}/ckpts/", *far, forked=True, verified=False)
    run("synthesize", tmp_path / "ckpts", *options, tmp_path / "near.safetensors")
    far, near = (load_file(tmp_path / f"{n}.safetensors") for n in ("far", "near"))
    assert all((far[n] == near[n]).all() for n in near)
    assert (tmp_path / "far.safetensors").read_bytes() == (
        tmp_path / "near.safetensors"
    ).read_bytes()
    # Eight snapshots: a header, the sample and the tensors of each, in few requests.
    assert 8 * 3 <= len(asked) < 8 * 12
    run("verify", tmp_path / "near.safetensors", f"{url}/ckpts/", "--full", forked=True)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_memory_file_system(tmp_path, ending):
    """The memory of fsspec is as good as a disk, for single files and directories."""
    write_run(tmp_path / "ckpts")
    if ending == "pt":
        import torch

        for path in sorted((tmp_path / "ckpts").iterdir()):
            torch.save(load_file(path), path.with_suffix(".pt"))
            path.unlink()
    # A file of another tool, by the name of one that trainers leave.
    (tmp_path / "ckpts" / "trainer_state.json").write_text("step 4")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "ckpts"), "/phema/ckpts", recursive=True)
    try:
        (near,) = synthesize(tmp_path / "ckpts", gamma=7, output=tmp_path / "near.safetensors")
        (far,) = synthesize("memory://phema/ckpts", gamma=7, output=tmp_path / "far.safetensors")
        assert far.read_bytes() == near.read_bytes()
        name = f"ckpts/ema-step0000100-gamma5.{ending}"
        assert "3 identical" in run("diff", f"memory://phema/{name}", tmp_path / name).out
        assert "8 snapshots" in run("inspect", "memory://phema/ckpts").out
        files = [str(p) for p in UPath("memory://phema/ckpts").glob(f"*.{ending}")]
        assert len(scan(files).require()) == len(scan([tmp_path / "ckpts"]).require())
    finally:
        memory.rm("/phema", recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "synthesize", "diff"])
def test_a_server_without_ranges_is_refused(serve, tmp_path, command):
    """Whole files in place of ranges are no tensors."""
    write_run(tmp_path / "ckpts")
    url, _ = serve(ranges=False)
    out = tmp_path / "o.safetensors"
    name = "ckpts/ema-step0000100-gamma5.safetensors"
    arguments = {
        "inspect": (f"{url}/ckpts/",),
        "synthesize": (f"{url}/ckpts/", "-g", "7", "-o", out),
        "diff": (f"{url}/{name}", tmp_path / name),
    }
    done = phema(command, *arguments[command], forked=True)
    assert (done.code, done.err.count("\n")) == (5, 1), done.err
    assert "the server sends whole files, not ranges" in done.err
    assert not out.exists()


def test_a_file_that_is_cut_is_an_error(tmp_path):
    """A remote file that ends early after it was planned leaves no output."""
    from phema_cli.synthesis import Request, make_recipe
    from phema_cli.synthesis.execute import execute

    write_run(tmp_path / "ckpts")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "ckpts"), "/cut", recursive=True)
    try:
        request = Request(gamma=(7.0,), output=str(tmp_path / "o.safetensors"))
        recipe, _ = make_recipe(scan(["memory://cut"]), request)
        name = sorted(memory.ls("/cut", detail=False))[-1]
        memory.pipe_file(name, memory.cat_file(name)[:-10])
        with pytest.raises(InputError, match="ends at byte"):
            execute(recipe)
    finally:
        memory.rm("/cut", recursive=True)
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("nothing://x/y", 2, "nothing"),
        ("http://127.0.0.1:9/ckpts/", 5, "cannot read: Cannot connect"),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_urls_that_lead_nowhere(command, url, code, message):
    """A scheme that nobody knows and a server that is not there: one line, no traceback."""
    done = phema(command, url, forked=True)
    assert (done.code, done.err.count("\n")) == (code, 1)
    assert message in done.err


@pytest.mark.slow
def test_http_of_single_files(serve, tmp_path):
    """Files of a server are compared; one that it does not have is missing, as on a disk."""
    write_run(tmp_path / "ckpts")
    url, _ = serve()
    name = "ckpts/ema-step0000100-gamma5.safetensors"
    same = phema("diff", f"{url}/{name}", tmp_path / name, forked=True)
    assert (same.code, same.err) == (0, "")
    assert "3 tensors compared, 3 identical" in same.out
    for command in ("diff", "synthesize"):
        more = (tmp_path / name,) if command == "diff" else ("-g", "7")
        done = phema(command, f"{url}/ckpts/none.safetensors", *more, forked=True)
        assert (done.code, done.err.count("\n")) == (3, 1)
        assert done.err.endswith("/ckpts/none.safetensors: no such file or directory\n")


def test_files_by_url_are_local_and_outputs_can_be_nothing_else(tmp_path):
    """file:// is a path of this machine; a URL as output is refused."""
    write_run(tmp_path / "ckpts")
    (out,) = synthesize(f"file://{tmp_path}/ckpts", gamma=7, output=tmp_path / "o.safetensors")
    assert out.exists()
    with pytest.raises(UsageError, match="outputs are written to this machine"):
        synthesize(tmp_path / "ckpts", gamma=7, output="memory://o.safetensors")


@pytest.mark.slow
def test_without_the_extra_the_remedy_is_named():
    """Where universal_pathlib is not installed the message says how to get it."""
    code = (
        "import sys; sys.modules['upath'] = None\n"
        "from phema_cli.cli.app import main\n"
        "main(['inspect', 's3://bucket/ckpts'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "phema-cli[remote]"' in done.stderr


def test_errors_of_a_file_system_are_storage_errors(tmp_path, monkeypatch):
    """Whatever a file system raises while tensors are read becomes one line."""
    write_run(tmp_path / "ckpts")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "ckpts"), "/broken", recursive=True)

    def fail(*_, **__):
        raise RuntimeError("token expired")

    try:
        found = scan(["memory://broken"])
        monkeypatch.setattr(type(memory), "cat_ranges", fail)
        with pytest.raises(StorageError, match="token expired"):
            synthesize("memory://broken", gamma=7, output=tmp_path / "o.safetensors")
    finally:
        memory.rm("/broken", recursive=True)
    assert found.snapshots
