"""Classes and functions that are known: containers, paths, numbers, and Python's own makers.

Each gives what its namesake gives, or an inert object; none is the namesake.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from phema_cli.errors import InputError
from phema_cli.pickles.values import Inert, Kind, Span, keys_of

#: characters of a path.
_MOST_PATH = 4096
#: characters of a text that stands for bytes and is given as bytes: numbers are not longer.
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


def list_of(items: object = (), *_: object) -> list[object]:
    """The list of a list's items, as which a deque is given too."""
    if not isinstance(items, list | tuple):
        raise InputError("a list of what is no list")
    return list(items)


def tuple_of(items: object = ()) -> tuple[object, ...]:
    """The tuple of a list's items."""
    if not isinstance(items, list | tuple):
        raise InputError("a tuple of what is no list")
    return tuple(items)


def set_of(items: object = ()) -> set[object]:
    """The set of a list's items."""
    if not isinstance(items, list | tuple):
        raise InputError("a set of what is no list")
    return set(keys_of(items))


def frozen_set_of(items: object = ()) -> frozenset[object]:
    """The frozen set of a list's items."""
    return frozenset(set_of(items))


def dict_of(items: object = ()) -> dict[object, object]:
    """The dict of a dict's items, or of pairs; most pickles fill dicts after they made them."""
    if isinstance(items, dict):
        return dict(items)
    if not isinstance(items, list | tuple):
        raise InputError("a dict made of something")
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in items):  # noqa: PLR2004 - a pair
        raise InputError("a dict made of what are no pairs")
    return dict(zip(keys_of(k for k, _ in items), (v for _, v in items), strict=True))


def _default_dict(_factory: object = None, items: object = ()) -> dict[object, object]:
    """The dict that a ``defaultdict`` is."""
    return dict_of(items)


def path_of(*parts: object) -> str:
    """A path is its text."""
    if not all(isinstance(p, str) for p in parts) or sum(map(len, map(str, parts))) > _MOST_PATH:
        raise InputError("a path that is none")
    root = str(parts[0]) if parts else ""
    between = "" if root.endswith(("/", "\\")) else "/"
    return between.join((root, "/".join(map(str, parts[1:])))) if parts[1:] else root


def _items_of(*pairs: object) -> dict[object, object]:
    """A dict that is made from its items."""
    return dict_of(pairs)


def bytes_of(text: object = "", encoding: object = "latin1", *_: object) -> object:
    """What ``_codecs.encode`` gives: protocols up to 2 have bytes as text. Long ones are inert."""
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        return Inert("_codecs.encode", (text, encoding))
    if len(text) > _MOST_LATIN:
        return Inert("builtins.bytes", (text,))
    return text.encode("latin-1")


def number_of(kind: object = None, raw: object = None, *_: object) -> object:
    """A number of numpy's, as Python's; of other types it is inert."""
    value = raw.raw if isinstance(raw, Span) else raw
    match kind:
        case Inert(kind="numpy.dtype", arguments=(str(code), *_)) if code in _NUMBERS:
            order = ">" if isinstance(kind.raw, tuple) and _BIG in kind.raw[1:2] else "<"
            form = struct.Struct(order + _NUMBERS[code])
            if isinstance(value, bytes) and len(value) == form.size:
                number: object = form.unpack(value)[0]
                return number
    return Inert("numpy.scalar", (kind, raw))


def _array_of(kind: object = None, *arguments: object) -> Inert:
    """An array of numpy's."""
    return Inert(kind.name if isinstance(kind, Kind) else "numpy.ndarray", arguments)


def _rebuilt(kind: object = None, base: object = None, state: object = None) -> object:
    """What ``copyreg._reconstructor`` gives: an object with the items of a plain one."""
    made = _new(kind)
    if isinstance(made, Inert) and isinstance(base, Kind) and base.name != "builtins.object":
        if isinstance(state, dict):
            made.update(state)
        elif isinstance(state, list | set):
            made.append_all(state)
        else:
            made.arguments = (state,)
    return made


def _new(kind: object = None, *arguments: object) -> object:
    """What ``copyreg.__newobj__`` gives: an object of that class."""
    if not isinstance(kind, Kind):
        raise InputError("an object of what is no class")
    return kind(*arguments)


def _kinds(
    modules: tuple[str, ...], makers: Mapping[str, Callable[..., object] | None]
) -> dict[tuple[str, str], Kind]:
    """Answers by module and name; modules are the names that one had at several times."""
    kinds = {name: Kind(f"{modules[0]}.{name}", make) for name, make in makers.items()}
    return {(module, name): kind for module in modules for name, kind in kinds.items()}


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
#: what is answered by a maker.
PLAIN: Mapping[tuple[str, str], Kind] = {
    **_kinds(
        ("collections",),
        {
            "OrderedDict": dict_of,
            "defaultdict": _default_dict,
            "Counter": dict_of,
            "deque": list_of,
        },
    ),
    **_kinds(
        ("builtins", "__builtin__"),
        {
            "dict": dict_of,
            "list": list_of,
            "tuple": tuple_of,
            "set": set_of,
            "frozenset": frozen_set_of,
        },
    ),
    # Python 3.13 keeps paths in a module of their own.
    **_kinds(("pathlib", "pathlib._local"), dict.fromkeys(_PATHS, path_of)),
    **_kinds(("_codecs",), {"encode": bytes_of}),
    **_kinds(("copyreg", "copy_reg"), {"_reconstructor": _rebuilt, "__newobj__": _new}),
    **_kinds(
        ("numpy._core.multiarray", "numpy.core.multiarray"),
        {"scalar": number_of, "_reconstruct": _array_of},
    ),
    **_kinds(("addict.addict",), {"Dict": _items_of}),
}
