"""Finds the dicts and lists of tensors in a file, wherever they are nested."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from phema_cli.formats.base import StoredTensor, Tensors
from phema_cli.formats.objects import module_tensors
from phema_cli.pickles import Inert, opened

#: the key that means the top level.
TOP = "."
# No trainer nests dicts deeper, or gives them longer names.
_DEEPEST = 50
_LONGEST = 1000
_DIGITS = 9
# No trainer stores one dict under more names.
_MOST_NAMES = 16
# Keys may be long: a word ends at the next dot or dash, so that no search takes long.
_WORD = r"[^\W_]*"
#: words for a trainer's own state, which is never weights; and beginnings of such words.
_OWN = (
    r"opt|scalers?\d*|callbacks|loops|message_hub|averaging_state|train_state|criterion|loss_fn|"
    r"metrics?"
)
_BEGINS = "(?:optim|sched|amp|rng|random|dataloader|sampler)"
#: such words in a key: what lies under it is state.
_STATE = re.compile(rf"(^|[._])({_BEGINS}{_WORD}|{_OWN})([._]|$)", re.IGNORECASE)
#: these and some more as the whole first part of a tensor's name.
_STATE_NAME = re.compile(
    rf"{_BEGINS}\w*|{_OWN}|opt_\w+|\w+_opt|lr_sched\w*|grad_scaler", re.IGNORECASE
)
#: words in a key, or in a name: what lies there is an average.
AVERAGE = re.compile(
    rf"(^|[._-])({_WORD}ema\d*|averaged?|avg|shadow{_WORD}|swa|polyak)([._-]|$)", re.IGNORECASE
)
#: the same as the whole first part of a tensor's name.
AVERAGE_NAME = re.compile(
    r"ema|\w*[_-]?ema[_-]?\d*|ema[_-]\w+|averaged?|averaged_\w+|avg|shadow\w*|swa(_\w+)?|polyak",
    re.IGNORECASE,
)
#: callbacks belong to a trainer's own state, but one of them may keep an average.
_CALLBACKS = re.compile(r"(callbacks|loops)[.]", re.IGNORECASE)
#: names of what an optimizer keeps of each tensor.
_MOMENTS = re.compile(
    r"(.*[._])?(exp_avg\w*|max_exp_avg_sq|momentum_buffer|square_avg|acc_delta|step)"
    r"|(exp_avg\w*|momentum_buffer|square_avg)[._/].*"
)
_CONTAINERS = (dict, list, Inert)
#: what every optimizer's state has.
_OPTIMIZER = {"state", "param_groups"}

#: tensors by name, and whether they have names; those of a list have numbers.
Group = tuple[Mapping[str, StoredTensor], bool]


#: such mappings by their dotted keys.
Groups = dict[str, Mapping[str, StoredTensor]]


def groups(content: object) -> tuple[Groups, Groups, Groups]:
    """The dicts and lists of tensors in the content of a file.

    These are the one at the top level, and below it the outermost ones.

    Returns:
        Dicts of a model's tensors; lists of a model's tensors, in which the name of a tensor is its
        number; and all dicts and lists with tensors, a trainer's own state too.
    """
    dicts: Groups = {}
    lists: Groups = {}
    everything: Groups = {}
    top = tensors_of(content)
    found = [] if top is None else [(TOP, *top)]
    if not (found and isinstance(content, Inert)):
        # Not a whole module: there may be dicts and lists below the top level.
        found += _outermost(content)
    for key, tensors, named in found:
        everything[key] = tensors
        # A callback may keep an average; all else of a trainer's own state is no weights.
        callback = _CALLBACKS.match(key) and AVERAGE.search(key)
        is_state = key != TOP and not callback and _STATE.search(key)
        if is_state or all(map(_MOMENTS.fullmatch, tensors)):
            continue
        # Tensors of integers and single numbers are counters.
        if any(t.dtype.kind != "exact" and t.shape for t in tensors.values()):
            (dicts if named else lists)[key] = tensors
    return dicts, lists, everything


def _outermost(content: object) -> Iterator[tuple[str, Mapping[str, StoredTensor], bool]]:
    """The outermost groups below the top level, each with its dotted key."""
    # A dict or a list may be in the file many times: each is searched once.
    seen: set[int] = set()
    known: dict[int, Group | None] = {}
    names: Counter[int] = Counter()
    waiting: list[tuple[str, object, int]] = [("", content, 0)]
    while waiting:
        prefix, value, depth = waiting.pop()
        entries = opened(value)
        if not isinstance(entries, dict) or id(entries) in seen or depth > _DEEPEST:
            continue
        seen.add(id(entries))
        # An optimizer's state is known by its keys, whatever it is called.
        prefix += "optimizer." if entries.keys() >= _OPTIMIZER else ""
        nested = [(f"{prefix}{k}", v) for k, v in entries.items() if isinstance(v, _CONTAINERS)]
        below: list[tuple[str, object, int]] = []
        for name, v in nested:
            if len(name) > _LONGEST:
                continue
            names[id(v)] += 1
            if id(v) not in known:
                known[id(v)] = tensors_of(v)
            if names[id(v)] > _MOST_NAMES:
                continue
            group = known[id(v)]
            if group is None:
                below.append((f"{name}.", v, depth + 1))
            else:
                yield name, *group
        waiting += below[::-1]


def tensors_of(value: object) -> Group | None:
    """The tensors that a dict, a list or a pickled module holds; None if it holds none."""
    if isinstance(value, Inert) and not value and value.appended is None:
        tensors: Mapping[str, StoredTensor] = module_tensors(value)
        return (tensors, True) if tensors else None
    if isinstance(value, Tensors):
        return (value, True) if value else None
    if isinstance(value, dict):
        tensors = {
            k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, StoredTensor)
        }
        if tensors:
            # Where nothing lies beside them there is no need of two dicts.
            return (tensors if len(tensors) < len(value) else value), True
    value = value.appended if isinstance(value, Inert) else value
    if isinstance(value, list) and value and all(isinstance(v, StoredTensor) for v in value):
        return {str(k): v for k, v in enumerate(value)}, False
    return None


def is_state_key(key: object) -> bool:
    """Whether what lies under a key is a trainer's own state."""
    return isinstance(key, str) and len(key) <= _LONGEST and _STATE.search(key) is not None


def is_state(name: str) -> bool:
    """Whether a tensor's name is that of an optimizer's or of another state."""
    head = name.partition(".")[0]
    return bool(_STATE_NAME.fullmatch(head)) or name.endswith((".exp_avg", ".exp_avg_sq"))


def inside(node: object, key: str) -> object:
    """The entry of a dict, a list or an object's fields under a key; None if there is none."""
    node = opened(node)
    if isinstance(node, Mapping):
        number = int(key) if key.isdecimal() and len(key) <= _DIGITS else None
        return node.get(key, None if number is None else node.get(number))
    if isinstance(node, list) and key.isdecimal() and len(key) <= _DIGITS:
        return node[int(key)] if int(key) < len(node) else None
    return None


def by_path(content: object, key: str) -> object:
    """The value under a dotted key; keys may themselves have dots."""
    if key == TOP:
        return content
    waiting: list[tuple[object, str]] = [(content, key)]
    # A dict that holds itself has more dotted keys than can be tried.
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
