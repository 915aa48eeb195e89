"""What the user says about a directory of snapshots, on the command line or in its phema.toml."""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from phema_cli.errors import InputError, UsageError, reading
from phema_cli.formats.remote import remote_errors
from phema_cli.globs import matching
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.profiles.base import GAMMA, SIGMA_REL
from phema_cli.profiles.grammar import MOST_EXACT
from phema_cli.request import Config
from phema_cli.snapshots.pattern import compile_pattern
from phema_cli.trainers.base import real
from phema_cli.trainers.registry import parse_law

_Listed = TypeVar("_Listed")
_Kind = TypeVar("_Kind", str, bool, int)

FILE_NAME = "phema.toml"
_MOST_BYTES = 256 << 10
_MOST_DOTS = 8
#: gammas, laws and keys that an entry may list.
_MOST_LISTED = 1000
_SEPARATORS = re.compile(r"([\n,=\[\]{}])")
#: what a snapshot's row may give one of: each says what the snapshot is an average of.
_LAWS = ("gamma", "sigma_rel", "average")
#: types of what a row may give.
_NUMBER = (int, float)
_ROW = {"gamma": _NUMBER, "sigma_rel": _NUMBER, "step": _NUMBER, "average": (str,)}
#: fields of Config that say how it came about, and are no entries.
_OURS = {"typed", "typed_files", "insists", "origin"}
_ENTRIES = {f.name for f in fields(Config)} - _OURS


def checked(said: Config) -> Config:
    """What is said, with sigma_rels as gammas.

    Raises:
        UsageError: a value makes no sense, or two of them say the same thing.
    """
    if said.gammas and said.sigma_rels:
        raise UsageError("gammas and sigma_rels say the same thing", remedy="keep one of them")
    averages = [n for n in ("average", "gammas", "sigma_rels") if getattr(said, n)]
    if said.raw and averages:
        raise UsageError(f"{averages[0]} and raw exclude each other", remedy="keep one of them")
    for law in said.averages:
        parse_law(law)
    if said.pattern is not None:
        compile_pattern(said.pattern)
    for count in (said.update_every, said.steps_per_epoch):
        if count is not None and not 1 <= count <= MOST_EXACT:
            raise UsageError(f"{count} is no number of steps from 1 to {MOST_EXACT}")
    gammas = said.gammas or tuple(gamma_from_sigma_rel(s) for s in said.sigma_rels)
    for gamma in gammas:
        PowerProfile(gamma, 1.0)
    return replace(said, gammas=gammas, sigma_rels=())


def _read(path: Path) -> bytes | None:
    """The bytes of a phema.toml; None where there is none."""
    with reading(path), remote_errors(path):
        if not path.exists():
            return None
        # A pipe would wait for a writer, a device never end.
        if not (path.is_file() or path.is_dir()) or path.stat().st_size > _MOST_BYTES:
            raise InputError(f"not a file of at most {_MOST_BYTES >> 10} KiB", where=path)
        return path.read_bytes()


def read_config(directory: Path) -> Config:
    """The directory's phema.toml, or an empty Config where there is none.

    Raises:
        InputError: it is not TOML, or says something that phema does not know.
    """
    path = directory / FILE_NAME
    raw = _read(path)
    if raw is None:
        return Config(origin="phema.toml")
    try:
        text = raw.decode()
        _check_dots(text)
        return from_table(tomllib.loads(text), directory)
    except (InputError, UsageError) as error:
        raise InputError(error.what, where=path, remedy=error.remedy) from error
    except (ValueError, OverflowError, RuntimeError) as error:
        # Numbers of any length, tables nested too deeply, links that lead in circles.
        raise InputError(f"not TOML: {error}", where=path) from error


def _check_dots(text: str) -> None:
    """Refuse keys of many parts: tomllib takes memory with the square of their number."""
    parts = _SEPARATORS.split(text)
    for part, end in zip(parts[::2], parts[1::2], strict=False):
        if end in "=]" and part.count(".") > _MOST_DOTS:
            raise InputError(f"a key or the name of a table has more than {_MOST_DOTS} dots")


def from_table(table: Mapping[str, Any], directory: Path) -> Config:
    """The Config that the entries of a phema.toml in the directory make.

    Raises:
        InputError: an entry is not known, or of another type.
        UsageError: a value makes no sense.
    """
    for name in table:
        if name not in _ENTRIES:
            known = ", ".join(sorted(_ENTRIES))
            raise InputError(f"unknown entry {name!r}", remedy=f"known: {known}")
    average = _few(_texts(table, "average"))
    return checked(
        Config(
            pattern=_value(table, "pattern", str, "a text"),
            gammas=_numbers(table, "gammas"),
            sigma_rels=_numbers(table, "sigma_rels"),
            average=average[0] if len(average) == 1 else average or None,
            raw=_value(table, "raw", bool, "true or false") or False,
            trust_tags=_value(table, "trust_tags", bool, "true or false") or False,
            update_every=_count(table, "update_every"),
            steps_per_epoch=_count(table, "steps_per_epoch"),
            key=",".join(_few(_texts(table, "key"))) or None,
            names_from=_inside(directory, _value(table, "names_from", str, "a text")),
            select=_globs(table, "select"),
            exclude=_globs(table, "exclude"),
            copy=_globs(table, "copy"),
            drop=_globs(table, "drop"),
            snapshots=_snapshots(table.get("snapshots", {})),
            insists=False,
            origin="phema.toml",
        )
    )


def _value(table: Mapping[str, Any], name: str, kind: type[_Kind], words: str) -> _Kind | None:
    value = table.get(name)
    if value is not None and type(value) is not kind:
        raise InputError(f"{name} must be {words}")
    return value


def _inside(directory: Path, name: str | None) -> Path | None:
    """The path of a file in the directory; a link or ``..`` must not lead elsewhere."""
    if name is None:
        return None
    path = directory / name
    if "\0" in name:
        raise InputError("names_from is not the name of a file")
    if not path.resolve().is_relative_to(directory.resolve()):
        raise InputError(
            f"names_from leads out of the directory: {name!r}",
            remedy="keep that file in the directory, or pass --names-from",
        )
    return path


def _texts(table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = table.get(name, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise InputError(f"{name} must be a list of texts")
    return tuple(value)


def _globs(table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    listed = _texts(table, name)
    matching(listed)
    return listed


def _numbers(table: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(type(v) in _NUMBER for v in value):
        raise InputError(f"{name} must be a list of numbers")
    return tuple(_float(v) for v in _few(value))


def _few(listed: Sequence[_Listed]) -> tuple[_Listed, ...]:
    """The values that an entry lists, if they are not too many."""
    if len(listed) > _MOST_LISTED:
        raise InputError(f"an entry lists {len(listed)} values, above {_MOST_LISTED}")
    return tuple(listed)


def _float(value: float) -> float:
    """A number in the file, which may be an integer of any length."""
    number = real(value)
    if number is None or not math.isfinite(number):
        raise InputError("numbers must be finite, and below 1e308")
    return number


def _count(table: Mapping[str, Any], name: str) -> int | None:
    words = "a whole number from 1"
    value = _value(table, name, int, words)
    if value is not None and not 1 <= value <= MOST_EXACT:
        raise InputError(f"{name} must be {words}")
    return value


def _snapshots(value: object) -> dict[str, dict[str, str]]:
    """``[snapshots."name"]`` tables to fields as text."""
    result: dict[str, dict[str, str]] = {}
    if not isinstance(value, dict):
        raise InputError("snapshots must be a table of tables")
    for name, row in value.items():
        if not isinstance(row, dict) or not all(type(v) in _ROW.get(k, ()) for k, v in row.items()):
            raise InputError(
                f"snapshots.{name} must be a table of gamma, sigma_rel or average, and step"
            )
        given = [law for law in _LAWS if law in row]
        if len(given) > 1:
            what = f"snapshots.{name} gives {' and '.join(given)}, which say the same thing"
            raise InputError(what, remedy="keep one of them")
        result[name] = {k: v if isinstance(v, str) else repr(v) for k, v in row.items()}
        if "average" in result[name]:
            parse_law(result[name]["average"])
        for field, numbers in (("sigma_rel", SIGMA_REL), ("gamma", GAMMA)):
            if field in row and not numbers.holds(_float(row[field])):
                raise InputError(f"{field} must be {numbers.words}, not {_float(row[field]):g}")
    return result
