"""What trainers save beside weights is read without a word; what hides tensors is refused."""

import argparse
import collections
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import io
import logging
import pickle
import random
import re
import struct
import sys
import types
import typing
import uuid
import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from phema_cli.errors import InputError, UnsafePickleError
from phema_cli.formats import torch_pickle, torch_zip
from phema_cli.pickles import Inert, Span, opened
from phema_cli.pickles.globals import find_global
from tests.builders import read_index
from tests.dcp_files import edit, save
from tests.hostile_pickles import Call, get, plain, put, span, text
from tests.torch_files import craft

# torch warns that it was asked for what it was asked for (no_dist).
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
W = torch.arange(3.0)


@contextmanager
def foreign(full, bases=(), **members):
    """A class of a library that is not installed, for as long as it takes to pickle its objects."""
    module, name = full.rsplit(".", 1)
    parts = module.split(".")
    made = {".".join(parts[: i + 1]): types.ModuleType(parts[i]) for i in range(len(parts))}
    kind = type(name, bases, {"__module__": module, "__qualname__": name, **members})
    setattr(made[module], name, kind)
    before = {key: sys.modules.get(key) for key in made}
    sys.modules.update(made)
    try:
        yield kind
    finally:
        for key, value in before.items():
            if value is None:
                del sys.modules[key]
            else:
                sys.modules[key] = value


class Color(enum.Enum):
    """An enum."""

    RED = 1


class Level(enum.IntEnum):
    """An enum of numbers."""

    HIGH = 3


@dataclasses.dataclass
class Config:
    """A dataclass."""

    lr: float = 0.1
    names: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    """A dataclass with slots."""

    lr: float = 0.1


class EasyDict(dict[str, object]):
    """A dict whose items are attributes."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class AttrDict(dict[str, object]):
    """A dict that is its own state."""

    def __init__(self, *arguments, **items):
        super().__init__(*arguments, **items)
        self.__dict__ = self


class Items(list[object]):
    """A list of a class of its own."""


class Names(set[object]):
    """A set of a class of its own."""


class Keywords:
    """Made with keywords."""

    def __getnewargs_ex__(self):
        return (1,), {"a": 2}

    def __new__(cls, *_arguments, **_keywords):
        return super().__new__(cls)


Pair = collections.namedtuple("Pair", "a b")

BESIDE = {
    **{
        f"numpy {value.dtype} {value}": value
        for value in (np.float64(1.5), np.int64(7), np.bool_(True), np.complex64(1j), np.str_("ab"))
    },
    "date of numpy": np.datetime64("2020-01-01"),
    "array": np.arange(20.0),
    "transposed array": np.ones((2, 3)).T,
    "array of objects": np.array([1, "a", None], dtype=object),
    "records": np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
    "dtype": np.dtype("f4"),
    "RandomState": np.random.RandomState(0),
    "numpy's state": np.random.RandomState(0).get_state(),
    "Generator": np.random.default_rng(0),
    "Generator's state": np.random.default_rng(0).bit_generator.state,
    "random.getstate": random.getstate(),
    "random.Random": random.Random(0),  # noqa: S311 - no secret
    "torch's state": ["cpu", torch.get_rng_state()],
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2], maxlen=5),
    "Counter": collections.Counter("aab"),
    "ChainMap": collections.ChainMap({"a": 1}),
    "UserDict": collections.UserDict(a=1),
    "datetime": datetime.datetime.now(datetime.UTC),
    "date": datetime.date(2020, 1, 1),
    "timedelta": datetime.timedelta(1),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "Namespace": argparse.Namespace(a=1, out=Path("runs")),
    "enum": Color.RED,
    "enum of numbers": Level.HIGH,
    "dataclass": Config(),
    "dataclass with slots": Frozen(),
    "Path": Path("/data/set"),
    "Decimal": decimal.Decimal("1.5"),
    "Fraction": fractions.Fraction(1, 3),
    "UUID": uuid.UUID(int=5),
    "EasyDict": EasyDict(a=EasyDict(b=1)),
    "AttrDict": AttrDict(a=1),
    "list of its own": Items([1, 2]),
    "set of its own": Names([1, 2]),
    "named tuple": Pair(1, 2),
    "bytes": b"abc",
    "many bytes": bytes(1000),
    "bytearray": bytearray(b"abc"),
    "complex": 1 + 2j,
    "range": range(5),
    "frozenset": frozenset({1, (2, 3)}),
    "tuples as keys": {(1, 2): 3, frozenset({4}): 5, 10**30: 6},
    "objects as keys": {Frozen(): 1, Color.RED: 2, np.int64(3): 4, decimal.Decimal(1): 5},
    "type": type(None),
    "types of typing": [
        typing.Union[int, str],  # noqa: UP007 - it is pickled in another way
        typing.List[int],  # noqa: UP006 - so is this
        list[int],
        dict[str, typing.Any],
    ],
    "exception": ValueError("x"),
    "logger": logging.getLogger("a"),
    "pattern": re.compile("a"),
    "BytesIO": io.BytesIO(b"ab"),
    "function": torch.nn.functional.relu,
    "class": torch.nn.Linear,
    "optimizer": torch.optim.Adam(torch.nn.Linear(2, 2).parameters()),
    "Size": torch.Size([1]),
    "torch's version": torch.__version__,
    "torch.Generator": torch.Generator(),
    "layout": torch.strided,
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", BESIDE)
def test_beside_weights(tmp_path, kind, protocol):
    """What is no tensor does no harm beside weights."""
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": W}, "beside": BESIDE[kind]}, path, pickle_protocol=protocol)
    found = read_index(path)
    assert (list(found.tensors), found.key) == (["w"], "model")


@pytest.mark.parametrize(
    "name",
    [
        "mmengine.logging.history_buffer.HistoryBuffer",
        "omegaconf.dictconfig.DictConfig",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "lightning.fabric.utilities.data.AttributeDict",
    ],
)
def test_libraries_that_are_not_installed(tmp_path, name):
    """No library is needed to read what is of its classes."""
    with foreign(name, (dict,) if name.endswith("Dict") else ()) as kind:
        value = kind()
        value.values_ = np.zeros(3)
        torch.save({"model": {"w": W}, "beside": [value]}, tmp_path / "a.pt")
    with foreign(name, (int,), __reduce_ex__=lambda self, _: (type(self), (int(self),))) as kind:
        torch.save({"model": {"w": W}, "beside": kind(2)}, tmp_path / "b.pt")
    for path in tmp_path.iterdir():
        assert list(read_index(path).tensors) == ["w"]
    assert name.split(".")[0] not in sys.modules or "lightning" in name


def held(tmp_path, value, protocol=2):
    """What is read of a value that torch.save saved."""
    path = tmp_path / "held.pt"
    torch.save(value, path, pickle_protocol=protocol)
    with zipfile.ZipFile(path) as archive:
        return torch_pickle.load(archive.read("held/data.pkl"), path)


NUMBERS = [
    *(np.dtype(kind).type(3) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8")),
    *(np.dtype(kind).type(3) for kind in ("u1", "u2", "u4", "u8", "?")),
]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.dtype.name)
def test_numbers_of_numpy(tmp_path, number, protocol):
    """Numbers of numpy's are Python's, in all protocols."""
    found = held(tmp_path, number, protocol)
    assert type(found) is type(number.item())
    assert found == number.item()


@pytest.mark.parametrize("order", "<>")
def test_numbers_in_either_order(order):
    """The order of a number's bytes is what its type says."""
    kind = pickle.dumps(np.dtype(f"{order}i4"), 2)[2:-1]
    number = b"C\x04" + struct.pack(f"{order}i", 7)
    data = b"\x80\x04" + plain("numpy.core.multiarray", "scalar") + kind + number + b"\x86R."
    assert torch_pickle.load(data, Path("a")) == 7


def test_numbers_are_metadata(tmp_path):
    """A step that is a number of numpy's is one as any other."""
    torch.save({"step": np.int64(5), "lr": np.float32(0.5), "ema": {"w": W}}, tmp_path / "a.pt")
    content = torch_zip.read(tmp_path / "a.pt").content
    assert {k: v for k, v in content.items() if k != "ema"} == {"step": 5, "lr": 0.5}


@pytest.mark.parametrize("protocol", [2, 4])
def test_containers(tmp_path, protocol):
    """Containers of Python's are what they are like, those of others hold the same items."""
    content = {
        "dd": collections.defaultdict(list, a=[1]),
        "dq": collections.deque([1, 2], 5),
        "counter": collections.Counter("aab"),
        "easy": EasyDict(a=EasyDict(b=1)),
        "attr": AttrDict(a=1),
        "items": Items([1, 2]),
        "names": types.SimpleNamespace(a=1),
        "path": [PurePosixPath("/a/b"), PurePosixPath("a/b"), PureWindowsPath("c:/x/y")],
    }
    found = held(tmp_path, content, protocol)
    assert found["dd"] == {"a": [1]}
    assert found["dq"] == [1, 2]
    assert found["counter"] == {"a": 2, "b": 1}
    assert found["easy"]["a"]["b"] == 1
    assert found["attr"]["a"] == 1
    assert opened(found["items"]) == [1, 2]
    assert opened(found["names"]) == found["names"].state == {"a": 1}
    assert found["path"] == ["/a/b", "a/b", "c:\\x/y"]


def test_objects_say_what_they_were(tmp_path):
    """An inert object has the name of its class, what it was made from, and its state."""
    color, config, made, name = held(
        tmp_path, [Color.RED, Config(), Keywords(), uuid.UUID(int=5)], 4
    )
    assert (color.class_name, color.arguments) == (f"{__name__}.Color", (1,))
    assert (config.class_name, config.state) == (f"{__name__}.Config", {"lr": 0.1, "names": []})
    assert made.arguments == (1, {"a": 2})
    assert name.state == {"int": 5}
    assert repr(color) == f"<{__name__}.Color>"


def test_old_protocols():
    """Protocol 0 makes objects by a function of their own and items of a plain one."""

    def load(value, base):
        made = Call(vars(copyreg)["_reconstructor"], type(value), base, base(value))
        return torch_pickle.load(b"\x80\x04" + pickle.dumps(made, 2)[2:], Path("a"))

    assert load(EasyDict(a=1), dict)["a"] == 1
    assert opened(load(Items([1]), list)) == [1]
    assert load(Pair(1, 2), tuple).arguments == ((1, 2),)
    pairs = Call(collections.OrderedDict, [["a", 1], ["b", 2]])
    assert torch_pickle.load(pickle.dumps(pairs, 2), Path("a")) == {"a": 1, "b": 2}


def test_omegaconf():
    """A configuration of OmegaConf opens to the dict and the values that it holds."""
    node, config = Inert("omegaconf.nodes.AnyNode"), Inert("omegaconf.dictconfig.DictConfig")
    node.state["_val"] = 5
    config.state |= {"_content": {"lr": node}, "_parent": config}
    inside = opened(config)
    assert isinstance(inside, dict)
    assert opened(inside["lr"]) == 5
    assert opened(3) == 3


def test_weights_in_a_dict_of_its_own(tmp_path):
    """A dict or a list of an unknown class is looked through as any other."""
    torch.save({"ema": EasyDict(w=W), "step": 5}, tmp_path / "a.pt")
    assert read_index(tmp_path / "a.pt").key == "ema"
    torch.save(EasyDict(ema=Items([W, W + 1])), tmp_path / "b.pt")
    found = read_index(tmp_path / "b.pt")
    assert (list(found.tensors), found.unnamed) == (["0", "1"], True)
    assert list(read_index(tmp_path / "b.pt", "ema").tensors) == ["0", "1"]


def test_weights_in_a_dict_of_its_own_in_a_plain_pickle(tmp_path):
    """The same holds for what pickle.dump wrote."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(EasyDict(ema=EasyDict(w=W)), 4))
    assert list(read_index(tmp_path / "a.pkl").tensors) == ["w"]


def test_whole_module(tmp_path):
    """The weights of a module that was saved as a whole are those of its state_dict."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    torch.save(module, tmp_path / "a.pt")
    assert list(read_index(tmp_path / "a.pt").tensors) == list(module.state_dict())
    found = held(tmp_path, module)
    assert found.class_name == "torch.nn.modules.container.Sequential"
    inner = found.state["_modules"]["0"].state["_parameters"]
    assert isinstance(inner["weight"], torch_pickle.TensorStub)
    torch.save({"model": module, "ema": module.state_dict()}, tmp_path / "b.pt")
    for key in ("model", "ema"):
        assert list(read_index(tmp_path / "b.pt", key).tensors) == list(module.state_dict())


class Marked(torch.Tensor):
    """A tensor of a class of its own, whose values need not be its tensor's."""


@pytest.mark.parametrize(
    "value",
    [torch.nn.Buffer(torch.ones(3)), torch.nn.Parameter(torch.ones(3)), torch.ones(3)],
    ids=["buffer", "parameter", "tensor with attributes"],
)
def test_torchs_own_tensors(tmp_path, value):
    """Buffers, parameters and tensors with attributes are tensors."""
    if type(value) is torch.Tensor:
        value.note = "a"
    torch.save({"x": value}, tmp_path / "a.pt")
    assert read_index(tmp_path / "a.pt").tensors["x"].shape == (3,)


HIDING = {
    "sparse": (torch.ones(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    "on no device": (torch.ones(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
    "a class of its own": (torch.ones(2).as_subclass(Marked), f"{__name__}.Marked"),
    "a named tuple": (Pair(torch.ones(2), 1), f"{__name__}.Pair"),
    "a call": (Call(Config, torch.ones(2)), f"{__name__}.Config"),
    "a call, in a list in a dict": (
        Call(Config, {"a": [(torch.ones(2),)]}),
        f"{__name__}.Config",
    ),
    "a call, in a dict of its own": (
        Call(Config, EasyDict(a=Items([torch.ones(2)]))),
        f"{__name__}.Config",
    ),
    "a call of a call": (Call(Color, Call(Config, torch.ones(2))), __name__),
}


@pytest.mark.parametrize("kind", HIDING)
@pytest.mark.parametrize("place", ["beside", "among", "alone", "asked for"])
def test_hidden_tensors(tmp_path, kind, place):
    """Tensors that unknown code made something of are refused by the name of the code."""
    value, name = HIDING[kind]
    content = {
        "beside": {"model": {"w": W}, "ema": [value]},
        "among": {"model": {"w": W, "x": value}},
        "alone": {"x": value},
        "asked for": {"model": {"x": value, "w": W}, "other": {"w": W}},
    }[place]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(
        UnsafePickleError, match=f"hides tensors behind {re.escape(name)}"
    ) as caught:
        read_index(tmp_path / "a.pt", "model" if place == "asked for" else None)
    assert (caught.value.where, caught.value.exit_code) == (str(tmp_path / "a.pt"), 4)


@pytest.mark.parametrize("kind", HIDING)
def test_hidden_tensors_that_do_not_matter(tmp_path, kind):
    """An optimizer's tensors, and those beside what is asked for, may be behind any code."""
    value, _ = HIDING[kind]
    torch.save({"model": {"w": W}, "optimizer": {"state": {0: value}}}, tmp_path / "a.pt")
    assert list(read_index(tmp_path / "a.pt").tensors) == ["w"]
    torch.save({"model": {"w": W}, "ema": value}, tmp_path / "b.pt")
    assert list(read_index(tmp_path / "b.pt", "model").tensors) == ["w"]


def test_tensors_in_the_state_among_weights(tmp_path):
    """An object among weights whose state has tensors is refused: shards are kept so."""
    shard = Config()
    shard.shards = [{"tensor": W}]
    torch.save({"model": {"w": W, "x": shard}}, tmp_path / "a.pt")
    with pytest.raises(
        UnsafePickleError, match=r"hides tensors behind tests\.test_pickles\.Config"
    ):
        read_index(tmp_path / "a.pt")
    torch.save({"w": W, "optimizer": shard, "config": Config()}, tmp_path / "b.pt")
    assert list(read_index(tmp_path / "b.pt").tensors) == ["w"]


def test_hidden_tensors_in_a_plain_pickle(tmp_path):
    """The same holds for what pickle.dump wrote."""
    value = Call(Config, torch.ones(2))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": {"w": W}, "x": {"y": value}}, 4))
    with pytest.raises(
        UnsafePickleError, match=r"hides tensors behind tests\.test_pickles\.Config"
    ):
        read_index(tmp_path / "a.pkl")


def test_hidden_tensors_in_a_network(tmp_path):
    """A parameter of a network that unknown code makes is not left out."""
    network = torch.nn.Linear(2, 2)
    vars(network)["_parameters"]["bias"] = Call(Config, torch.ones(2))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": network}, 4))
    with pytest.raises(
        UnsafePickleError, match=r"hides tensors behind tests\.test_pickles\.Config"
    ):
        read_index(tmp_path / "a.pkl")


def test_plans_in_metadata(tmp_path):
    """Metadata with the plans that they were written by, as Megatron keeps them, are read."""
    item = WriteItem(MetadataIndex("w"), WriteItemType.TENSOR)
    plan = SavePlan([item], planner_data={"w": ("w",)})

    def add(metadata):
        metadata.storage_meta.modules = None
        metadata.all_local_plans = [plan]
        metadata.level = Level.HIGH

    path = edit(save(tmp_path / "c", {"w": W}), add)
    assert list(read_index(path / ".metadata").tensors) == ["w"]
    metadata = torch_pickle.load((path / ".metadata").read_bytes(), path)
    (found,) = metadata.state["all_local_plans"]
    assert found.class_name == "torch.distributed.checkpoint.planner.SavePlan"
    (inner,) = found.state["items"]
    assert inner.state["type"].arguments == (WriteItemType.TENSOR.value,)


def test_enumerations_by_name_in_metadata(tmp_path, monkeypatch):
    """Members that are pickled as attributes of their class are read as others are."""
    by_name = lambda member, _: (getattr, (type(member), member.name))  # noqa: E731
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    path = save(tmp_path / "c", {"w": W})
    assert b"getattr" in (path / ".metadata").read_bytes()
    assert list(read_index(path / ".metadata").tensors) == ["w"]


REFUSED = [
    *("os.system", "os.path.join", "posix.system", "nt.system", "sys.exit", "sys.modules"),
    *("subprocess.run", "_posixsubprocess.fork_exec", "importlib.import_module"),
    *("builtins.eval", "__builtin__.eval", "builtins.vars", "builtins.print", "builtins.map"),
    *("builtins.__import__", "builtins.open", "io.open", "_io.open", "_io.FileIO", "codecs.open"),
    *("builtins.dict.__init__", "collections.OrderedDict.__reduce__", "torch._utils.os.system"),
    *("functools.partial", "_functools.partial", "operator.attrgetter", "_operator.methodcaller"),
    *("copyreg.add_extension", "types.FunctionType", "types.CodeType", "ctypes.CDLL"),
    *("socket.socket", "_socket.socket", "shutil.rmtree", "pickle.loads", "_pickle.loads"),
    *("cPickle.loads", "dill._dill._create_type", "cloudpickle.loads", "joblib.load"),
    *("pty.spawn", "runpy.run_path", "code.InteractiveInterpreter", "webbrowser.open"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.serialization.load"),
    *("torch.storage._load_from_bytes", "torch.utils.cpp_extension.load", "torch.os"),
    *("torch.fx.graph_module.reduce_graph_module", "torch._inductor.codecache.load"),
    *("numpy.load", "numpy.memmap", "numpy.f2py.compile", "numpy.testing._private.utils.runstring"),
    *("uuid._os.system", "some.library.os.system", "some.vendor.cloudpickle.loads", "a.b.eval"),
    *("logging.config.dictConfig", "pandas.read_pickle", "timeit.timeit", "random._os.system"),
]
HARMLESS = [
    *("some.library.Thing", "eval.metrics.Accuracy", "training.system.Model", "__main__.Config"),
    *("builtins.int", "__builtin__.unicode", "builtins.ValueError", "io.BytesIO", "_io.BytesIO"),
    *("operator.getitem", "types.SimpleNamespace", "numpy.ndarray", "numpy.dtype", "torch.float"),
    *("numpy.random._pickle.__randomstate_ctor", "logging.getLogger", "re._compile"),
    *("Outer.Inner.Class", "omegaconf.dictconfig.DictConfig", "torch.optim.adam.Adam"),
]


@pytest.mark.parametrize("full", REFUSED)
def test_what_could_harm(full):
    """What could do harm is refused wherever the module ends and the name begins."""
    parts = full.split(".")
    for at in range(1, len(parts)):
        with pytest.raises(UnsafePickleError) as caught:
            find_global(".".join(parts[:at]), ".".join(parts[at:]))
        assert caught.value.what == f"the pickle asks for {full}"


@pytest.mark.parametrize(
    "name", ["shutil.rmtree", "_socket.socket", "torch.hub.load", "torch.load"]
)
def test_a_name_through_a_module(name):
    """A name that leads through a module that another one has imported is refused as well."""
    with pytest.raises(UnsafePickleError, match=f"asks for some.library.{name}"):
        find_global("some.library", name)


@pytest.mark.parametrize("full", HARMLESS)
def test_what_could_not_harm(full):
    """All else is answered by its name."""
    found = find_global(*full.rsplit(".", 1))
    assert found.name == full.replace("__builtin__", "builtins")
    made = found(1)
    assert isinstance(made, Inert)
    assert (made.class_name, made.arguments) == (found.name, (1,))


def test_a_class_inside_another():
    """Protocols up to 3 look up nested classes and methods: their names are put together."""
    look_up, outer = find_global("__builtin__", "getattr"), find_global("some.library", "Outer")
    inner = look_up(outer, "Inner")
    assert inner.name == "some.library.Outer.Inner"
    assert look_up(inner, "method").name == "some.library.Outer.Inner.method"
    for wrong in [(outer,), (outer, "a.b"), (outer, "a", None), (outer("x"), "a"), (outer, 1)]:
        with pytest.raises(UnsafePickleError, match=r"builtins\.getattr"):
            look_up(*wrong)
    with pytest.raises(UnsafePickleError, match=r"Outer\.system"):
        look_up(outer, "system")
    with pytest.raises(UnsafePickleError, match="nested too deeply"):
        look_up(outer, "a" * 1000)


def test_nothing_is_imported(tmp_path):
    """What a pickle names is not imported, though it is there to import."""
    (tmp_path / "never_imported.py").write_text("raise SystemExit('imported')")
    thing = plain("never_imported", "Thing")
    body = thing + b"(K\x01t\x81}" + text("a") + thing + b"sb"
    data = b"\x80\x04}" + text("x") + body + b"s."
    sys.path.insert(0, str(tmp_path))
    try:
        found = torch_pickle.load(data, tmp_path)
    finally:
        sys.path.remove(str(tmp_path))
    assert isinstance(found, dict)
    assert found["x"].class_name == "never_imported.Thing"
    assert "never_imported" not in sys.modules


THING = plain("some.library", "Thing")
ODD = {
    "an object as a key": b"}" + THING + b")\x81Ns",
    "an object with items as a key": b"}" + THING + b")\x81K\x01K\x02sNs",
    "objects in a set": b"\x8f(" + THING + b")\x81" + THING + b")\x81\x90",
    "a class as a key": b"}" + THING + b"Ns",
    "an object that holds itself": THING
    + b")\x81"
    + put(0)
    + b"K\x01"
    + get(0)
    + b"s"
    + get(0)
    + b"a"
    + get(0)
    + b"b",
    "an object made from what holds it": b"]" + put(0) + THING + get(0) + b"\x85Ra",
    "an object as a state": THING + b")\x81" + THING + b")\x81b",
    "a tuple as a state": THING + b")\x81N}K\x01K\x02s\x86b",
    "a set of its own": THING + b")\x81(K\x01\x90",
    "a complex number as a key": b"}" + plain("builtins", "complex") + b"K\x01K\x02\x86RNs",
    "keywords": THING + b")}" + text("a") + b"K\x01s\x92",
    "long bytes of old protocols": plain("_codecs", "encode")
    + text("a" * 40)
    + text("latin1")
    + b"\x86R",
    "bytes of another encoding": plain("_codecs", "encode") + text("a") + text("utf-16") + b"\x86R",
    "a number that is too short": plain("numpy.core.multiarray", "scalar")
    + plain("numpy", "dtype")
    + text("f8")
    + b"\x85RC\x02ab\x86R",
    "a number of no type": plain("numpy.core.multiarray", "scalar") + b"NN\x86R",
    "an array of no class": plain("numpy.core.multiarray", "_reconstruct") + b"NN\x86R",
    "an object made anew": plain("copyreg", "__newobj__") + THING + b"K\x01\x86R",
}


@pytest.mark.parametrize("case", ODD)
def test_odd_but_harmless(tmp_path, case):
    """Inert objects in odd places are no reason to fail."""
    data = b"\x80\x04}" + text("x") + ODD[case] + b"s."
    with pytest.raises(InputError, match="holds no dict of tensors"):
        read_index(craft(tmp_path / "a.pt", data))


BROKEN = {
    "a list of a number": plain("builtins", "list") + b"K\x01\x85R",
    "a tuple of a number": plain("builtins", "tuple") + b"K\x01\x85R",
    "a set of a number": plain("builtins", "set") + b"K\x01\x85R",
    "a dict of a number": plain("builtins", "dict") + b"K\x01\x85R",
    "a dict of what are no pairs": plain("builtins", "dict") + b"]K\x01a\x85R",
    "a path of a number": plain("pathlib", "Path") + b"K\x01\x85R",
    "an object of a number": plain("copyreg", "__newobj__") + b"K\x01\x85R",
    "keywords that are none": THING + b")N\x92",
    "known classes with keywords": plain("builtins", "list") + b")}K\x01K\x02s\x92",
    "a list as a key": b"}]Ns",
    "items of a number": b"K\x01K\x02a",
    "items of a tuple": b")(K\x01\x90",
    "a global of a long name": b"c" + b"a" * 2000 + b"\nb\n",
    "a global of many parts": b"c" + b"a." * 60 + b"a\nb\n",
    "a global that can't be shown": text("a\n\x1b[2J") + text("b") + b"\x93",
    "a tensor of its own without arguments": plain("torch._tensor", "_rebuild_from_type_v2")
    + plain("torch._utils", "_rebuild_tensor_v2")
    + plain("torch", "Tensor")
    + b"N\x87R",
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken(tmp_path, case):
    """What no pickler writes is refused in a line."""
    data = b"\x80\x04}" + text("x") + BROKEN[case] + b"s."
    with pytest.raises(InputError, match="broken pickle"):
        read_index(craft(tmp_path / "a.pt", data))


def test_short_bytes_are_kept():
    """Strings of bytes are known by their places, short ones by their bytes too."""
    data = b"\x80\x04" + span(b"ab") + span(b"a" * 40) + b"\x86."
    short, long = torch_pickle.load(data, Path("a"))
    assert (short, long) == (Span(7, 2, b"ab"), Span(14, 40))
    assert data[7:9] == b"ab"
