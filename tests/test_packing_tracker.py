"""Packed snapshots of PowerEMA: what readers have of them, chains, errors, kills, ranks."""

import itertools
import json
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import nn

from phema_cli import PowerEMA
from phema_cli.errors import InputError, StorageError, UsageError
from phema_cli.formats.packing import BLOCK, KEY
from phema_cli.integrations.recorder import Recorder
from phema_cli.snapshots.reading import read_checkpoint
from phema_cli.system import files
from phema_cli.tracker import packed, snapshot
from tests import packed_run, warm
from tests.packed_run import is_intact, is_keyframe, values

#: more of them with PHEMA_KILLS, as `make faults` has it.
KILLS = int(os.environ.get("PHEMA_KILLS", "8"))


class Net(nn.Module):
    """Tied, frozen, constant, integer, empty, single and odd-sized tensors."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 45)
        self.norm = nn.BatchNorm1d(45)
        self.hidden = nn.Linear(45, 45)
        self.head = nn.Linear(45, 7, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.nothing = nn.Parameter(torch.ones(0, 3))
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("table", torch.linspace(0, 1, 9, dtype=torch.float64))
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))

    def forward(self, x):
        return self.head(self.hidden(self.norm(self.embed(x))).tanh() * self.scale)


AVERAGED = [
    *("embed.weight", "hidden.bias", "hidden.weight", "norm.bias", "norm.running_mean"),
    *("norm.running_var", "norm.weight", "nothing", "scale"),
]


def trained(ema, model, steps, rate=1e-2):
    """Real optimizer steps, and the averages of each."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, rate)
    for _ in range(steps):
        x = torch.randint(0, 7, (32,))
        loss = nn.functional.cross_entropy(model(x), (x + 1) % 7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()


def started(gammas=(5, 10)):
    """A model after its first steps, and its averages."""
    torch.manual_seed(0)
    model = Net()
    ema = PowerEMA(model, gammas)
    trained(ema, model, 5)
    return model, ema


def held(ema):
    """Copies of the averages of each gamma."""
    return [{n: t.detach().clone() for n, t in ema.average(g).items()} for g in ema.gammas]


def half_steps(path, name):
    """Half of the step that each element of a packed tensor is rounded to."""
    scales = load_file(path)[f"{name}.scales"].double().repeat_interleave(BLOCK)
    return scales.numpy() / 2


def check(path, truth):
    """A file says of every tensor what was averaged, to half a step, and the rest exactly."""
    read = values(path)
    stored = load_file(path)
    assert read.keys() >= truth.keys()
    assert is_intact(path)
    for name, expected in truth.items():
        if name not in AVERAGED:
            assert torch.equal(stored[name], expected)
            continue
        assert read[name].shape == expected.shape
        error = np.abs(read[name].astype(float) - expected.double().numpy()).ravel()
        most = np.spacing(expected.abs().numpy()).ravel().astype(float)
        if not is_keyframe(path):
            assert name not in stored
            most += half_steps(path, name)[: len(most)] * 1.002
        else:
            most[:] = 0
        assert (error <= most).all(), (path, name, (error - most).max())


def in_order(folder):
    """The snapshots of a directory, by step and gamma."""
    paths = folder.glob("*.safetensors")
    return sorted(paths, key=lambda p: [*map(int, re.findall(r"\d+", p.name))])


def all_read(folder):
    """Read every file of a directory; which of them, in order, are keyframes."""
    paths = in_order(folder)
    assert all(np.isfinite(v).all() for p in paths for v in values(p).values())
    assert not list(folder.glob("*.partial"))
    return [is_keyframe(p) for p in paths]


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("at_once", [None, 64])
def test_packed_averages_are_read_back_to_half_a_step(bits, at_once, tmp_path, monkeypatch):
    """Of every kind of tensor, at each save of a training; the first file is whole."""
    if at_once:
        # As if tensors were large: packed in many parts, and sampled.
        monkeypatch.setattr(packed, "_AT_ONCE", at_once)
        monkeypatch.setattr(packed, "_SAMPLED", 500)
    model, ema = started()
    saved = []
    for _ in range(6):
        trained(ema, model, 3)
        saved += zip(ema.save(tmp_path, packing=bits), held(ema), strict=True)
    for path, truth in saved:
        check(path, truth)
    keyframes = [is_keyframe(p) for p, _ in saved]
    assert keyframes == [True] + [False] * 11
    last = load_file(saved[-1][0])
    assert (
        last["hidden.weight.packed"].numel() == -(-45 * 45 * bits // 16) // (8 // min(8, bits)) or 1
    )
    assert set(last) == {f"{n}.{end}" for n in AVERAGED for end in ("packed", "scales")} | {
        *("frozen", "table", "mask", "norm.num_batches_tracked")
    }
    assert read_checkpoint(saved[-1][0]).metadata["head.weight"] == "embed.weight"
    fresh = Net()
    load_model(fresh, saved[0][0])
    assert torch.equal(fresh.head.weight, saved[0][1]["embed.weight"])


def follows(path):
    """The files that one follows, and their coefficients."""
    text = read_checkpoint(path).metadata[KEY].rpartition(" ")[0]
    return [(name, coefficient) for name, _, coefficient in json.loads(text).get("follows", [])]


def test_what_readers_have_does_not_drift_in_long_chains(tmp_path, monkeypatch):
    """Three gammas are one chain of 64 files; sums of it are what was predicted from, to the last.

    At the end of the schedule movements are a millionth of those at its begin.
    """
    moved = []

    def encode(*arguments):
        moved.append(packed_encode(*arguments)[2])
        return packed_encode(*arguments)

    packed_encode = packed.encode
    monkeypatch.setattr(packed, "encode", encode)
    model, ema = started((5, 10, 2))
    paths, truth = [], []
    for turn in range(23):
        trained(ema, model, 3, 1e-2 * 10 ** (-turn / 4))
        paths += ema.save(tmp_path, packing=8)
        truth += held(ema)
    assert [i for i, path in enumerate(paths) if is_keyframe(path)] == [0, 64]
    names = [p.name for p in paths]
    sizes = [n for n in AVERAGED if n != "nothing"]
    assert len(moved) == 67 * len(sizes)
    begin = values(paths[0])
    for number in range(1, 64):
        assert [n for n, _ in follows(paths[number])] == names[max(1, number - 4) : number][::-1]
        check(paths[number], truth[number])
        read = values(paths[number])
        mine = moved[(number - 1) * len(sizes) : number * len(sizes)]
        for name, movement in zip(sizes, mine, strict=True):
            whole = begin[name].ravel().astype(float) + movement
            error = np.abs(read[name].ravel() - whole)
            assert (error <= 1e-6 * np.abs(movement) + np.spacing(np.abs(read[name].ravel()))).all()


def test_files_are_foretold_by_those_before(tmp_path):
    """What is stored is a small part of what moved from one file to the next."""
    model, ema = started()
    shares = []
    before = None
    for _ in range(20):
        trained(ema, model, 2, 1e-3)
        paths, truth = ema.save(tmp_path, packing=8), held(ema)
        now = truth[1]["hidden.weight"].double().numpy().ravel()
        if before is not None:
            largest = 127 * 2 * half_steps(paths[1], "hidden.weight").mean()
            shares.append(largest / np.abs(now - before).max())
        before = now
    assert np.median(shares[4:]) < 0.1


@pytest.mark.parametrize(("value", "warns"), [(float("nan"), True), (1e30, False)])
def test_averages_that_cannot_be_packed_are_stored_whole(value, warns, tmp_path):
    """Infinities, NaN and magnitudes whose residues would leave float32."""
    model, ema = started()
    ema.save(tmp_path, packing=8)
    with torch.no_grad():
        model.hidden.weight[0, 0] = value
    ema.update()
    for _ in range(2):
        ema.update()
        if warns:
            with pytest.warns(RuntimeWarning, match=r"hidden\.weight are not finite"):
                paths = ema.save(tmp_path, packing=8)
        else:
            paths = ema.save(tmp_path, packing=8)
        assert [is_keyframe(p) for p in paths] == [True, True]
        stored = load_file(paths[1])
        assert all(
            torch.equal(
                stored[n],
                t,
            )
            or warns
            for n, t in ema.average(10).items()
        )
        assert stored["hidden.weight"].isfinite().all() == (not warns)
    # Nothing follows these once the averages are repaired.
    _, repaired = started()
    ema.load_state_dict(repaired.state_dict())
    assert [is_keyframe(p) for p in ema.save(tmp_path / "on", packing=8)] == [True, False]


def test_a_file_that_is_whole_for_its_values_is_not_followed(tmp_path):
    """One gamma alone leaves the range: the next file begins a chain, which goes on."""
    model, ema = started()
    with torch.no_grad():
        model.hidden.weight[0, 0] = 1.5e29
    ema.update()
    with torch.no_grad():
        model.hidden.weight[0, 0] = 0
    ema.update()
    ema.update()
    assert [float(ema.average(g)["hidden.weight"][0, 0]) > 1e28 for g in (5, 10)] == [True, False]
    ema.save(tmp_path, packing=8)
    ema.update()
    paths = ema.save(tmp_path, packing=8)
    assert all_read(tmp_path) == [True, True, False, False]
    for path, truth in zip(paths, held(ema), strict=True):
        check(path, truth)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"packing": 8, "dtype": torch.float16}, "packing replaces dtype"),
        ({"packing": 5}, "pass packing=16, 8 or 4"),
        ({"packing": 0}, "pass packing=16, 8 or 4"),
        ({"packing": 8, "keyframe_every": 1}, "is not from 2 to 256"),
        ({"packing": 8, "keyframe_every": 257}, "is not from 2 to 256"),
    ],
)
def test_arguments_that_say_nothing_are_refused(how, words, tmp_path):
    """By save, which writes nothing, and by the callbacks before the training."""
    _, ema = started()
    with pytest.raises(UsageError, match=words):
        ema.save(tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match=words):
        Recorder(tmp_path, **how)


def test_names_that_readers_would_confuse_are_refused(tmp_path):
    """A quantized layer whose buffers have the names of integers and scales."""
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_buffer("packed", torch.ones(2, dtype=torch.int8))
    model[0].register_buffer("scales", torch.ones(2, dtype=torch.int8))
    ema = PowerEMA(model)
    ema.update()
    with pytest.raises(UsageError, match=r"0\.packed and 0\.scales are names"):
        ema.save(tmp_path / "out", packing=8)
    assert not (tmp_path / "out").exists()


def test_a_step_that_is_saved_twice_begins_a_chain(tmp_path, monkeypatch):
    """No file follows itself, and every file in the directory can be read at any moment."""
    model, ema = started((5, 10, 2))
    moments = []

    def renamed(folder):
        moments.append(all_read(folder))

    monkeypatch.setattr(snapshot, "sync_folder", renamed)
    ema.save(tmp_path, packing=8)
    trained(ema, model, 3)
    ema.save(tmp_path, packing=8)
    again = ema.save(tmp_path, packing=8)
    # The first of the three replaced one that two others followed: they were gone before it.
    assert [len(m) for m in moments] == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert [is_keyframe(p) for p in again] == [True, False, False]
    trained(ema, model, 3)
    later = ema.save(tmp_path, packing=8)
    assert not any(map(is_keyframe, later))
    for path, truth in zip(later, held(ema), strict=True):
        check(path, truth)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 8])
def test_steps_that_are_saved_again_lose_no_file(length, tmp_path, monkeypatch):
    """Wherever in a step the chain before ended, and however often the step is saved."""
    model, ema = started((5, 10, 2))
    monkeypatch.setattr(snapshot, "sync_folder", all_read)
    for turn in range(7):
        trained(ema, model, 1)
        for _ in range(1 + turn % 3):
            paths = ema.save(tmp_path, packing=8, keyframe_every=length)
            for path, truth in zip(paths, held(ema), strict=True):
                check(path, truth)
        assert len(list(tmp_path.iterdir())) == 3 * (turn + 1)


def test_a_resumed_run_begins_a_chain(tmp_path):
    """The state has no chain; loaded into the same object too. Newer files then follow no more."""
    model, ema = started()
    ema.save(tmp_path, packing=8)
    trained(ema, model, 3)
    torch.save(ema.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for _ in range(2):
        trained(ema, model, 3)
        old = ema.save(tmp_path, packing=8)
    for resumed in (ema, PowerEMA(model)):
        resumed.load_state_dict(state)
        trained(resumed, model, 3)
        fresh = resumed.save(tmp_path, packing=8)
        assert [is_keyframe(p) for p in fresh] == [True, False]
        check(fresh[1], held(resumed)[1])
        # Of the run before: it followed what was replaced.
        with pytest.raises(InputError, match="follows another ema-step"):
            values(old[0])
        trained(resumed, model, 3)
        assert resumed.save(tmp_path, packing=8) == old
        assert all_read(tmp_path) == [True, False, True, False, False, False]


def changes(model, ema, folder):
    """What is done between two saves, and how the second is made."""
    del model
    first = min(folder.iterdir())
    return {
        "nothing": (lambda: None, {}),
        "bits": (lambda: None, {"packing": 4}),
        "length": (lambda: None, {"keyframe_every": 5}),
        "name": (lambda: None, {"name": "other"}),
        "directory": (lambda: None, {"directory": folder / "other"}),
        "keyframe removed": (first.unlink, {}),
        "keyframe replaced": (lambda: first.write_bytes(b"?"), {}),
        "keyframe saved whole": (lambda: ema.save(folder), {}),
        "touched": (first.touch, {}),
    }


@pytest.mark.parametrize(
    "change",
    [
        *("nothing", "touched", "bits", "length", "name", "directory"),
        *("keyframe removed", "keyframe replaced", "keyframe saved whole"),
    ],
)
def test_a_chain_ends_when_its_way_or_its_files_change(change, tmp_path):
    """Each makes the next file a keyframe; a file that is the same in another inode does not."""
    model, ema = started()
    ema.save(tmp_path, packing=8)
    act, how = changes(model, ema, tmp_path)[change]
    act()
    trained(ema, model, 1)
    first, second = ema.save(**{"directory": tmp_path, "packing": 8} | how)
    assert is_keyframe(first) == (change not in {"nothing", "touched"})
    assert not is_keyframe(second)
    check(second, held(ema)[1])


def test_a_chain_has_as_many_files_as_is_asked(tmp_path):
    """Keyframes come at even intervals, whatever the gamma."""
    model, ema = started()
    for _ in range(6):
        trained(ema, model, 1)
        ema.save(tmp_path, packing=4, keyframe_every=5)
    order = in_order(tmp_path)
    assert [i for i, path in enumerate(order) if is_keyframe(path)] == [0, 5, 10]


def test_a_followed_file_that_lacks_a_tensor_is_refused(tmp_path):
    """No writer of ours leaves it; a reader says so instead of failing in the middle."""
    model = nn.Linear(3, 3)
    ema = PowerEMA(model, (5,))
    for _ in range(3):
        ema.update()
        (path,) = ema.save(tmp_path, packing=8)
    followed = path.with_name(follows(path)[0][0])
    data = followed.read_bytes()
    followed.write_bytes(data.replace(b"bias.packed", b"bias.pocked"))
    assert data.count(b"bias.packed") == 1
    with pytest.raises(InputError, match=rf"tensor bias: it is not packed in {followed.name}"):
        values(path)


@pytest.mark.slow
def test_the_longest_chain_can_be_read_from_its_end(tmp_path):
    """In a process that knows no other file of it."""
    model, ema = started((5,))
    for _ in range(256):
        trained(ema, model, 1)
        (path,) = ema.save(tmp_path, packing=4, keyframe_every=256)
    code = "import sys; from tests.packed_run import Path, values; values(Path(sys.argv[1]))"
    warm.run([sys.executable, "-c", code, path], check=True)
    assert [is_keyframe(p) for p in in_order(tmp_path)] == [True] + [False] * 255
    check(path, held(ema)[0])


def test_a_buffer_that_changes_late_begins_a_chain(tmp_path):
    """The keyframe before has it as the model had it, not as an average; and back again."""
    model, ema = started()
    ema.save(tmp_path, packing=8)
    trained(ema, model, 2)
    model.table.add_(1)
    trained(ema, model, 2)
    first, second = ema.save(tmp_path, packing=8)
    assert [is_keyframe(first), is_keyframe(second)] == [True, False]
    assert "table.packed" in load_file(second)
    error = np.abs(values(second)["table"] - ema.average(10)["table"].numpy())
    assert error.max() < 1e-2
    all_read(tmp_path)


@pytest.mark.parametrize("after", [0, 1])
def test_a_save_that_fails_leaves_no_file_and_ends_the_chain(after, tmp_path, monkeypatch):
    """The disk is full at the first or second file: what is there reads, and a keyframe is next."""
    model, ema = started()
    ema.save(tmp_path, packing=8)
    trained(ema, model, 2)
    calls = itertools.count()

    def fsync(descriptor):
        if next(calls) == after:
            raise OSError(28, "No space left on device")
        real(descriptor)

    real = os.fsync
    monkeypatch.setattr(files.os, "fsync", fsync)
    # The directory is flushed by the same call.
    monkeypatch.setattr(snapshot, "sync_folder", lambda _: None)
    with pytest.raises(StorageError, match="No space left"):
        ema.save(tmp_path, packing=8)
    assert all_read(tmp_path) == [True, False] + [False] * after
    paths = ema.save(tmp_path, packing=8)
    assert [is_keyframe(p) for p in paths] == [True, False]
    check(paths[1], held(ema)[1])
    all_read(tmp_path)


def test_ranks_without_a_process_group_may_save_the_same_chain(tmp_path):
    """They write the same bytes, so that each may follow what another one wrote."""
    torch.manual_seed(0)
    models = [Net() for _ in range(3)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    ranks = [PowerEMA(model) for model in models]
    together = threading.Barrier(len(ranks))

    def save(model, ema):
        for turn in range(1, 9):
            with torch.no_grad():
                model.hidden.weight.mul_(1 + 0.1 / turn)
                model.scale.add_(1)
            ema.update()
            together.wait(timeout=20)
            ema.save(tmp_path, packing=8)

    with ThreadPoolExecutor(len(ranks)) as pool:
        list(pool.map(save, models, ranks))
    assert all_read(tmp_path).count(True) == 1
    stored = values(tmp_path / "ema-step0000008-gamma10.safetensors")["hidden.weight"]
    np.testing.assert_allclose(stored, ranks[0].average(10)["hidden.weight"], atol=1e-3)


@pytest.mark.linux("signals to a forked process")
@pytest.mark.slow
def test_a_killed_run_leaves_whole_chains_and_resumes(tmp_path):
    """Killed at any moment of a save, each file that has its name is complete and can be read."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.packed_run", tmp_path, str(KILLS)]
    ran = warm.run(command, env=environment, check=True)
    assert len(ran.stdout.splitlines()) == KILLS
    assert re.fullmatch(
        rf"\d+ files, ([{KILLS % 10}-9]|\d\d+) keyframes", ran.stdout.splitlines()[-1]
    )
    # What was averaged in pieces is what one run averages.
    model, ema = packed_run.made()
    paths = sorted((tmp_path / "ckpts").glob("*-gamma10.safetensors"))
    truth = {}
    while ema.step < int(paths[-1].name[8:15]):
        packed_run.move(model, ema.step + 1)
        ema.update()
        truth[ema.step] = ema.average(10)["0.weight"].numpy().copy()
    assert len(paths) >= KILLS
    for path in paths:
        step = int(path.name[8:15])
        np.testing.assert_allclose(values(path)["0.weight"], truth[step], atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["lightning", "transformers"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_callbacks_pack(library, tmp_path):
    """They pass on the bits and the length of the chains."""
    from tests import callback_runs

    run = getattr(callback_runs, library)
    run(tmp_path, gammas=(5, 10), every=2, packing=4, keyframe_every=4)
    order = in_order(tmp_path / "ckpts")
    assert [i for i, path in enumerate(order) if is_keyframe(path)] == [0, 4, 8]
    (integers,) = (t for n, t in load_file(order[-1]).items() if n.endswith("stem.weight.packed"))
    assert integers.dtype == torch.uint8
    all_read(tmp_path / "ckpts")
