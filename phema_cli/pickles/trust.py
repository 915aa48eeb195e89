"""What a pickle may ask for: all that could do no harm, though nothing is ever imported or called.

Known classes are answered by what makes their objects, unknown ones by inert objects. A pickle that
asks for what runs code, opens files or makes calls was made to harm who loads it, or would run code
of others if its user loaded it: it is refused by the name of what it asks for. That list is a
warning; nobody's safety depends on whether it is complete.
"""

from __future__ import annotations

import builtins
from functools import lru_cache

from phema_cli.errors import UnsafePickleError
from phema_cli.pickles.plain import PLAIN
from phema_cli.pickles.values import Kind

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
#: modules that are refused wherever they stand: others hand them on, or carry copies of them.
_ANYWHERE = frozenset(
    {"os", "sys", "subprocess", "importlib", "ctypes", "builtins", "builtin"}
    | {"pickle", "cPickle", "cloudpickle", "marshal"}
)
#: what makes calls, whatever its module.
_CALLS = frozenset(
    {"eval", "exec", "execfile", "system", "popen", "Popen", "run_path", "run_module"}
    | {"getattr", "setattr", "delattr", "attrgetter", "methodcaller"}
    | {"import", "import_module", "load_from_bytes"}
)
#: classes of Python's own that make calls or look into others.
_BUILTIN_CALLS = {"map", "filter", "super", "property", "classmethod", "staticmethod"}
_BUILTIN_CLASSES = (
    *(name for name, value in vars(builtins).items() if isinstance(value, type)),
    *("Ellipsis", "NotImplemented", "NoneType", "iter"),
    *("unicode", "long", "basestring", "xrange"),
)
#: what is harmless in the modules above.
_HARMLESS = frozenset(
    [
        *("io.BytesIO", "io.StringIO"),
        # Types such as list[int] are pickled as a call of it.
        "operator.getitem",
        *(f"numpy.random.pickle.{n}_ctor" for n in ("randomstate", "generator", "bit_generator")),
        *(
            f"{module}.{name}"
            for module in ("builtins", "builtin")
            for name in _BUILTIN_CLASSES
            if name not in _BUILTIN_CALLS
        ),
    ]
)
#: modules that scripts run in.
_MAIN = {"__main__", "__mp_main__"}
#: what protocols up to 2 call a module.
_NOW = {"__builtin__": "builtins", "copy_reg": "copyreg"}
#: parts of the longest entry.
_DEEPEST = 4
#: what nested classes and methods are looked up by, in protocols up to 3.
_LOOK_UP = {("builtins", "getattr"), ("__builtin__", "getattr")}
#: of a nested class with its module, in characters.
_MOST_NAME = 1000


@lru_cache(maxsize=4096)
def answer(module: str, name: str) -> Kind:
    """The stand-in of a global.

    Raises:
        UnsafePickleError: it could do harm; names it.
    """
    known = PLAIN.get((module, name))
    if (module, name) in _LOOK_UP:
        known = Kind("builtins.getattr", _member)
    if known is None:
        if _harmful(module, name):
            raise UnsafePickleError(f"the pickle asks for {module:.200}.{name:.200}")
        known = Kind(f"{_NOW.get(module, module)}.{name}")
    return known


def _member(owner: object = None, name: object = None, *others: object) -> Kind:
    """The stand-in of a class or a method inside a class, itself a stand-in: nothing is looked up.

    Raises:
        UnsafePickleError: it could do harm, or is looked up in what is no class.
    """
    plain = isinstance(name, str) and name.isidentifier() and not others
    if not plain or not isinstance(owner, Kind) or owner.make is not None:
        raise UnsafePickleError("the pickle asks for builtins.getattr")
    if len(owner.name) + len(str(name)) > _MOST_NAME:
        raise UnsafePickleError("the pickle asks for a class inside too many others")
    return answer(owner.name, str(name))


def _harmful(module: str, name: str) -> bool:
    """Whether a global runs code, opens files or makes calls, as far as is known."""
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
        any(_begins_harmful(parts[at:]) for at in starts)
        or not _ANYWHERE.isdisjoint(parts)
        or not _CALLS.isdisjoint(parts[first:])
    )


def _begins_harmful(parts: list[str]) -> bool:
    """Whether a path is, or lies inside, what is refused."""
    return any(".".join(parts[:n]) in _HARMFUL for n in range(1, _DEEPEST + 1))
