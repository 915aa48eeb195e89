"""Dicts and lists of tensors inside what a file holds, wherever they are nested."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from phema_cli.formats.base import StoredTensor
from phema_cli.formats.objects import module_tensors
from phema_cli.pickles import Inert, opened

#: the key that means the top level.
TOP = "."
# Dicts nested deeper are nobody's, nor are longer names of dicts.
_DEEPEST = 50
_LONGEST = 1000
_DIGITS = 9
# Dicts that have more names have them for nothing.
_MOST_NAMES = 16
# What is searched may be long: a word never goes beyond the next dot or dash, which ends it.
_WORD = r"[^\W_]*"
#: words in a key that make what lies under it a trainer's own state, never weights.
_STATE = re.compile(
    rf"(^|[._])(optim{_WORD}|opt|sched{_WORD}|scalers?\d*|amp{_WORD}|rng{_WORD}|random{_WORD}|"
    rf"callbacks|loops|message_hub|dataloader{_WORD}|sampler{_WORD}|averaging_state|train_state|"
    r"criterion|loss_fn|metrics?)([._]|$)",
    re.IGNORECASE,
)
#: the same as the whole first part of a tensor's name.
_STATE_NAME = re.compile(
    r"optim\w*|opt|opt_\w+|\w+_opt|(lr_)?sched\w*|scalers?\d*|grad_scaler|amp\w*|rng\w*|random\w*|"
    r"callbacks|loops|message_hub|dataloader\w*|sampler\w*|averaging_state|train_state|criterion|"
    r"loss_fn|metrics?",
    re.IGNORECASE,
)
#: words in a key, or in a name, that make an average of what lies there.
AVERAGE = re.compile(
    rf"(^|[._-])({_WORD}ema\d*|averaged?|avg|shadow{_WORD}|swa|polyak)([._-]|$)", re.IGNORECASE
)
#: the same as the whole first part of a tensor's name.
AVERAGE_NAME = re.compile(
    r"ema|\w*[_-]?ema[_-]?\d*|ema[_-]\w+|averaged?|averaged_\w+|avg|shadow\w*|swa(_\w+)?|polyak",
    re.IGNORECASE,
)
#: of an optimizer's state, a callback may keep an average.
_CALLBACKS = re.compile(r"(callbacks|loops)[.]", re.IGNORECASE)
#: how the names of what optimizers keep of each tensor end.
_MOMENTS = re.compile(
    r"(.*[._])?(exp_avg\w*|max_exp_avg_sq|momentum_buffer|square_avg|acc_delta|step)"
    r"|(exp_avg\w*|momentum_buffer|square_avg)[._/].*"
)
#: what every optimizer's state has.
_OPTIMIZER = {"state", "param_groups"}


@dataclass(slots=True)
class Groups:
    """What a file holds of tensors.

    Attributes:
        dicts: models' tensors by the dotted key of their dict.
        lists: tensors by number, by the dotted key of their list.
        everything: all dicts and lists with tensors, a trainer's own state too.
    """

    dicts: dict[str, Mapping[str, StoredTensor]] = field(default_factory=dict)
    lists: dict[str, Mapping[str, StoredTensor]] = field(default_factory=dict)
    everything: dict[str, Mapping[str, StoredTensor]] = field(default_factory=dict)


def groups(content: object) -> Groups:
    """The dicts and lists of tensors in what a file holds: the outermost, and those at the top."""
    found = Groups()
    for key, tensors, named in _groups(content):
        found.everything[key] = tensors
        if _is_kept(key) or all(map(_MOMENTS.fullmatch, tensors)):
            continue
        if not any(_is_weight(t) for t in tensors.values()):
            continue
        if named:
            found.dicts[key] = tensors
        else:
            found.lists[key] = tensors
    return found


def _is_kept(key: str) -> bool:
    """Whether a key is of a trainer's own state; a callback may keep an average."""
    if _CALLBACKS.match(key) and AVERAGE.search(key):
        return False
    return key != TOP and _STATE.search(key) is not None


def _is_weight(tensor: StoredTensor) -> bool:
    """Whether it is more than a counter: a float tensor of at least one dimension."""
    return tensor.dtype.kind != "exact" and bool(tensor.shape)


def is_state_key(key: object) -> bool:
    """Whether what lies under a key is a trainer's own state."""
    return isinstance(key, str) and len(key) <= _LONGEST and _STATE.search(key) is not None


def is_state(name: str) -> bool:
    """Whether a tensor's name is that of an optimizer's or of another state."""
    head = name.partition(".")[0]
    return bool(_STATE_NAME.fullmatch(head)) or name.endswith((".exp_avg", ".exp_avg_sq"))


def inside(node: object, key: str) -> object:
    """What a dict, a list or an object's fields hold by a key; else None."""
    node = opened(node)
    if isinstance(node, dict):
        number = int(key) if key.isdecimal() and len(key) <= _DIGITS else None
        return node.get(key, None if number is None else node.get(number))
    if isinstance(node, list) and key.isdecimal() and len(key) <= _DIGITS:
        return node[int(key)] if int(key) < len(node) else None
    return None


def asked_for(content: object, key: str) -> tuple[Mapping[str, StoredTensor], bool] | None:
    """The tensors under a dotted key, and whether they have names; None where there are none."""
    node = by_path(content, key)
    if tensors := _tensors(node):
        return tensors, True
    if tensors := _numbered(node):
        return tensors, False
    return None


def by_path(content: object, key: str) -> object:
    """What lies under a dotted key; keys may themselves have dots."""
    if key == TOP:
        return content
    waiting: list[tuple[object, str]] = [(content, key)]
    # What holds itself has more dotted keys than can be tried.
    seen: set[tuple[int, int]] = set()
    while waiting:
        node, rest = waiting.pop()
        if (id(node), len(rest)) in seen:
            continue
        seen.add((id(node), len(rest)))
        if (found := inside(node, rest)) is not None:
            return found
        dots = [i for i, character in enumerate(rest) if character == "."]
        waiting += [(inside(node, rest[:i]), rest[i + 1 :]) for i in reversed(dots)]
    return None


def _tensors(value: object) -> Mapping[str, StoredTensor]:
    """The entries of a dict that are tensors under a text key; those of a pickled module."""
    if isinstance(value, Inert) and not value and value.appended is None:
        return module_tensors(value)
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, StoredTensor)}


def _numbered(value: object) -> Mapping[str, StoredTensor]:
    """The tensors of a list of nothing else, by their number."""
    value = value.appended if isinstance(value, Inert) else value
    if not isinstance(value, list):
        return {}
    found = {str(k): v for k, v in enumerate(value) if isinstance(v, StoredTensor)}
    return found if len(found) == len(value) else {}


#: tensors, and whether they have names.
_Found = tuple[Mapping[str, StoredTensor], bool]


@dataclass(slots=True)
class _Known:
    """What was found in dicts and lists, which may be there again and again.

    Attributes:
        found: by identity.
        names: how many names each has.
    """

    found: dict[int, list[_Found]] = field(default_factory=dict)
    names: Counter[int] = field(default_factory=Counter)

    def look(self, value: object) -> list[_Found] | None:
        """What a dict or a list holds; None where it has more names than anything needs."""
        self.names[id(value)] += 1
        if id(value) not in self.found:
            self.found[id(value)] = list(_group(value))
        return self.found[id(value)] if self.names[id(value)] <= _MOST_NAMES else None


def _groups(content: object) -> Iterator[tuple[str, Mapping[str, StoredTensor], bool]]:
    """Dotted keys of dicts (true) and lists (false) of tensors: the top's, and the outermost."""
    top = list(_group(content))
    yield from ((TOP, *found) for found in top)
    if top and isinstance(content, Inert):
        # A whole module: what is nested in it is part of it.
        return
    # What is there again and again is looked at once.
    seen: set[int] = set()
    known = _Known()
    waiting: list[tuple[str, object, int]] = [("", content, 0)]
    while waiting:
        prefix, value, depth = waiting.pop()
        entries = opened(value)
        if not isinstance(entries, dict) or id(entries) in seen or depth > _DEEPEST:
            continue
        seen.add(id(entries))
        state = entries.keys() >= _OPTIMIZER
        below: list[tuple[str, object, int]] = []
        for k, v in entries.items():
            if not isinstance(v, dict | list | Inert):
                continue
            # Whatever an optimizer keeps, and whatever it is called.
            name = f"{prefix}{'optimizer.' if state else ''}{k}"
            if len(name) > _LONGEST:
                continue
            found = known.look(v)
            yield from ((name, *one) for one in found or ())
            if found is not None and not found:
                below.append((f"{name}.", v, depth + 1))
        waiting += below[::-1]


def _group(value: object) -> Iterator[_Found]:
    """What holds tensors: a dict or a module (true), or a list (false)."""
    if tensors := _tensors(value):
        yield tensors, True
    elif tensors := _numbered(value):
        yield tensors, False
