"""PyTorch's zip files: read without torch, element for element; hostile ones run nothing."""

import itertools
import struct
import subprocess
import sys
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from phema_cli.errors import InputError, StorageError, UsageError
from phema_cli.formats import read
from phema_cli.formats.reader import FileReader
from phema_cli.trainers.base import StoredFile
from tests.builders import read_index
from tests.hostile_pickles import plain
from tests.torch_files import (
    BROKEN_PICKLES,
    REBUILD_V3,
    STORAGE,
    craft,
    opcodes,
    raw_bytes,
    stored_bytes,
    tensor_pickle,
)

TORCH_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]


def saved(path, content):
    """Write with torch.save and return the path."""
    torch.save(content, path)
    return path


def rewrite(path, *, change=(), add=(), compress=()):
    """Write a zip anew with entries changed, dropped (None), added or compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    entries |= {f"{next(iter(entries)).split('/')[0]}/{n}": c for n, c in [*change, *add]}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            squeeze = name.split("/", 1)[1] in compress
            method = zipfile.ZIP_DEFLATED if squeeze else zipfile.ZIP_STORED
            if content is not None:
                archive.writestr(name, content, method)
    return path


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_dtype(tmp_path, dtype):
    """A tensor of any type is found with its type, shape and bytes."""
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    extent = read_index(saved(tmp_path / "a.pt", {"x": tensor})).tensors["x"]
    assert f"torch.{extent.dtype.label}" == str(dtype)
    assert (extent.name, extent.shape, extent.strides) == ("x", (2, 3), None)
    assert stored_bytes(extent, 4) == raw_bytes(tensor)


def test_packed_floats_are_described_as_in_safetensors(tmp_path):
    """4-bit floats, two to a byte, have the same type, shape and length in both formats."""
    tensors = {"x": torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    save_file(tensors, tmp_path / "a.safetensors")
    theirs = read_index(tmp_path / "a.safetensors").tensors["x"]
    ours = read_index(saved(tmp_path / "a.pt", tensors)).tensors["x"]
    assert (ours.dtype, ours.shape, ours.length) == (theirs.dtype, theirs.shape, theirs.length)


@pytest.mark.parametrize("view", ["t", "diagonal"])
def test_packed_floats_in_another_order(tmp_path, view):
    """A view of 4-bit floats that are not in row-major order is refused, not read wrongly."""
    tensor = torch.zeros(4, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    path = saved(tmp_path / "a.pt", {"x": getattr(tensor, view)()})
    with pytest.raises(InputError, match="x: its float4") as caught:
        read_index(path)
    assert caught.value.where == str(path)


def test_packed_floats_of_nonsense_shape(tmp_path):
    """4-bit floats with strides that don't fit their shape are refused."""
    pickled = (
        REBUILD_V3
        + b"("
        + STORAGE
        + b"K\x00"
        + opcodes((4,))
        + opcodes(())
        + b"\x89N"
        + plain("torch", "float4_e2m1fn_x2")
        + b"tRs."
    )
    with pytest.raises(InputError):
        read_index(craft(tmp_path / "a.pt", pickled))


VIEWS = {
    "row-major": torch.rand(4, 5),
    "transposed": torch.rand(4, 5).t(),
    "permuted": torch.rand(3, 4, 5).permute(2, 0, 1),
    "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": torch.rand(3, 1).expand(3, 4),
    "expanded in front": torch.rand(3).expand(5, 3),
    "slice with an offset": torch.rand(6, 7)[2:5, 3:6],
    "contiguous slice with an offset": torch.rand(6, 7)[2:5],
    "every other": torch.rand(21)[1::2],
    "diagonal": torch.rand(5, 5).diagonal(),
    "wide": torch.rand(13, 40).t(),
    "one element": torch.rand(3, 3)[2:, 2:],
    "overlapping": torch.rand(10).unfold(0, 4, 1),
    "half, transposed": torch.rand(4, 5).half().t(),
    "bfloat16, transposed": torch.rand(4, 5).bfloat16().t(),
    "float8, transposed": torch.rand(4, 5).to(torch.float8_e5m2).t(),
    "bool, transposed": (torch.rand(4, 5) > 0.5).t(),
    "complex, transposed": torch.rand(4, 5, dtype=torch.complex64).t(),
    "real part": torch.rand(4, 5, dtype=torch.complex64).real,
    "scalar": torch.tensor(3.5),
    "scalar with an offset": torch.rand(5)[3],
    "empty": torch.rand(0),
    "empty, transposed": torch.rand(3, 0, 2).permute(2, 1, 0),
    "int": torch.arange(12).reshape(3, 4).t(),
}


@pytest.mark.parametrize("piece", [1, 3, 7, 64, None])
@pytest.mark.parametrize("view", VIEWS)
def test_views_are_read_in_row_major_order(tmp_path, view, piece):
    """Any view, read in pieces of any length, gives the elements that torch gives."""
    tensor = VIEWS[view]
    path = saved(tmp_path / "a.pt", {"first": torch.rand(3), "x": tensor})
    extent = read_index(path).tensors["x"]
    assert extent.shape == tuple(tensor.shape)
    assert stored_bytes(extent, piece) == raw_bytes(tensor)


class Recorder(FileReader):
    """A reader that records the ranges of bytes it reads."""

    def read_runs(self, path, runs):
        """Read, and remember where."""
        new = [(offset, offset + len(out)) for offset, out in runs]
        self.ranges = [*getattr(self, "ranges", []), *new]
        super().read_runs(path, runs)


@pytest.mark.parametrize(
    ("shape", "order"),
    [((1024, 512), (1, 0)), ((64, 32, 3, 3), (0, 2, 3, 1)), ((16, 256, 128), (2, 0, 1))],
)
def test_bytes_of_a_tensor_in_another_order_are_read_once(tmp_path, shape, order):
    """Whoever reads from front to back reads each byte of the file once, in runs of many."""
    stored = torch.rand([shape[d] for d in order], dtype=torch.float64)
    tensor = stored.permute([order.index(d) for d in range(len(shape))])
    assert tuple(tensor.shape) == shape
    extent = read_index(saved(tmp_path / "a.pt", {"x": tensor})).tensors["x"]
    piece, found = 5000, bytearray()
    with Recorder(held_bytes=2 << 20) as reader:
        for start in range(0, extent.elements, piece):
            out = bytearray(8 * min(piece, extent.elements - start))
            reader.read_elements(extent, start, memoryview(out))
            found += out
    assert bytes(found) == raw_bytes(tensor)
    reach = np.zeros(extent.length, np.int64)
    for low, high in reader.ranges:
        reach[low - extent.offset : high - extent.offset] += 1
    assert (reach == 1).all()
    assert len(reader.ranges) < extent.elements / 32


def test_piece_of_a_view_reads_only_near_it(tmp_path):
    """A piece of a strided tensor reads nothing of the file before its own first element."""
    extent = read_index(saved(tmp_path / "a.pt", {"x": torch.rand(1000, 2)[:, 0]})).tensors["x"]
    out = bytearray(4 * 10)
    with Recorder() as reader:
        reader.read_elements(extent, 900, memoryview(out))
        assert min(low for low, _ in reader.ranges) == extent.offset + 900 * 2 * 4


def test_no_elements_wanted(tmp_path):
    """Nothing is read where no element is wanted."""
    extent = read_index(saved(tmp_path / "a.pt", {"x": torch.rand(3, 2).t()})).tensors["x"]
    with Recorder() as reader:
        reader.read_elements(extent, 2, memoryview(bytearray()))
        assert not hasattr(reader, "ranges")


def test_parameters_and_modules(tmp_path):
    """A module's state dict, and Parameters in it, are read as tensors."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    weights = dict(module.named_parameters())
    marked = torch.nn.Parameter(torch.ones(2))
    marked.note = "parameters may have attributes"
    for content in (module.state_dict(), weights, {"x": marked}):
        found = read_index(saved(tmp_path / "a.pth", content)).tensors
        assert found.keys() == content.keys()
        assert all(stored_bytes(found[n]) == raw_bytes(t) for n, t in content.items())


def test_tied_tensors(tmp_path):
    """Two names of one tensor, or of views into one storage, are both read in full."""
    base = torch.rand(6)
    content = {"a": base, "b": base, "tail": base[2:], "square": base.view(2, 3).t()}
    found = read_index(saved(tmp_path / "a.bin", content)).tensors
    assert found["a"].offset == found["b"].offset
    assert {n: stored_bytes(e) for n, e in found.items()} == {
        n: raw_bytes(t) for n, t in content.items()
    }


@pytest.mark.parametrize("rebuild", ["_rebuild_tensor", "_rebuild_tensor_v2"])
def test_older_rebuild_functions(tmp_path, rebuild):
    """Tensors of older torch versions, whose pickles name older functions, are read."""
    pickled = tensor_pickle(1, (3,), (1,)).replace(b"_rebuild_tensor_v2", rebuild.encode())
    record = struct.pack("<4f", 1, 2, 3, 4)
    extent = read_index(craft(tmp_path / "a.pt", pickled, record)).tensors["w"]
    assert stored_bytes(extent) == record[4:]


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".bin"])
def test_checkpoint(tmp_path, ending):
    """The checkpoint has its file, base name, and tensors in the order of their data."""
    path = saved(tmp_path / f"model{ending}", {"b": torch.rand(3), "a": torch.rand(2)})
    found = read_index(path)
    assert (found.path, found.files, found.format) == (path, (path,), "torch")
    assert (found.base_name, found.size_bytes, found.parameters) == ("model", 20, 5)
    offsets = [e.offset for e in found.tensors.values()]
    assert offsets == sorted(offsets)


def test_text_and_numbers_are_content(tmp_path):
    """Text and numbers beside the weights are content for trainers' modules, and no metadata."""
    others = {"step": 1000, "gamma": 6.94, "run": "a", "done": True, "none": None, 7: 8}
    found = read(saved(tmp_path / "a.pt", {"state_dict": {"w": torch.ones(1)}, **others}))
    assert found.metadata == {}
    assert isinstance(found.content, dict)
    assert {k: v for k, v in found.content.items() if k != "state_dict"} == others


def test_arguments_are_content(tmp_path):
    """What a trainer's argparse.Namespace holds is read by its name; nothing is built."""
    arguments = Namespace(model_ema_decay=0.9998, model_ema=True, out=Path("runs/a"), mean=(1, 2))
    path = saved(tmp_path / "a.pt", {"args": arguments, "ema": {"w": W}})
    found = StoredFile(read(path), "a", "a.pt")
    assert not isinstance(found.get("args"), Namespace)
    assert found.number("args", "model_ema_decay") == 0.9998
    assert found.number("args", "model_ema") is None
    names = ("model_ema", "out", "mean", "other")
    assert [found.get("args", n) for n in names] == [True, "runs/a", (1, 2), None]


def test_values_of_other_kinds_are_passed_over(tmp_path):
    """Sizes, devices, types and containers beside the tensors do no harm."""
    content = OrderedDict(
        w=torch.ones(2),
        size=torch.Size([2, 3]),
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        things=[1, (2, {"a": None})],
    )
    assert list(read_index(saved(tmp_path / "a.pt", content)).tensors) == ["w"]


def test_set_is_a_plain_container(tmp_path):
    """A set beside the weights, which torch.load(weights_only=True) takes too, does no harm."""
    content = {"w": torch.ones(2), "seen": {1, 2}}
    assert list(read_index(saved(tmp_path / "a.pt", content)).tensors) == ["w"]


W = torch.arange(3.0)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"w": W}, None),
        ({"ema": {"w": W}}, None),
        ({"ema": {"w": W}}, "ema"),
        ({"state": {"ema": {"w": W}}}, None),
        ({"state": {"ema": {"w": W}}}, "state.ema"),
        ({"epoch": 3, "ema": {"w": W}, "empty": {}}, None),
        ({"model": {"w": W + 1}, "ema": {"w": W}}, "ema"),
        ({"model": {"w": W + 1}, "deep": {"ema": {"w": W}}}, "deep.ema"),
        ({"model": {"w": W + 1, "ema": {"w": W}}}, "model.ema"),
    ],
)
def test_dict_of_weights(tmp_path, content, key):
    """The dict of weights is found where it is the only one, or by its dotted key."""
    found = read_index(saved(tmp_path / "a.pt", content), key)
    assert {n: stored_bytes(e) for n, e in found.tensors.items()} == {"w": raw_bytes(W)}


NESTS = {
    "two dicts": {"generator": {"w": W}, "critic": {"w": W}},
    "deep": {"a": {"model": {"w": W}}, "b": {"c": {"other": {"w": W}}}},
    "tensors beside a dict": {"w": torch.ones(2, 2), "aux": {"w": W}},
    "two averages": {"model": {"w": W}, "ema": {"0.99": {"w": W}, "0.999": {"w": W}}},
    "names with dots": {"ema.0.999": {"w": W}, "ema.0.9999": {"w": W}},
}


@pytest.mark.parametrize("nest", NESTS)
def test_every_candidate_offered_can_be_passed(tmp_path, nest):
    """Of several dicts none is guessed: the error lists them, and each works as --key."""
    path = saved(tmp_path / "a.pt", NESTS[nest])
    with pytest.raises(InputError, match="dicts of tensors") as caught:
        read_index(path)
    assert caught.value.where == str(path)
    offered = caught.value.remedy.removeprefix("pass --key with one of ").split(", ")
    assert len(offered) >= 2
    for key in offered:
        assert read_index(path, key).tensors


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"model": {"w": W + 1}, "optimizer": {"state": {0: {"m": W}, 1: {"m": W}}}}, "model"),
        ({"state_dict": {"w": W}, "state_dict_ema": {"w": W + 1}, "epoch": 3}, "state_dict_ema"),
        ({"model": {"w": W}, "model_ema": {"w": W + 1}, "opt": {"state": {}}}, "model_ema"),
        ({"model": {"w": W}, "ema": {"decay": 0.9, "shadow": {"w": W + 1}}}, "ema.shadow"),
        (
            {
                "state_dict": {"w": W + 1},
                "current_model_state": {"w": W},
                "averaging_state": {"n_averaged": torch.tensor(3)},
                "pytorch-lightning_version": "2.6",
            },
            "state_dict",
        ),
        ({"a": {"model": {"w": W}}, "b": {"c": {"ema": {"w": W + 1}}}}, "b.c.ema"),
    ],
)
def test_averaged_weights_are_known_by_their_place(tmp_path, content, key):
    """Where trainers keep averages, these are taken, whatever else the file holds."""
    found = read_index(saved(tmp_path / "a.pt", content))
    assert found.key == key
    assert stored_bytes(found.tensors["w"]) == raw_bytes(W + 1)


@pytest.mark.parametrize(
    ("content", "given", "key"),
    [
        ({"decay": 0.9, "shadow_params": [W, W + 1]}, None, "shadow_params"),
        ({"ema": {"shadow_params": [W, W + 1]}, "model": {"w": W}}, None, "ema.shadow_params"),
        ({"steps": [W, W + 1]}, None, "steps"),
        ([W, W + 1], None, None),
        (
            {"optimizer_states": [{"ema": [W, W + 1]}], "state_dict": {"w": W}},
            "optimizer_states.0.ema",
            "optimizer_states.0.ema",
        ),
    ],
)
def test_lists_of_tensors_have_numbers(tmp_path, content, given, key):
    """A list of tensors is found as averages are, and told from what has names."""
    found = read_index(saved(tmp_path / "a.pt", content), given)
    assert found.unnamed
    assert found.key == key
    assert [stored_bytes(found.tensors[n]) for n in ("0", "1")] == [raw_bytes(W), raw_bytes(W + 1)]


def test_long_list_of_candidates_is_cut(tmp_path):
    """The error about a checkpoint with hundreds of dicts stays a line that can be read."""
    others = {str(i): {"v": W} for i in range(300)}
    path = saved(tmp_path / "a.pt", {"weights": {"w": W}, "others": others})
    with pytest.raises(InputError, match=r"weights, others\.0") as caught:
        read_index(path)
    assert caught.value.remedy.endswith("and 293 others")
    assert len(str(caught.value).removeprefix(str(path))) < 500


def test_state_of_optimizers_is_no_candidate(tmp_path):
    """What optimizers keep of each tensor is known by its names, wherever it lies."""
    state = {str(i): {"exp_avg": W, "exp_avg_sq": W, "step": W} for i in range(3)}
    path = saved(tmp_path / "a.pt", {"weights": {"w": W}, "averager": {"state": state}})
    assert list(read_index(path).tensors) == ["w"]


def test_stray_tensor_does_not_hide_the_weights(tmp_path):
    """A counter or a schedule beside a nested dict of weights is not taken for the checkpoint."""
    beside = {"loss": torch.tensor(0.3), "betas": torch.ones(9)}
    path = saved(tmp_path / "a.pt", beside | {"state_dict": {"w": W}})
    assert list(read_index(path, "state_dict").tensors) == ["w"]
    assert list(read_index(path).tensors) == ["w"]
    assert read_index(path).key == "state_dict"


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"model": {"w": W}}, "ema", "is 'ema'; there are model"),
        ({"model": {"w": W}}, "model.w", "is 'model.w'; there are model"),
        ({"model": {"w": W}}, "model.w.x", "is 'model.w.x'; there are model"),
        ({"model": {"w": W}, "args": {"lr": 1}}, "args", "is 'args'; there are model"),
        ({"args": {"lr": 1}}, "ema", "is 'ema'; leave --key out: no dict is nested"),
        ([W], "ema", "is 'ema'; leave --key out: no dict is nested"),
    ],
)
def test_no_such_key(tmp_path, content, key, message):
    """A wrong key is an error of usage that names the file and the keys that there are."""
    path = saved(tmp_path / "a.pt", content)
    with pytest.raises(UsageError, match=f"and no prefix of their names, {message}") as caught:
        read_index(path, key)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", [{"args": {"lr": 1}}, {}, W, {"shadow": [W, {}]}])
def test_no_dict_of_weights(tmp_path, content):
    """A file without a dict of tensors is an error that names the file."""
    path = saved(tmp_path / "a.pt", content)
    with pytest.raises(InputError, match="no dict of tensors") as caught:
        read_index(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, dtype=torch.complex64).conj().imag, torch.ones(2, dtype=torch.complex64).conj()],
)
def test_lazily_negated_or_conjugated(tmp_path, tensor):
    """A view whose stored values are not its values is refused, not read wrongly."""
    path = saved(tmp_path / "a.pt", {"x": tensor})
    with pytest.raises(InputError) as caught:
        read_index(path)
    assert caught.value.where == str(path)


def test_legacy_format(tmp_path):
    """The format before torch 1.6 is refused, with the call that converts it."""
    path = tmp_path / "old.pt"
    torch.save({"w": W}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="legacy") as caught:
        read_index(path)
    assert caught.value.where == str(path)
    assert "torch.save(torch.load(old, weights_only=True), new)" in caught.value.remedy


def test_torchscript(tmp_path):
    """A TorchScript archive is refused: it holds code, not a state dict."""
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    with pytest.raises(InputError, match="TorchScript") as caught:
        read_index(path)
    assert caught.value.where == str(path)
    assert "state_dict" in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"not a checkpoint\n", b"PK", bytes(1000)])
def test_not_a_zip(tmp_path, content):
    """A file that is neither a zip nor a pickle is refused, and named."""
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a PyTorch checkpoint") as caught:
        read_index(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("entries", [[], ["a.txt"], ["a/data.pkl", "b/data.pkl"], ["data.pkl"]])
def test_zip_of_another_kind(tmp_path, entries):
    """A zip that torch did not write is refused, and named."""
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            archive.writestr(entry, b"N.")
    with pytest.raises(InputError, match=r"not one of torch\.save") as caught:
        read_index(path)
    assert caught.value.where == str(path)


def test_missing_file(tmp_path):
    """A file that cannot be read is the operating system's failure, and is named."""
    with pytest.raises(StorageError, match="cannot read") as caught:
        read_index(tmp_path / "no.pt")
    assert caught.value.where == str(tmp_path / "no.pt")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"compress": ["data/0"]}, "record 0 is compressed"),
        ({"compress": ["data.pkl"]}, "data.pkl is compressed"),
        ({"change": [("data/0", None)]}, "record 0 is missing"),
        ({"change": [("data/0", bytes(11))]}, "w: lies outside its record of 11 bytes"),
        ({"change": [("byteorder", b"big")]}, "big-endian"),
        ({"change": [("data.pkl", b"")]}, "broken pickle"),
        ({"change": [("data.pkl", b"\x80\x02}")]}, "broken pickle"),
        ({"change": [("data.pkl", b"hello")]}, "broken pickle"),
    ],
)
def test_damaged_archive(tmp_path, edit, message):
    """An archive whose parts are missing, changed or packed otherwise is refused, and named."""
    path = rewrite(saved(tmp_path / "a.pt", {"w": torch.rand(3)}), **edit)
    with pytest.raises(InputError, match=message) as caught:
        read_index(path)
    assert caught.value.where == str(path)


def test_broken_local_header(tmp_path):
    """A record whose own header is overwritten is refused, and named."""
    path = saved(tmp_path / "a.pt", {"w": W})
    with zipfile.ZipFile(path) as archive:
        at = next(i.header_offset for i in archive.infolist() if i.filename.endswith("/data/0"))
    content = bytearray(path.read_bytes())
    content[at : at + 4] = b"XXXX"
    path.write_bytes(content)
    with pytest.raises(InputError, match="header is broken") as caught:
        read_index(path)
    assert caught.value.where == str(path)


EXPECTED = {"NoneType", "InputError", "UnsafePickleError"}


def refusal(path):
    """The error that reading the file gives, None where it reads."""
    try:
        read_index(path)
    except Exception as error:  # noqa: BLE001 - a crash is to be shown with all others
        return error
    return None


def test_damaged_anywhere(tmp_path):
    """Whatever byte is flipped or missing, a file is read or refused, never a crash."""
    path = saved(tmp_path / "a.pt", {"w": torch.rand(2, 3).t(), "n": torch.tensor(3), "step": 5})
    whole = path.read_bytes()
    met = {}
    for at, mask in itertools.product(range(len(whole)), (0x01, 0xFF)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
        error = refusal(path)
        met.setdefault(type(error).__name__, (at, mask, str(error)))
        assert getattr(error, "where", str(path)) == str(path)
    assert {n: how for n, how in met.items() if n not in EXPECTED} == {}
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_index(path)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (4,), (1,)),
        (0, (-1,), (1,)),
        (0, (4,), (-1,)),
        (0, (4,), ()),
        (0, (), (1,)),
        (5, (), ()),
        (2**70, (1,), (1,)),
        (0, (2,), (2**70,)),
        (0, ("a",), (1,)),
        (0, (4,), ("a",)),
        (0, (None,), (1,)),
        (0, (1.5,), (1,)),
        (0, (True,), (1,)),
        (0, 4, 1),
    ],
)
def test_tensor_outside_its_record(tmp_path, offset, shape, strides):
    """A tensor that doesn't lie inside its record, or whose shape is nonsense, is refused."""
    path = craft(tmp_path / "a.pt", tensor_pickle(offset, shape, strides))
    with pytest.raises(InputError) as caught:
        read_index(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("case", BROKEN_PICKLES)
def test_broken_pickle(tmp_path, case):
    """A pickle of allowed names put together wrongly is refused, and named."""
    path = craft(tmp_path / "a.pt", BROKEN_PICKLES[case])
    with pytest.raises(InputError) as caught:
        read_index(path)
    assert caught.value.where == str(path)


GLOBALS = [
    ("torch", "float32"),
    ("torch", "FloatStorage"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("collections", "OrderedDict"),
    ("numpy._core.multiarray", "scalar"),
    ("some.library", "Thing"),
]


STATES = [
    ["F32", "float32", 8, "exact", 0],
    [None],
    {"__doc__": "changed"},
    (None, {"__doc__": "changed"}),
    (None, {"__defaults__": (1, 2, 3)}),
    (None, {"__init__": None}),
]


@pytest.mark.slow
@pytest.mark.parametrize("target", GLOBALS, ids=".".join)
def test_pickle_cannot_change_what_it_is_given(tmp_path, target):
    """A pickle that sets attributes of what its globals stand for changes nothing here."""
    good = saved(tmp_path / "good.pt", {"w": torch.rand(4), "d": torch.device("cpu")})
    for number, state in enumerate(STATES):
        pickled = b"\x80\x02" + plain(*target) + opcodes(state) + b"b."
        craft(tmp_path / f"bad{number}.pt", pickled)
    script = f"""if True:
        from pathlib import Path
        from phema_cli.errors import PhemaError
        from phema_cli.formats import torch_pickle, base, read as read_index
        from phema_cli.pickles.globals import STAND_INS

        def facts():
            known = dict(torch_pickle.GLOBALS) | dict(STAND_INS)
            shown = [
                (key, repr(x), x.__doc__, getattr(x, "__defaults__", 0), getattr(x, "__init__", 0))
                for key, x in sorted(known.items(), key=lambda item: item[0])
            ]
            return str((shown, base.DTYPES, read_index(Path({str(good)!r}))))

        before = facts()
        for bad in sorted(Path({str(tmp_path)!r}).glob("bad*.pt")):
            try:
                read_index(bad)
            except PhemaError:
                pass
            assert facts() == before, bad.name
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_huge_persistent_id_is_not_shown(tmp_path):
    """A persistent id whose text would fill any memory is refused without spelling it out."""
    path = craft(tmp_path / "a.pt", b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * 60 + b"Q.")
    script = f"""if True:
        from pathlib import Path
        from phema_cli.errors import InputError
        from phema_cli.formats import read
        try:
            read(Path({str(path)!r}))
        except InputError as error:
            print(error.where)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=8
    )
    assert done.stdout == f"{path}\n"


@pytest.mark.slow
def test_torch_is_not_imported(tmp_path):
    """Reading a torch file, header and elements, starts no torch."""
    path = saved(tmp_path / "a.pt", {"w": torch.rand(4, 3).t(), "h": torch.rand(2).bfloat16()})
    script = f"""if True:
        import sys
        from pathlib import Path
        from phema_cli.formats import read
        from phema_cli.formats.reader import FileReader
        found = read(Path({str(path)!r}))
        extents = found.locate(found.content)
        with FileReader() as reader:
            for extent in extents.values():
                reader.read_elements(extent, 0, memoryview(bytearray(extent.length)))
        print(len(extents), sorted(m for m in sys.modules if m.split(".")[0] == "torch"))
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "2 []\n"
