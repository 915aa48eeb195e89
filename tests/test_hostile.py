"""Hostile files: each ends the command with 3 or 4, one line, in little time and memory."""

import signal

import pytest

from phema_cli.cli.app import main
from tests.builders import phema
from tests.hostile import CORPUS
from tests.limits import BYTES, SECONDS, limits_of

# torch warns that it was asked for what it was asked for (no_dist).
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def command(case, folder):
    """The command line for a case, whose files are written."""
    (folder / "in").mkdir()
    given = CORPUS[case].build(folder / "in") or [folder / "in"]
    target = [] if "--profile" in given else ["-g", "7"]
    return ["synthesize", *map(str, given), *target, "-q", "-o", str(folder / "out.safetensors")]


@pytest.fixture(scope="module")
def _warm(tmp_path_factory):
    """Import what the command imports, so that no case is charged with it."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.raises(SystemExit):
        main(command("csv: one line", folder))


@pytest.fixture
def _signals():
    """Leave the process's signals as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("_warm", "_signals")
@pytest.mark.parametrize("case", CORPUS)
def test_hostile(tmp_path, monkeypatch, capsys, case):
    """Exit code 3 or 4, one line, no output, nothing run, under 1 s and 64 MiB."""
    monkeypatch.chdir(tmp_path)
    arguments = command(case, tmp_path)

    def end():
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return ended.value.code, capsys.readouterr()

    (code, said), seconds, held = limits_of(end)
    assert code in CORPUS[case].codes, said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("phema: ")
    assert said.err[:-1].isprintable()
    assert len(said.err) < 3000
    assert seconds < SECONDS
    assert held < BYTES
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "safetensors: header of 2^64 - 1 bytes",
        "index: a link out of the directory",
        "torch: a key nested deeply",
        "edm2: os.system",
        "dcp: chunks at one place",
        "phema.toml: deep lists",
        "csv: times beyond numbers",
        "names: os.system",
        "packed: itself by another",
    ],
)
def test_console_script(tmp_path, case):
    """The same through the console script, for each format once."""
    run = phema(*command(case, tmp_path), cwd=tmp_path, forked=True)
    assert run.code in CORPUS[case].codes, run.err
    assert (run.out, run.err.count("\n")) == ("", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
