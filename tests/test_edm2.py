"""EDM2 pickles: read where their values lie, written so that their own scripts load them."""

import os
import pickle
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file

from phema_cli.errors import InputError, PhemaError, StorageError, UnsafePickleError
from phema_cli.formats import edm2
from phema_cli.formats.reader import FileReader
from phema_cli.profiles import gamma_from_sigma_rel
from tests.builders import phema, read_index, run
from tests.edm2_files import load_edm2, network, write_edm2
from tests.hostile_pickles import Call, plain, storage
from tests.torch_files import raw_bytes, stored_bytes


@pytest.fixture
def snapshot(tmp_path):
    """A network and the file that holds it."""
    net = network()
    path = tmp_path / "network-snapshot-0008388-0.050.pkl"
    write_edm2(path, net)
    return net, path


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_tensors_are_those_of_the_network(tmp_path, dtype, protocol):
    """Names, types, shapes and bytes are those of state_dict, in its order."""
    net = network()
    write_edm2(tmp_path / "a-1-0.1.pkl", net, dtype, protocol)
    found = read_index(tmp_path / "a-1-0.1.pkl")
    truth = net.state_dict()
    assert list(found.tensors) == list(truth)
    assert found.format == "edm2"
    for name, value in truth.items():
        assert found.tensors[name].shape == tuple(value.shape)
        assert stored_bytes(found.tensors[name]) == raw_bytes(value)
    assert found.ties == {"tied.weight": "dec.0.weight"}


def test_network_whose_weights_lie_otherwise(tmp_path):
    """Transposed weights are read in order; where the pickle is to be written they are refused."""
    net = network()
    net.logvar.weight = torch.nn.Parameter(torch.randn(4, 1).T, requires_grad=False)
    net.dec[0].bias = torch.nn.Parameter(torch.randn(4, 2)[:, 0], requires_grad=False)
    write_edm2(tmp_path / "a-1-0.1.pkl", net, torch.float32)
    found = read_index(tmp_path / "a-1-0.1.pkl")
    for name, value in net.state_dict().items():
        assert stored_bytes(found.tensors[name]) == raw_bytes(value.contiguous())


def test_dicts_of_tensors_in_a_plain_pickle(tmp_path):
    """What pickle.dump made of a state dict is read as well; --key picks one of several."""
    content = {"ema": {"w": torch.ones(3)}, "other": {"v": torch.zeros(2)}}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"2 dicts of tensors; .* one of ema, other"):
        read_index(tmp_path / "a.pkl")
    assert list(read_index(tmp_path / "a.pkl", "ema").tensors) == ["w"]
    assert list(read_index(tmp_path / "a.pkl", "other").tensors) == ["v"]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": content["ema"]}))
    assert list(read_index(tmp_path / "a.pkl").tensors) == ["w"]


def test_torch_files_of_that_ending_are_read_too(tmp_path):
    """A .pkl that torch.save wrote is told by its first bytes."""
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pkl")
    assert read_index(tmp_path / "a.pkl").format == "torch"


def test_inspect_knows_the_layout(tmp_path):
    """Times are images in whole batches, gamma is by sigma_rel, step 0 is left out."""
    for kimg in (0, 8388, 16777):
        for std in ("0.050", "0.100"):
            write_edm2(tmp_path / f"net-{kimg:07d}-{std}.pkl", network(seed=kimg))
    torch.save({}, tmp_path / "training-state-0016777.pt")
    document = run("inspect", tmp_path, "--json").json
    found = document["snapshots"]
    assert {s["layout"] for s in found} == {"EDM2"}
    assert {s["step"] for s in found} == {8388608, 16777216}
    assert {s["unit"] for s in found} == {"images"}
    assert {s["gamma"] for s in found} == {gamma_from_sigma_rel(s) for s in (0.05, 0.1)}
    assert {f["level"] for f in document["findings"]} == {"notice"}
    assert "4 snapshots of 2 gammas" in run("inspect", tmp_path).out


def test_outputs_load_by_their_own_code(tmp_path):
    """--format edm2 writes pickles that pickle.load rebuilds, values as in safetensors."""
    for kimg in (8388, 16777):
        for std in ("0.050", "0.100"):
            write_edm2(tmp_path / f"in/net-{kimg:07d}-{std}.pkl", network(seed=kimg + len(std)))
    targets = ["--sigma-rel", "0.07,0.05"]
    made = run("synthesize", "in", *targets, "-o", "out", "--format", "edm2", cwd=tmp_path)
    assert made.out.splitlines() == [
        "out/phema-0016777-0.070.pkl",
        "out/phema-0016777-0.050.pkl",
    ]
    run("synthesize", "in", *targets, "-o", "s-{sigma_rel}.safetensors", cwd=tmp_path)
    source = load_edm2(tmp_path / "in/net-0016777-0.100.pkl")
    for sigma, path in zip(("0.07", "0.05"), made.out.splitlines(), strict=True):
        loaded = load_edm2(tmp_path / path)
        assert dict(loaded["dataset_kwargs"]) == dict(source["dataset_kwargs"])
        assert loaded["encoder"].scale == 0.5
        expected = load_file(tmp_path / f"s-{sigma}.safetensors")
        state = loaded["ema"].state_dict()
        assert set(state) == {*expected, "tied.weight"}
        assert all(torch.equal(state[n], v) for n, v in expected.items())
        assert loaded["ema"].tied.weight is loaded["ema"].dec[0].weight
        assert "identical" in run("diff", tmp_path / path, tmp_path / f"s-{sigma}.safetensors").out
    stored = load_edm2(tmp_path / "in/net-0016777-0.050.pkl")["ema"].state_dict()
    assert all(torch.equal(state[n], stored[n]) for n in stored)
    found = run("inspect", "in", "out", "--json", cwd=tmp_path).json["findings"]
    assert sum("synthesized by phema" in f["what"] for f in found) == 2


def test_only_values_differ_from_the_newest_source(tmp_path):
    """All other bytes are those of the newest source, but for the provenance behind the end."""
    nets = [network(seed=s) for s in (1, 2)]
    for std, net in zip(("0.050", "0.100"), nets, strict=True):
        write_edm2(tmp_path / f"net-0008388-{std}.pkl", net)
    run("synthesize", tmp_path, "--sigma-rel", "0.1", "-o", tmp_path / "o.pkl")
    source = (tmp_path / "net-0008388-0.100.pkl").read_bytes()
    made = (tmp_path / "o.pkl").read_bytes()
    assert made.startswith(b"\x80\x04")
    places = read_index(tmp_path / "net-0008388-0.050.pkl").stored
    newest = (tmp_path / "net-0008388-0.050.pkl").read_bytes()
    blank = bytearray(newest)
    other = bytearray(made[: len(newest)])
    for e in places:
        blank[e.offset : e.offset + e.length] = bytes(e.length)
        other[e.offset : e.offset + e.length] = bytes(e.length)
    assert len(source) == len(newest)
    assert blank == other
    assert made[len(newest) :].startswith(b"\n# phema {")
    # From an output as source, the provenance is replaced and not stacked.
    carried = read_index(tmp_path / "o.pkl")
    specs = {e.name: (e.dtype, e.shape) for e in carried.stored}
    image = edm2.encode(specs, {"phema": "{}"}, {}, carried)
    assert image.size_bytes == len(newest) + len(b"\n# phema {}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float32"], "the pickle holds float16"),
        (["--max-shard-size", "1kB"], "of format edm2 is one file"),
    ],
)
def test_what_a_pickle_can_not_hold(tmp_path, arguments, message):
    """Other types and shards are refused with the remedy, and nothing is left."""
    for std in ("0.050", "0.100"):
        write_edm2(tmp_path / f"in/net-0008388-{std}.pkl", network())
    done = phema("synthesize", "in", "-s", 0.07, "-o", "o.pkl", *arguments, cwd=tmp_path)
    assert done.code in {2, 3}
    assert message in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_pickles_come_from_pickles(tmp_path):
    """Sources of another format have no code to write."""
    (tmp_path / "in").mkdir()
    for gamma in (5, 10):
        torch.save({"w": torch.ones(2)}, tmp_path / f"in/step1-gamma{gamma}.pt")
    done = phema("synthesize", "in", "-g", 7, "--format", "edm2", cwd=tmp_path)
    assert done.code == 3
    assert "an EDM2 pickle is made from EDM2 pickles, not from torch" in done.err


def test_values_are_not_read(tmp_path):
    """Reading and encoding takes a small part of the memory that the values take."""
    path = tmp_path / "a-1-0.1.pkl"
    values = torch.zeros(24 << 20, dtype=torch.float16)
    path.write_bytes(pickle.dumps({"ema": {"w": values, "b": torch.ones(3)}}, 4))
    tracemalloc.start()
    found = read_index(path)
    specs = {e.name: (e.dtype, e.shape) for e in found.stored}
    image = edm2.encode(specs, {}, {}, found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.size_bytes > 48 << 20
    assert sum(len(data) for _, data in image.segments) < 2000
    assert peak < 4 << 20


LOAD = vars(torch.storage)["_load_from_bytes"]


def test_hostile_storage(tmp_path):
    """A storage whose inner pickle asks for code is refused like the outer one."""
    marker = tmp_path / "was-here"
    inner = pickle.dumps(Call(os.system, f"touch {marker}"), 2)
    outer = pickle.dumps({"ema": {"w": Call(LOAD, inner)}}, 4)
    (tmp_path / "a.pkl").write_bytes(outer)
    with pytest.raises(UnsafePickleError, match=r"asks for posix\.system"):
        read_index(tmp_path / "a.pkl")
    assert not marker.exists()


def test_hostile_source_is_not_run(tmp_path, snapshot):
    """The source code in a network is text to phema, whatever stands there."""
    _, path = snapshot
    marker = tmp_path / "was-here"
    evil = f"import os; os.system('touch {marker}')  # ".encode()
    data = path.read_bytes()
    at = data.index(b"\nimport torch\nfrom torch import nn") + 1
    path.write_bytes(data[:at] + evil + data[at + len(evil) :])
    run("inspect", tmp_path, "--no-sample")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (storage(count=4), "a storage of 16 bytes"),
        (storage(count=1 << 60), "a storage of"),
        (storage(size=2), "a storage of 12 bytes"),
        (storage(magic=7), "a storage in an unknown format"),
        (storage(key=plain("torch", "Tensor")), "unknown persistent id"),
        (b"", "ends too early"),
    ],
)
def test_storages_that_make_no_sense(tmp_path, data, message):
    """A storage that is not what it says is an error that names the file."""
    call = Call(LOAD, data)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": {"w": call}}, 4))
    with pytest.raises(PhemaError, match=message) as caught:
        read_index(tmp_path / "a.pkl")
    assert caught.value.where == str(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps([1, 2]), "not an EDM2 network pickle"),
        (pickle.dumps({"a": 1}), "holds no dict of tensors"),
        (pickle.dumps({"ema": {"w": torch.ones(2)}}, 2), "protocol 2 or older"),
        (b"\x80\x04\x95", "broken"),
        (b"\x80\x04X\xff\xff\xff\x7f.", "a text or number of 2147483647 bytes"),
        (b"\x80\x04B\xff\xff\xff\x7f.", "ends too early"),
        (b"\x80\x04" + b"K\x01" + b"\x85" * 100_000 + b".", "not an EDM2 network pickle"),
        (b"\x80\x04}r\xff\xff\xff\x7f.", "copies more items than it has bytes"),
        (b"\x80\x04K\x01}b.", "sets the state of something|broken"),
        (b"\x80\x04K\x01)R.", "calls something that is not a function"),
        (b"\x80\x04P1\n.", "opcode PERSID"),
        (b"\x80\x04}" + b"K\x01" + b"\x85" * 200_000 + b"K\x01s.", "holds no dict of tensors"),
        (b"\x80\x04\x82\x01.", "opcode EXT1"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"\x80\x04K\x00Q.", "unknown persistent id"),
        (b"", "broken"),
    ],
)
def test_pickles_that_are_something_else(tmp_path, data, message):
    """Any other pickle, or none, is an error in a line and in little memory."""
    (tmp_path / "a.pkl").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        read_index(tmp_path / "a.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_damaged_files_are_refused_or_read(snapshot):
    """Cut anywhere or with any byte changed, a file is read or refused, never more than that."""
    _, path = snapshot
    data = path.read_bytes()
    for cut in range(0, len(data), 97):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError):
            read_index(path)
    outcomes = set()
    for at in range(0, len(data), 13):
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
        try:
            found = read_index(path)
            with FileReader() as reader:
                for e in found.stored:
                    reader.read_elements(e, 0, memoryview(bytearray(e.length)))
            outcomes.add("read")
        except PhemaError as error:
            outcomes.add(type(error).__name__)
    assert outcomes <= {"read", "InputError", "UnsafePickleError"}
    assert len(outcomes) == 3


def test_missing_file(tmp_path):
    """A file that can't be opened is a storage error."""
    with pytest.raises(StorageError):
        read_index(tmp_path / "a.pkl")
