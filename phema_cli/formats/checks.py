"""Checks of the JSON and text that files hold."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from phema_cli.errors import InputError

#: what to do about a broken file.
REMEDY = "copy it again, or leave it out with --exclude"


def broken(what: str, where: Path, remedy: str = REMEDY) -> InputError:
    """The error for a file, or a directory, that is broken."""
    return InputError(what, where=where, remedy=remedy)


def parse_object(
    raw: bytes, path: Path, made: Callable[[dict[str, Any]], object] = lambda value: value
) -> dict[str, Any]:
    """The object that JSON holds; raises ``InputError`` if it holds anything else.

    Args:
        raw: the JSON.
        path: the file that has it.
        made: what becomes of each object in it, as soon as it is parsed.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=lambda pairs: made(_unique(pairs)))
    except InputError as error:
        raise broken(error.what, path) from error
    except (ValueError, RecursionError) as error:
        raise broken("not a JSON header", path) from error
    if not isinstance(value, dict):
        raise broken("its JSON is not an object", path)
    return value


def parse_value(text: str, start: int) -> tuple[object, int]:
    """A value that JSON holds from a character on, and the first character behind it.

    Raises:
        ValueError, RecursionError: there is none.
        InputError: an object in it has a name twice.
    """
    return json.JSONDecoder(object_pairs_hook=_unique).raw_decode(text, start)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without equal names: readers disagree on which of two counts."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"its JSON has {twice!r:.200} twice")
    return made


def checked_metadata(value: object, path: Path) -> dict[str, str]:
    """Metadata; raises ``InputError`` unless it maps text to text."""
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise broken("its metadata has values that are not text", path)
    check_text([*value, *value.values()], path)
    return value


def check_text(texts: Iterable[str], path: Path) -> None:
    """Refuse half surrogate pairs, which JSON can spell and no file can hold."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise broken("a name in its header is not text", path) from error
