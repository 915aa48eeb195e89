"""Hostile pickles: nothing is run; what is harmless is read."""

import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from phema_cli.errors import InputError, UnsafePickleError
from phema_cli.formats import edm2
from phema_cli.formats.base import DTYPES
from tests.builders import read_index
from tests.hostile_pickles import HOSTILE_CASES, hostile_pickles, plain, text
from tests.torch_files import craft


@pytest.mark.parametrize("name", ["a.pkl", "a.pt"])
@pytest.mark.parametrize("case", HOSTILE_CASES)
def test_nothing_is_run(tmp_path, case, name):
    """A pickle that asks for code is refused by the name of what it asks for; nothing is run."""
    marker, path = tmp_path / "was-here", tmp_path / name
    data, asked = hostile_pickles(f"touch {marker}")[case]
    path.write_bytes(data)
    if name == "a.pt":
        craft(path, data)
        # No storage of torch's zip lies in its pickle: what loads one is itself refused.
        asked = "torch.storage._load_from_bytes" if b"_load_from_bytes" in data else asked
    with pytest.raises(UnsafePickleError if asked else InputError) as caught:
        read_index(path)
    assert caught.value.where == str(path)
    if asked is not None:
        assert caught.value.what == f"the pickle asks for {asked}"
        assert caught.value.exit_code == 4
        assert name == "a.pkl" or "torch.save" in caught.value.remedy
    assert not marker.exists()


#: the interpreter's own unpickler reaches these calls, so that the table is no empty threat.
DANGEROUS = [
    "a class that reduces to a call",
    "os.system",
    "eval",
    "system by INST",
    "pickle.loads",
]


@pytest.mark.parametrize("case", DANGEROUS)
def test_table_is_hostile(tmp_path, case):
    """What phema refuses does run where such a file is loaded by pickle."""
    marker = tmp_path / "was-here"
    data, _ = hostile_pickles(f"touch {marker}")[case]
    pickle.loads(data)
    assert marker.exists()


BESIDE = {
    "array": np.arange(4, dtype=np.float32),
    "transposed array": np.ones((2, 3)).T,
    "number": np.float32(0.5),
    "type": np.dtype("float16"),
    "arguments": argparse.Namespace(batch=4),
    "path": Path("data/set"),
    "set": {1, 2},
    "truth": torch.float16,
}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", BESIDE)
def test_values_beside_the_network(tmp_path, kind, protocol):
    """Arrays, as encoders hold them, and other plain values do no harm."""
    path = tmp_path / "a.pkl"
    content = {"ema": {"w": torch.ones(3)}, "encoder": BESIDE[kind]}
    path.write_bytes(pickle.dumps(content, protocol))
    assert list(read_index(path).tensors) == ["w"]


def test_old_protocol_has_a_remedy(tmp_path):
    """A pickle of protocol 2, whose values are text, is refused with what to do about it."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"ema": {"w": torch.ones(3)}}, 2))
    with pytest.raises(InputError, match="protocol 2") as caught:
        read_index(path)
    assert caught.value.remedy == "load it and pickle it again with protocol=4"
    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [("a", "tensor b: gets no values"), ("abc", "tensor c: is not in the pickle")],
)
def test_tensors_are_those_of_the_pickle(tmp_path, names, message):
    """Neither does a tensor of the pickle keep its old values, nor is one more written."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"ema": {"a": torch.ones(2), "b": torch.zeros(2)}}))
    specs = dict.fromkeys(names, (DTYPES["F32"], (2,)))
    with pytest.raises(InputError, match=message) as caught:
        edm2.encode(specs, {}, {}, read_index(path))
    assert caught.value.where == str(path)


def test_layer_in_two_places(tmp_path):
    """A layer that is there twice has its tensors under both names, as in state_dict."""
    layer = plain("torch.nn.modules.module", "Module") + b")\x81"
    tensor = pickle.dumps(torch.ones(2), 3)[2:-1]
    inner = layer + b"}" + text("_parameters") + b"}" + text("w") + tensor + b"ssbr\x63\0\0\0"
    both = b"}(" + text("a") + inner + text("b") + b"j\x63\0\0\0u"
    data = b"}" + text("ema") + layer + b"}" + text("_modules") + both + b"sbs."
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04" + data)
    found = read_index(path)
    assert (list(found.tensors), found.ties) == (["a.w", "b.w"], {"b.w": "a.w"})
