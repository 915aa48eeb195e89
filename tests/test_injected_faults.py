"""Failing and lying system calls, full and read-only disks: under the real console script."""

import itertools
import os
import random
import shutil
import subprocess
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from tests.injection import ALWAYS, Fault, Injected, compiled, digests

pytestmark = [pytest.mark.slow, pytest.mark.linux("calls of the system that fail at will")]

#: how many faults the sweep injects; `make faults` sets it to a hundred.
FAULTS = int(os.environ.get("PHEMA_FAULTS", "2"))

#: a staged shard, and a snapshot.
SHARD, SNAPSHOT = ".partial/model-00003", "/in/s2-10.0"


@pytest.fixture(scope="module")
def ckpts(tmp_path_factory):
    """Four snapshots of 800 kB each."""
    folder = tmp_path_factory.mktemp("faults") / "in"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2):
        for gamma in ("5.0", "10.0"):
            tensors = {f"layer{i}": torch.randn(50_000, generator=generator) for i in range(4)}
            tensors["count"] = torch.arange(10)
            metadata = {"gamma": gamma, "step": str(step)}
            save_file(tensors, folder / f"s{step}-{gamma}.safetensors", metadata)
    return folder


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    """The layer of faults, compiled."""
    return compiled(tmp_path_factory.mktemp("layer"))


def arguments(ckpts, out, form="safetensors"):
    """A synthesis in four shards or one file, by small tiles of one worker."""
    shards = ["--max-shard-size", "250kB", "-o", f"{out}/"]
    end = shards if form == "safetensors" else ["-o", out / f"o.{form}"]
    return ["synthesize", ckpts, "-g", 7, "-q", "-j", 1, "--max-memory", "600KB", *end]


@pytest.fixture(scope="module")
def undisturbed(ckpts, layer, tmp_path_factory):
    """By format: digests of what an undisturbed run writes, and the calls that it makes."""
    found = {}
    for form in ("safetensors", "pt"):
        folder = tmp_path_factory.mktemp(f"whole-{form}")
        command = arguments(ckpts, folder / "out", form)
        # Snapshots and outputs lie in different directories of one run of the tests.
        run = Injected(layer, folder / "log", command, trace=f"{ckpts.parent.parent}/")
        done = run.end()
        assert (done.code, done.err) == (0, "")
        calls = [(call, path.replace(str(folder), "")) for call, path in run.lines()]
        assert {"preadv", "pwrite", "fsync", "rename", "mkdir"} < {call for call, _ in calls}
        found[form] = digests(folder / "out"), calls
    return found


@pytest.fixture
def start(ckpts, layer, tmp_path):
    """Starts the synthesis into ``out`` under faults."""
    number = itertools.count()

    def begin(*faults, out=tmp_path / "out", form="safetensors", ckpts=ckpts, more=()):
        log = tmp_path / f"log{next(number)}"
        return Injected(layer, log, [*arguments(ckpts, out, form), *more], *faults)

    return begin


def complete(out):
    """What lies under a name that says it is complete."""
    found = [*out.glob("*/*.index.json"), *out.glob("*.pt")] if out.exists() else []
    return [path for path in found if path.parent.suffix != ".partial"]


def named(out):
    """Digests of what has its final name."""
    return {name: found for name, found in digests(out).items() if ".partial/" not in name}


def check_failed(run, out, code, words, whole=None):
    """One line says what, where and the remedy; no output is there, or a ``whole`` one."""
    assert run.code == code, run.err
    assert run.err.startswith("phema: ")
    assert run.err.count("\n") == 1
    assert words in run.err
    assert "; " in run.err
    if complete(out) and whole is not None:
        assert named(out) == whole
    else:
        assert not complete(out)


def check_recovers(start, out, expected, **options):
    """The same command, undisturbed, gives what an undisturbed run gives, and nothing else."""
    run = start(out=out, **options).end()
    assert (run.code, run.err) == (0, "")
    assert digests(out) == expected
    assert not list(out.glob("*.partial"))


def test_flushes_come_between_names(undisturbed):
    """A file system may keep names in any order; a flush of the directory keeps them apart."""
    _, calls = undisturbed["safetensors"]
    made = "/out/phema-step0000002-gamma7"
    shards = [f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)]
    order = [
        ("write", f"{made}.partial/journal"),
        ("fsync", f"{made}.partial/journal"),
        ("fsync", f"{made}.partial"),
        *[("posix_fallocate", f"{made}.partial/{shard}") for shard in shards],
        ("fsync", f"{made}.partial"),
        *[("fsync", f"{made}.partial/{shard}") for shard in shards],
        ("write", f"{made}.partial/journal"),
        ("fsync", f"{made}.partial/journal"),
        *[("rename", f"{made}.partial/{shard}") for shard in shards],
        ("fsync", made),
        ("rename", f"{made}.partial/model.safetensors.index.json"),
        ("fsync", made),
        ("unlink", f"{made}.partial/journal"),
    ]
    left = iter(calls)
    assert [call for call in order if call not in left] == []


FAILURES = [
    (Fault("preadv", SNAPSHOT, "EIO", nth=20), 5, "s2-10.0.safetensors: cannot read: Input"),
    (Fault("preadv", SNAPSHOT, "zero", nth=20), 3, "s2-10.0.safetensors: ends at byte"),
    (Fault("pwrite", SHARD, "ENOSPC", nth=2), 5, "cannot write: No space left"),
    (Fault("fsync", SHARD, "EIO"), 5, "cannot write: Input/output error"),
    (Fault("rename", "model-00002", "EIO"), 5, "cannot write: Input/output error"),
    (
        Fault("close", f"{SHARD}-of-00004.safetensors", "EDQUOT", nth=2),
        5,
        "cannot write: Disk quota",
    ),
]


@pytest.mark.parametrize(("fault", "code", "words"), FAILURES, ids=lambda v: str(v)[:30])
def test_a_call_that_fails(start, ckpts, tmp_path, undisturbed, fault, code, words):
    """One line and an exit code, no output, inputs as they were; then the same command goes on."""
    before = digests(ckpts)
    run = start(fault)
    done = run.end()
    assert run.fired
    check_failed(done, tmp_path / "out", code, words)
    check_recovers(start, tmp_path / "out", undisturbed["safetensors"][0])
    assert digests(ckpts) == before


#: what the system may do by its own rules, or a file system lack.
TOLERATED = [
    Fault("preadv", "/in/", "short"),
    Fault("read", "/in/", "short"),
    Fault("close", "/in/s2-5.0", "EIO", nth=2),
    Fault("pwrite", ".partial/", "short"),
    Fault("write", ".partial/", "short"),
    Fault("posix_fallocate", ".partial/", "EOPNOTSUPP"),
    Fault("fsync", "gamma7$", "EINVAL"),
    Fault("fsync", ".partial$", "EINVAL"),
]


def test_what_a_system_may_do_changes_nothing(start, tmp_path, undisturbed):
    """Calls that do half of what they could, or that a file system lacks: the same bytes."""
    run = start(*TOLERATED)
    done = run.end()
    assert {call for call, _ in run.fired} == {fault.call for fault in TOLERATED}
    assert (done.code, done.err) == (0, "")
    assert digests(tmp_path / "out") == undisturbed["safetensors"][0]


def test_one_failed_read_is_tried_again(start, tmp_path, undisturbed):
    """A read that fails once and then not is no failure."""
    run = start(Fault("preadv", SNAPSHOT, "EIO", nth=20, times=1))
    assert run.end().code == 0
    assert len(run.fired) == 1
    assert digests(tmp_path / "out") == undisturbed["safetensors"][0]


ACTIONS = {
    "open": ("EIO", "EMFILE"),
    "read": ("EIO", "zero", "short"),
    "preadv": ("EIO", "zero", "short"),
    "write": ("EIO", "ENOSPC", "short"),
    "pwrite": ("EIO", "ENOSPC", "EDQUOT", "short"),
    "fsync": ("EIO", "ENOSPC"),
    "close": ("EIO", "EDQUOT"),
    "posix_fallocate": ("ENOSPC", "EIO", "EOPNOTSUPP"),
    "ftruncate": ("EIO",),
    "rename": ("EIO", "ENOSPC", "EROFS"),
    "unlink": ("EIO", "EROFS"),
    "mkdir": ("EROFS", "ENOSPC"),
}


def faults_of(calls):
    """All faults at the first, the middle and the last call of each kind on each file."""
    counts = {}
    for call, path in calls:
        if not path:
            continue  # the directory above: its rule would hold for every file
        counts[call, path] = counts.get((call, path), 0) + 1
    return [
        Fault(call, f"{path}$", action, nth, times)
        for (call, path), count in counts.items()
        for nth in sorted({1, (count + 1) // 2, count})
        for action in ACTIONS[call]
        for times in (1, ALWAYS)
    ]


def test_any_call_may_fail_at_any_moment(start, ckpts, tmp_path, undisturbed):
    """Whatever fails, once or for good: the whole output or none, and the same command goes on."""
    choice = random.Random(0)  # noqa: S311 - no secret
    before = digests(ckpts)
    wanted = [
        (form, fault) for form, (_, calls) in undisturbed.items() for fault in faults_of(calls)
    ]
    choice.shuffle(wanted)
    injected = failed = recovered = 0
    for form, fault in wanted:
        if injected == FAULTS:
            break
        expected, _ = undisturbed[form]
        out = tmp_path / str(injected) / "out"
        out.parent.mkdir(exist_ok=True)
        run = start(fault, out=out, form=form)
        done = run.end()
        if not run.fired:
            continue
        injected += 1
        failed += bool(done.code)
        if done.code:
            assert done.code in {3, 5}, (fault, done)
            # What fails last may be what makes names durable.
            check_failed(done, out, done.code, "", whole=expected)
            check_recovers(start, out, expected, form=form)
        else:
            # A journal that can't be removed is no reason to call a whole output a failure.
            assert named(out) == expected, fault
        recovered += 1
        shutil.rmtree(out.parent)
    assert digests(ckpts) == before
    told = (
        f"{injected} faults injected of {len(wanted)}, {failed} ended a run, {recovered} recovered"
    )
    print(f"\n{told}")  # noqa: T201 - `make faults` shows it
    assert injected == recovered == FAULTS


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs", folder):
        yield folder


@contextmanager
def mounted(*what):
    """A mount that ends with the test; skips it where mounting is not permitted."""
    done = subprocess.run(["mount", *map(str, what)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(what[-1])], check=True)


def fill(disk, left):
    """Take all of a disk's space but so many bytes."""
    space = os.statvfs(disk)
    with (disk / "filler").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, space.f_bavail * space.f_frsize - left)


def test_a_disk_without_room_is_noticed_before_the_work(start, small_disk):
    """What is needed and what is free are named, nothing is read or left."""
    fill(small_disk, 300_000)
    run = start(Fault("pwrite", ".partial/", "EIO"), out=small_disk / "out")
    check_failed(run.end(), small_disk / "out", 5, "bytes more, and 2")
    assert not run.fired
    assert list(small_disk.iterdir()) == [small_disk / "filler"]


def test_a_disk_that_fills_up_during_the_work(start, small_disk, undisturbed):
    """Where space can't be reserved the disk fills up later: what is done is kept and goes on."""
    out = small_disk / "out"
    run = start(
        Fault("posix_fallocate", ".partial/", "EOPNOTSUPP"),
        Fault("pwrite", SHARD, "pause", nth=2, times=1),
        out=out,
    )
    run.wait_for(lambda: noted(out))
    fill(small_disk, 0)
    run.go_on()
    done = run.end()
    check_failed(done, out, 5, "cannot write: No space left on device; free space there")
    assert "the same command resumes from" in done.err
    (small_disk / "filler").unlink()
    check_goes_on(start, out, undisturbed)


def noted(out):
    """Whether a journal says that something is done."""
    return any('"done"' in p.read_text() for p in out.glob("*.partial/journal"))


def check_goes_on(start, out, undisturbed, **options):
    """As ``check_recovers``, and the first shard, which was done, is not written again."""
    (staging,) = out.glob("*.partial")
    first = (staging / "model-00001-of-00004.safetensors").stat()
    check_recovers(start, out, undisturbed["safetensors"][0], **options)
    (made,) = out.glob("*/model-00001-of-00004.safetensors")
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_kill_loses_one_shard_at_most(start, tmp_path, undisturbed, jobs):
    """After kill -9 in the third shard the first is not made again; no lock is left behind."""
    out = tmp_path / "out"
    run = start(Fault("pwrite", SHARD, "pause", nth=2, times=1), more=("-j", jobs))
    run.wait_for(lambda: noted(out))
    run.process.kill()
    run.go_on()
    run.end()
    assert not complete(out)
    check_goes_on(start, out, undisturbed, more=("-j", jobs))


def test_read_only_disks(start, tmp_path, undisturbed):
    """Neither the directory of the outputs nor what is left there is harmed, and both are named."""
    out = tmp_path / "out"
    run = start(Fault("pwrite", SHARD, "pause", nth=2, times=1))
    run.wait_for(lambda: noted(out))
    run.process.kill()
    run.end()
    left = digests(out)
    with mounted("--bind", out, out):
        subprocess.run(["mount", "-o", "remount,bind,ro", out], check=True)
        check_failed(start().end(), out, 5, "cannot write: Read-only file system; ")
        assert digests(out) == left
    (staging,) = out.glob("*.partial")
    with mounted("--bind", staging, staging):
        subprocess.run(["mount", "-o", "remount,bind,ro", staging], check=True)
        check_failed(start().end(), out, 5, "cannot write: Read-only file system; ")
        assert digests(out) == left
    check_recovers(start, out, undisturbed["safetensors"][0])


def test_an_output_directory_that_vanishes(start, tmp_path, undisturbed):
    """Somebody removes the directory while it is written to: exit code 5, and it can be redone."""
    out = tmp_path / "out"
    run = start(Fault("pwrite", SHARD, "pause", nth=2, times=1))
    run.wait_for(lambda: noted(out))
    shutil.rmtree(out)
    run.go_on()
    check_failed(run.end(), out, 5, "cannot write: No such file or directory")
    check_recovers(start, out, undisturbed["safetensors"][0])


@pytest.mark.parametrize("change", ["replace", "truncate", "touch"])
def test_a_snapshot_that_changes_while_it_is_read(start, ckpts, tmp_path, change):
    """Half of it read before and half after: exit code 3, the file named, no output."""
    mine = tmp_path / "in"
    shutil.copytree(ckpts, mine)
    victim = mine / "s2-10.0.safetensors"
    out = tmp_path / "out"
    run = start(Fault("preadv", SNAPSHOT, "pause", nth=20, times=1), ckpts=mine)
    run.wait_for(lambda: run.fired)
    if change == "replace":
        shutil.copy(mine / "s1-10.0.safetensors", mine / "new")
        (mine / "new").replace(victim)
    elif change == "truncate":
        os.truncate(victim, 100_000)
    else:
        victim.touch()
    run.go_on()
    check_failed(run.end(), out, 3, "s2-10.0.safetensors: ")
