"""Which stand-in answers for a class or function that a pickle names.

Nothing is imported. Containers, paths, numbers and Python's own constructors have a stand-in that
makes the same value; all other stand-ins make inert objects. A pickle that names what runs code,
opens files or makes calls is refused: it was made to do harm, or loading it elsewhere would run
somebody's code. The list of such names is a warning; safety does not depend on its being complete.
"""

import builtins
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from phema_cli.errors import InputError, UnsafePickleError
from phema_cli.pickles.values import Inert, Span, StandIn, hashable, stand_ins

#: characters of a path.
_MOST_PATH = 4096
#: characters of a text that is turned into bytes: those of numbers are no longer.
_MOST_LATIN = 16
#: numpy's numbers as ``struct`` names them.
_NUMBERS = dict(
    zip(
        ("b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"),
        "?efdbhiqBHIQ",
        strict=True,
    )
)
_BIG = ">"


def _sequence(items: object) -> list[Any] | tuple[Any, ...]:
    """The items of a list or tuple; raises ``InputError`` for anything else."""
    if not isinstance(items, list | tuple):
        raise InputError("makes a container from something that is not a list")
    return items


def _list(items: object = (), *_: object) -> list[object]:
    return list(_sequence(items))


def dict_of(items: object = ()) -> dict[object, object]:
    """A dict from another one, or from pairs; most pickles fill dicts after they make them."""
    if isinstance(items, dict):
        return dict(items)
    pairs = _sequence(items)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):  # noqa: PLR2004 - a pair
        raise InputError("makes a dict from items that are not pairs")
    keys = hashable(pair[0] for pair in pairs)
    return dict(zip(keys, (pair[1] for pair in pairs), strict=True))


def _path(*parts: object) -> str:
    """A path as text."""
    if not all(isinstance(p, str) for p in parts) or sum(map(len, map(str, parts))) > _MOST_PATH:
        raise InputError("an invalid path")
    root = str(parts[0]) if parts else ""
    between = "" if root.endswith(("/", "\\")) else "/"
    return between.join((root, "/".join(map(str, parts[1:])))) if parts[1:] else root


def _bytes(text: object = "", encoding: object = "latin1", *_: object) -> object:
    """Bytes, which protocols up to 2 store as text; many of them are inert."""
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        return Inert("_codecs.encode", (text, encoding))
    if len(text) > _MOST_LATIN:
        return Inert("builtins.bytes", (text,))
    return text.encode("latin-1")


def _number(dtype: object = None, raw: object = None, *_: object) -> object:
    """A number of numpy as one of Python; inert if its type is another."""
    value = raw.raw if isinstance(raw, Span) else raw
    match dtype:
        case Inert(class_name="numpy.dtype", arguments=(str(code), *_)) if code in _NUMBERS:
            state = dtype.raw_state
            order = _BIG if isinstance(state, tuple) and _BIG in state[1:2] else "<"
            packed = struct.Struct(order + _NUMBERS[code])
            if isinstance(value, bytes) and len(value) == packed.size:
                number: object = packed.unpack(value)[0]
                return number
    return Inert("numpy.scalar", (dtype, raw))


def _array(kind: object = None, *arguments: object) -> Inert:
    """An array of numpy."""
    return Inert(kind.name if isinstance(kind, StandIn) else "numpy.ndarray", arguments)


def _reconstructor(kind: object = None, base: object = None, state: object = None) -> object:
    """An object with the items of a plain one."""
    made = _newobj(kind)
    if isinstance(made, Inert) and isinstance(base, StandIn) and base.name != "builtins.object":
        if isinstance(state, dict):
            made.update(state)
        elif isinstance(state, list | set):
            made.append_all(state)
        else:
            made.arguments = (state,)
    return made


def _newobj(kind: object = None, *arguments: object) -> object:
    """An object of a class."""
    if not isinstance(kind, StandIn):
        raise InputError("makes an object of something that is not a class")
    return kind(*arguments)


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
#: what makes the same value as the original, by module and name.
STAND_INS: Mapping[tuple[str, str], StandIn] = {
    **stand_ins(
        ("collections",),
        {
            "OrderedDict": dict_of,
            "defaultdict": lambda _factory=None, items=(): dict_of(items),
            "Counter": dict_of,
            "deque": _list,
        },
    ),
    **stand_ins(
        ("builtins", "__builtin__"),
        {
            "dict": dict_of,
            "list": _list,
            "tuple": lambda items=(): tuple(_sequence(items)),
            "set": lambda items=(): set(hashable(_sequence(items))),
            "frozenset": lambda items=(): frozenset(hashable(_sequence(items))),
        },
    ),
    # Python 3.13 keeps paths in a module of their own.
    **stand_ins(("pathlib", "pathlib._local"), dict.fromkeys(_PATHS, _path)),
    **stand_ins(("_codecs",), {"encode": _bytes}),
    **stand_ins(("copyreg", "copy_reg"), {"_reconstructor": _reconstructor, "__newobj__": _newobj}),
    **stand_ins(
        ("numpy._core.multiarray", "numpy.core.multiarray"),
        {"scalar": _number, "_reconstruct": _array},
    ),
    **stand_ins(("addict.addict",), {"Dict": lambda *pairs: dict_of(pairs)}),
}

# In these lists, underscores at the ends of names are left out: ``_io`` is ``io``.

_SYSTEM = """
os posix nt posixpath ntpath genericpath sys sysconfig site platform subprocess posixsubprocess
winapi winreg msvcrt multiprocessing concurrent asyncio threading thread signal pty commands
popen2 atexit resource fcntl mmap
"""
_CODE = """
builtins builtin importlib frozen_importlib frozen_importlib_external imp pkgutil zipimport runpy
code codeop ctypes cffi gc inspect pdb bdb cmd trace timeit profile cProfile doctest pydoc
ensurepip pip venv setuptools distutils idlelib lib2to3 antigravity turtledemo
types.FunctionType types.LambdaType types.CodeType types.MethodType types.ModuleType
types.CellType types.new_class types.prepare_class types.resolve_bases
functools operator copyreg copy_reg
"""
_LOADERS = """
pickle cPickle pickletools marshal shelve dbm dill cloudpickle joblib jsonpickle
pandas.read_pickle pandas.io pandas.eval
"""
_FILES = """
io codecs shutil tempfile fileinput linecache tarfile zipfile gzip bz2 lzma sqlite3
logging.config logging.handlers logging.FileHandler
socket socketserver ssl http urllib urllib2 httplib ftplib smtplib telnetlib xmlrpc
SocketServer BaseHTTPServer SimpleHTTPServer CGIHTTPServer xmlrpclib anydbm gdbm dumbdbm
webbrowser requests httpx aiohttp paramiko fsspec
"""
_NUMPY = """
numpy.load numpy.save numpy.savez numpy.savez_compressed numpy.loadtxt numpy.savetxt
numpy.genfromtxt numpy.fromfile numpy.fromregex numpy.memmap numpy.core.memmap
numpy.core.multiarray.fromfile numpy.DataSource numpy.lib.npyio numpy.lib.npyio_impl
numpy.lib.format numpy.lib.format_impl numpy.lib.datasource numpy.lib.utils
numpy.f2py numpy.distutils numpy.testing numpy.ctypeslib
"""
_TORCH = """
torch.load torch.save torch.hub torch.jit torch.package torch.serialization torch.ops
torch.classes torch.library torch.multiprocessing torch.storage.load_from_bytes
torch.distributed.rpc torch.distributed.elastic torch.distributed.launch torch.distributed.run
torch.utils.cpp_extension torch.utils.model_zoo torch.utils.collect_env
torch.utils.config_module torch.utils.bottleneck
torch.fx.graph_module torch.fx.lazy_graph_module torch.dynamo torch.inductor
"""
#: modules, and parts of modules, that are refused with all that is in them.
_HARMFUL = frozenset(f"{_SYSTEM} {_CODE} {_LOADERS} {_FILES} {_NUMPY} {_TORCH}".split())
#: modules that are refused at any place in a name: others import them, or carry copies of them.
_ANYWHERE = frozenset(
    {"os", "sys", "subprocess", "importlib", "ctypes", "builtins", "builtin"}
    | {"pickle", "cPickle", "cloudpickle", "marshal"}
)
#: what makes calls, in any module.
_CALLS = frozenset(
    {"eval", "exec", "execfile", "system", "popen", "Popen", "run_path", "run_module"}
    | {"getattr", "setattr", "delattr", "attrgetter", "methodcaller"}
    | {"import", "import_module", "load_from_bytes"}
)
#: classes of Python, but for those that make calls or look into others.
_BUILTIN_CLASSES = {
    *(name for name, value in vars(builtins).items() if isinstance(value, type)),
    *("Ellipsis", "NotImplemented", "NoneType", "iter"),
    *("unicode", "long", "basestring", "xrange"),
} - {"map", "filter", "super", "property", "classmethod", "staticmethod"}
#: what is harmless inside the modules above.
_HARMLESS = frozenset(
    [
        *("io.BytesIO", "io.StringIO"),
        # Types such as list[int] are pickled as a call of it.
        "operator.getitem",
        *(f"numpy.random.pickle.{n}_ctor" for n in ("randomstate", "generator", "bit_generator")),
        *(f"{module}.{name}" for module in ("builtins", "builtin") for name in _BUILTIN_CLASSES),
    ]
)
#: modules that scripts run in.
_MAIN = {"__main__", "__mp_main__"}
#: modules by the names that protocols up to 2 have for them.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
#: parts of the longest entry of _HARMFUL.
_DEEPEST = 4
#: how protocols up to 3 name nested classes and methods.
_GETATTR = {("builtins", "getattr"), ("__builtin__", "getattr")}
#: characters of a nested class with its module.
_MOST_NAME = 1000


@lru_cache(maxsize=4096)
def find_global(module: str, name: str) -> StandIn:
    """The stand-in for a global.

    Raises:
        UnsafePickleError: it could do harm; names it.
    """
    if (module, name) in _GETATTR:
        return StandIn("builtins.getattr", _getattr)
    if (stand_in := STAND_INS.get((module, name))) is not None:
        return stand_in
    if _harmful(module, name):
        raise UnsafePickleError(f"the pickle asks for {module:.200}.{name:.200}")
    return StandIn(f"{_RENAMED.get(module, module)}.{name}")


def _getattr(owner: object = None, name: object = None, *others: object) -> StandIn:
    """The stand-in for a class or method inside a class; nothing is looked up.

    Raises:
        UnsafePickleError: it could do harm, or its owner is not the stand-in for a class.
    """
    plain = isinstance(name, str) and name.isidentifier() and not others
    if not plain or not isinstance(owner, StandIn) or owner.make is not None:
        raise UnsafePickleError("the pickle asks for builtins.getattr")
    if len(owner.name) + len(str(name)) > _MOST_NAME:
        raise UnsafePickleError("the pickle asks for a class that is nested too deeply")
    return find_global(owner.name, str(name))


def _harmful(module: str, name: str) -> bool:
    """Whether a global is in the lists of what runs code, opens files or makes calls."""
    raw = [*module.split("."), *name.split(".")]
    parts = [part.strip().strip("_") for part in raw]
    if ".".join(parts) in _HARMLESS:
        return False
    if any(part.startswith("__") and part.endswith("__") for part in raw if part not in _MAIN):
        return True
    # A name can lead through a module that another one has imported.
    first = module.count(".") + 1
    starts = (0, *range(first, len(parts)))
    return (
        any(
            ".".join(parts[start : start + n]) in _HARMFUL
            for start in starts
            for n in range(1, _DEEPEST + 1)
        )
        or not _ANYWHERE.isdisjoint(parts)
        or not _CALLS.isdisjoint(parts[first:])
    )
