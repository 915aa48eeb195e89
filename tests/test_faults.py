"""Kills, full disks, changed inputs and second runs: no half output, and no work lost."""

import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from phema_cli.errors import InputError, StorageError, UsageError
from phema_cli.formats import safetensors
from phema_cli.request import Config
from phema_cli.snapshots import scan
from phema_cli.synthesis import Request, journal, make_recipe, staging
from tests.builders import PHEMA, execute
from tests.injection import digests, wait_for
from tests.verified import verify_output
from tests.warm import popen

pytestmark = [pytest.mark.slow, pytest.mark.linux("a library in front of the system's calls")]

#: `make faults` sets it to a hundred.
KILLS = int(os.environ.get("PHEMA_KILLS", "4"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Four snapshots of 64 MB each."""
    folder = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    for step, gamma in itertools.product((1, 2), ("5.0", "10.0")):
        tensors = {f"layer{i}": torch.randn(4_000_000, generator=generator) for i in range(8)}
        metadata = {"gamma": gamma, "step": str(step)}
        halves = {name: values.half() for name, values in tensors.items()}
        save_file(halves, folder / f"s{step}-{gamma}.safetensors", metadata)
    return folder


def start(folder, out, *more, **options):
    """A synthesis of two targets in shards, by small tiles of one worker."""
    command = [PHEMA, "synthesize", folder, "-g", "6,7", "--max-shard-size", "20MB", "-q"]
    return (subprocess.Popen if "preexec_fn" in options else popen)(
        [*map(str, command), "-j", "1", "--max-memory", "600KB", "-o", str(out), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def ended(process):
    """A process's exit code and stderr, once it is over."""
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def notes(out):
    """Whether a journal says that something is done."""
    return any('"done"' in p.read_text() for p in out.glob("*.partial/journal"))


def test_kills_at_any_moment_lose_nothing(large, tmp_path):
    """After kill -9 there is no output, or all of it; the same command makes the same bytes."""
    before = digests(large)
    process = start(large, tmp_path / "whole")
    wait_for(lambda: list(tmp_path.glob("whole/*.partial")), process)
    began = time.monotonic()
    assert ended(process) == (0, "")
    lasts = time.monotonic() - began
    whole = digests(tmp_path / "whole")
    for out in (tmp_path / "whole").iterdir():
        verify_output(out, scan([large]))
    moments = random.Random(0)  # noqa: S311 - no secret
    went_on = 0
    for number in range(KILLS):
        out = tmp_path / str(number)
        process = start(large, out)
        wait_for(lambda out=out: list(out.glob("*.partial")), process)
        time.sleep(moments.uniform(0, 1.1 * lasts))
        process.kill()
        ended(process)
        left = digests(out) if out.exists() else {}
        for folder in out.glob("phema-*[0-9]"):
            if (folder / "model.safetensors.index.json").exists():
                own = {k: v for k, v in left.items() if k.startswith(folder.name + "/")}
                assert own.items() <= whole.items()
                assert len(own) == len(whole) // 2
        went_on += notes(out)
        finished = left == whole
        assert ended(start(large, out, *(["--overwrite"] * finished))) == (0, "")
        assert digests(out) == whole
        for path in out.rglob("*.safetensors"):
            path.unlink()
    assert digests(large) == before
    told = f"{KILLS} kills, {went_on} with work left to go on from, {KILLS} recovered"
    print(f"\n{told}")  # noqa: T201 - `make faults` shows it
    assert went_on >= KILLS // 4


@pytest.fixture
def recipe(tmp_path):
    """A plan for one output of a few kilobytes, in many runs."""
    (tmp_path / "in").mkdir()
    for step in (1, 2):
        metadata = {"gamma": "5.0", "step": str(step)}
        values = {"w": torch.rand(50_000), "n": torch.arange(1000)}
        save_file(values, tmp_path / "in" / f"s{step}.safetensors", metadata)
    made, _ = make_recipe(
        scan([tmp_path / "in"]), Request(gamma=(7.0,), output=str(tmp_path / "o"))
    )
    return replace(made, tile_elements=8, jobs=1)


def interrupted(recipe, monkeypatch, after=100_000):
    """Execute a recipe until so many bytes were read and written."""
    monkeypatch.setattr(staging, "_RECORDED_BYTES", 10_000)
    monkeypatch.setattr("phema_cli.system.pools._REPORT_SECONDS", 0.001)
    seen = []

    def stop(done):
        seen.append(done)
        if sum(seen) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        execute(recipe, progress=stop)
    return caught.value


def test_a_run_goes_on_with_what_was_done(recipe, tmp_path, monkeypatch):
    """After an interruption only the rest is read, and the bytes are the same."""
    execute(recipe)
    (out,) = (p for p in (tmp_path / "o").iterdir())
    expected = out.read_bytes()
    out.unlink()
    error = interrupted(recipe, monkeypatch, after=300_000)
    assert "the same command resumes" in error.__notes__[0]
    assert list((tmp_path / "o").glob("*.partial/journal"))
    done = []
    execute(recipe, progress=done.append)
    assert 0 < sum(done) < recipe.read_bytes + recipe.write_bytes - 200_000
    assert out.read_bytes() == expected
    assert list((tmp_path / "o").iterdir()) == [out]


def test_leftovers_are_no_snapshots(recipe, tmp_path, monkeypatch):
    """A scan of the directory that outputs go to leaves unfinished ones out."""
    interrupted(recipe, monkeypatch, after=300_000)
    found = scan([tmp_path])
    assert len(found.snapshots) == 2


def test_another_plan_refuses_leftovers(recipe, tmp_path, monkeypatch):
    """Other weights go nowhere near what is left; the message says how to remove it."""
    interrupted(recipe, monkeypatch, after=300_000)
    other = replace(recipe, weights=recipe.weights[::-1].copy())
    left = digests(tmp_path)
    with pytest.raises(UsageError, match=r"unfinished files of another .*--overwrite .* rm -r"):
        execute(other)
    assert digests(tmp_path) == left


def test_overwrite_discards_what_other_snapshots_left(recipe, tmp_path, monkeypatch):
    """A run was killed, and training went on: the command with --overwrite starts anew."""
    interrupted(recipe, monkeypatch, after=300_000)
    metadata = {"gamma": "5.0", "step": "2"}
    values = {"w": torch.rand(50_000), "n": torch.arange(1000)}
    save_file(values, tmp_path / "in" / "s2.safetensors", metadata)
    asked = Request(gamma=(7.0,), output=str(tmp_path / "o"))
    found = scan([tmp_path / "in"])
    with pytest.raises(UsageError, match="unfinished files of another synthesis"):
        execute(make_recipe(found, asked)[0])
    execute(make_recipe(found, replace(asked, overwrite=True))[0])
    (out,) = (tmp_path / "o").iterdir()
    assert load_file(out).keys() == values.keys()


def test_another_dict_of_the_same_files_refuses_leftovers(tmp_path, monkeypatch):
    """The same weights, files and header: what was made of one dict needs that one."""
    (tmp_path / "in").mkdir()
    for step in (1, 2):
        w = torch.rand(50_000)
        torch.save({"a": {"w": w}, "b": {"w": w + 5}}, tmp_path / "in" / f"step{step}.pt")

    def made(key):
        config = Config(key=key, average="exponential:beta=0.9")
        asked = Request(profile="checkpoints:last=2", output=str(tmp_path / "o"), config=config)
        found, _ = make_recipe(scan([tmp_path / "in"], config), asked)
        return replace(found, tile_elements=8, jobs=1)

    interrupted(made("a"), monkeypatch, after=300_000)
    with pytest.raises(UsageError, match="unfinished files of another synthesis"):
        execute(made("b"))
    execute(made("a"))
    (out,) = (tmp_path / "o").iterdir()
    assert load_file(out)["w"].max() < 1


def test_a_torn_journal_counts_up_to_the_tear(recipe, tmp_path, monkeypatch):
    """A last line that a power loss cut short is left out, and so are files of another size."""
    execute(recipe)
    (out,) = (p for p in (tmp_path / "o").iterdir())
    expected = out.read_bytes()
    out.unlink()
    for damage in ("line", "file"):
        interrupted(recipe, monkeypatch, after=300_000)
        (folder,) = (tmp_path / "o").glob("*.partial")
        if damage == "line":
            os.truncate(folder / "journal", (folder / "journal").stat().st_size - 3)
        else:
            os.truncate(folder / out.name, 100)
        execute(recipe)
        assert out.read_bytes() == expected
        out.unlink()


def test_what_is_in_the_way_stays(recipe):
    """A directory of somebody else's under the partial name is not touched."""
    folder = recipe.outputs[0].staging
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="in the way"):
        execute(recipe)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "own journal", "linked journal"])
def test_what_has_the_partial_name_is_not_touched(recipe, tmp_path, kind):
    """A file, a link or a file called journal in the place of ours stays as it is."""
    folder = recipe.outputs[0].staging
    folder.parent.mkdir()
    other = tmp_path / "other"
    if kind == "file":
        folder.write_text("mine")
    elif kind == "link":
        other.mkdir()
        folder.symlink_to(other)
    elif kind == "dangling":
        folder.symlink_to(other)
    elif kind == "own journal":
        folder.mkdir()
        (folder / "journal").write_text("mine")
    else:
        folder.mkdir()
        other.write_text("")
        (folder / "journal").symlink_to(other)
    before = digests(tmp_path), sorted(tmp_path.rglob("*"))
    said = r"way of the output; move it|links are not followed"
    with pytest.raises((UsageError, StorageError), match=said):
        execute(recipe)
    assert (digests(tmp_path), sorted(tmp_path.rglob("*"))) == before


def cuts(text):
    """Sizes at and around each end of a line, and some in between."""
    ends = [i + 1 for i, byte in enumerate(text) if byte == ord("\n")]
    sizes = {0, 1, *ends, *(e - 1 for e in ends), *(e - 2 for e in ends), *(e + 1 for e in ends)}
    return sorted(size for size in {*sizes, len(text) // 2} if 0 <= size < len(text))


def damaged(text):
    """A journal cut at every kind of place, with a byte changed, and with zeros at its end."""
    for size in cuts(text):
        yield text[:size]
        yield text[:size] + bytes(len(text) - size)
        yield text[:size] + bytes([text[size] ^ 1]) + text[size + 1 :]


def test_a_damaged_journal_does_no_harm(recipe, tmp_path, monkeypatch):
    """Whatever is damaged in it counts for nothing: the right bytes, or one line and no harm."""
    recipe = replace(recipe, tile_elements=64)
    execute(recipe)
    (out,) = (tmp_path / "o").iterdir()
    expected = out.read_bytes()
    out.unlink()
    interrupted(recipe, monkeypatch, after=300_000)
    monkeypatch.undo()
    (folder,) = (tmp_path / "o").iterdir()
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert left["journal"].count(b"\n") > 2
    first = left["journal"].splitlines(keepends=True)[0]
    went_on = 0
    for text in damaged(left["journal"]):
        folder.mkdir(exist_ok=True)
        for name, data in (left | {"journal": text}).items():
            (folder / name).write_bytes(data)
        before = digests(tmp_path)
        if not text.startswith(first):
            with pytest.raises(UsageError, match="in the way of the output; move it"):
                execute(recipe)
            assert digests(tmp_path) == before
            continue
        execute(recipe)
        went_on += 1
        assert out.read_bytes() == expected
        assert list((tmp_path / "o").iterdir()) == [out]
        out.unlink()
    assert went_on > len(list(damaged(left["journal"]))) // 2


def test_a_run_goes_on_behind_a_torn_line(recipe, tmp_path, monkeypatch):
    """What is noted after a tear counts: a second interruption loses no more than a first."""
    interrupted(recipe, monkeypatch, after=200_000)
    (folder,) = (tmp_path / "o").glob("*.partial")
    with (folder / "journal").open("ab") as stream:
        stream.write(b'{"done": [[')
    first = journal.runs_done(folder)
    interrupted(recipe, monkeypatch, after=200_000)
    assert len(journal.runs_done(folder)) > len(first) > 0


def test_a_journal_that_cannot_be_read_keeps_the_work(recipe, tmp_path, monkeypatch):
    """A failing read of the journal says so, and is no reason to remove what is done."""
    interrupted(recipe, monkeypatch, after=300_000)
    left = digests(tmp_path)

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("phema_cli.system.log.Log.lines", fail)
    with pytest.raises(StorageError, match="cannot write: Input/output error"):
        execute(recipe)
    assert digests(tmp_path) == left


def test_complete_files_that_are_gone_are_missed(recipe, tmp_path, monkeypatch):
    """When only names were left to give and somebody took the files, that is no success."""
    monkeypatch.setattr("phema_cli.synthesis.staging.publish", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(recipe)
    monkeypatch.undo()
    (folder,) = (tmp_path / "o").glob("*.partial")
    (folder / recipe.outputs[0].path.name).unlink()
    with pytest.raises(StorageError, match=r"was finished, and is missing now; rm -r"):
        execute(recipe)


@pytest.mark.usefixtures("recipe")
def test_a_snapshot_replaced_between_header_and_values(tmp_path, monkeypatch):
    """The file that the values come from is the one that the header was read from."""
    source = tmp_path / "in" / "s1.safetensors"
    read = safetensors.read_header

    def read_and_replace(path):
        found = read(path)
        if path == source:
            shutil.copy(path, tmp_path / "new")
            (tmp_path / "new").replace(path)
        return found

    monkeypatch.setattr("phema_cli.formats.safetensors.read_header", read_and_replace)
    made, _ = make_recipe(
        scan([tmp_path / "in"]), Request(gamma=(7.0,), output=str(tmp_path / "o"))
    )
    with pytest.raises(InputError, match=r"s1.safetensors: changed while it was read"):
        execute(made)


@pytest.mark.usefixtures("recipe")
def test_a_run_killed_between_names_gives_the_rest_theirs(tmp_path, monkeypatch):
    """Of two outputs one has its name already: without --overwrite the same command goes on."""
    made, _ = make_recipe(
        scan([tmp_path / "in"]), Request(gamma=(6.0, 7.0), output=str(tmp_path / "two"))
    )
    execute(made)
    expected = digests(tmp_path / "two")
    for path in (tmp_path / "two").iterdir():
        path.unlink()
    publish = staging.publish

    def fail(output):
        if output is made.outputs[1]:
            raise KeyboardInterrupt
        publish(output)

    monkeypatch.setattr("phema_cli.synthesis.staging.publish", fail)
    with pytest.raises(KeyboardInterrupt):
        execute(made)
    assert made.outputs[0].path.exists()
    assert not made.outputs[1].path.exists()
    monkeypatch.undo()
    execute(made)
    assert digests(tmp_path / "two") == expected


@pytest.mark.parametrize("change", ["touch", "replace", "truncate", "remove"])
def test_an_input_that_changes_is_noticed(recipe, tmp_path, monkeypatch, change):
    """Whatever happens to a snapshot while it is read, there is no output."""
    source = tmp_path / "in" / "s1.safetensors"

    def meddle(_):
        if change == "touch":
            os.utime(source)
        elif change == "replace":
            source.with_name("new").write_bytes(source.read_bytes())
            source.with_name("new").replace(source)
        elif change == "truncate":
            os.truncate(source, 5000)
        else:
            source.unlink(missing_ok=True)
        monkeypatch.undo()

    monkeypatch.setattr("phema_cli.synthesis.staging.check_outputs", lambda *_: meddle(None))
    with pytest.raises((InputError, StorageError)) as caught:
        execute(recipe)
    assert "s1.safetensors" in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_two_runs_do_not_share_an_output(large, tmp_path):
    """The second waits a little for the first, and then gives up without touching anything."""
    process = start(large, tmp_path / "o")
    wait_for(lambda: list((tmp_path / "o").glob("*.partial/model*")), process)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        short = {"phema_cli.system.log.PATIENCE_SECONDS": 0.3}
        code, err = ended(start(large, tmp_path / "o", changed=short))
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert code == 5
    assert "another process is writing" in err
    assert ended(process) == (0, "")
    assert len(digests(tmp_path / "o")) == 12


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_keep_what_is_done(large, tmp_path, sent, code):
    """After a signal the same command goes on, and no worker is left behind."""
    out = tmp_path / "o"
    before = signal.signal(sent, signal.SIG_DFL)
    process = start(large, out)
    signal.signal(sent, before)
    wait_for(lambda: notes(out), process)
    process.send_signal(sent)
    found, err = ended(process)
    assert found == code
    assert not list(out.glob("*[0-9]"))
    assert "no output was written; the same command resumes from" in err
    assert ended(start(large, out)) == (0, "")
    assert not list(out.glob("*.partial"))


def test_a_full_disk_leaves_what_can_go_on(large, tmp_path):
    """A limit on the size of files stands for it: no output, and nothing that looks like one."""
    process = start(
        *(large, tmp_path / "o"),
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    code, err = ended(process)
    assert code == 5
    assert "cannot write" in err
    assert not (tmp_path / "o").exists()
