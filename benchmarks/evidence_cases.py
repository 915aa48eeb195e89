"""The fixed list of cases of the evidence benchmark, written down before the first run of them.

None of the runs of ``plain`` and ``wide`` set a threshold: the limits come from another study, of
other seeds, sizes and batches (``phema_cli/solver/evidence/verdict.py``), and from the runs of
``limits``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.training import Run

TIMES, ELEMENTS = 64, 3000
COUNTS = (4, 8, 16)
STORED = ("fp32", "fp16", "bf16")
#: types at uneven times.
UNEVEN_STORED = ("fp32", "bf16")
#: times and types of the runs of ``limits``.
LIMITS_COUNTS, LIMITS_STORED = (8, 16), ("fp32",)
_SHORT, _LONG, _LONGEST = 3072, 10240, 102_400

#: ``plain``: small models, as in the study; ``wide``: larger and longer; ``odd``: restarts, thawing
#: layers, spikes and the like; ``limits``: those that set how limits rise where elements move in
#: few ways, most of a kind that was thought likely to raise false alarms.
Group = Literal["plain", "wide", "odd", "limits"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A training run whose snapshots are tested.

    Attributes:
        group: what it is for.
        run: what is trained.
        seed: of the model and its data.
        steps: its length.
        wrong: whether wrong tags are tried on it.
    """

    group: Group
    run: Run
    seed: int
    steps: int = _SHORT
    wrong: bool = False


TRIALS = (
    Trial("plain", Run("mlp", "adam", "constant"), 131),
    Trial("plain", Run("mlp", "adamw", "cosine", batch=256), 132, wrong=True),
    Trial("plain", Run("mlp", "sgd", "wsd", batch=16), 133, wrong=True),
    Trial("plain", Run("mlp", "adamw", "rsqrt", batch=8), 134),
    Trial("plain", Run("flow", "adamw", "constant", batch=16), 135, wrong=True),
    Trial("plain", Run("flow", "adam", "wsd", batch=32), 136),
    Trial("plain", Run("flow", "sgd", "rsqrt", batch=32), 137),
    Trial("plain", Run("transformer", "adam", "rsqrt", batch=32), 138),
    Trial("plain", Run("transformer", "adamw", "cosine", batch=16), 139),
    Trial("plain", Run("transformer", "sgd", "cosine", batch=32), 140, wrong=True),
    Trial("plain", Run("transformer", "adamw", "wsd", "autocast", batch=16), 141),
    Trial("wide", Run("transformer", "adamw", "cosine", batch=8, large=True), 201, _LONG, True),
    Trial("wide", Run("flow", "adam", "constant", batch=4, large=True), 202, _LONG),
    Trial("wide", Run("mlp", "adam", "rsqrt"), 204, _LONGEST),
    *(
        Trial("odd", run, seed)
        for run, seed in (
            (Run("mlp", "adamw", "cosine", odd="restarts"), 301),
            (Run("transformer", "adam", "constant", batch=16, odd="drop"), 302),
            (Run("flow", "adamw", "cosine", batch=16, odd="thaw"), 303),
            (Run("mlp", "sgd", "constant", odd="spikes"), 304),
            (Run("transformer", "adamw", "constant", batch=16, odd="data"), 305),
            (Run("flow", "adam", "cosine", batch=16, odd="restarts"), 306),
        )
    ),
    *(
        Trial("limits", run, seed, 2048)
        for run, seed in (
            (Run("mlp", "adam", "wsd"), 501),
            (Run("flow", "adamw", "cosine"), 502),
            (Run("transformer", "sgd", "rsqrt", batch=16), 503),
            (Run("transformer", "sgd", "constant", batch=16), 601),
            (Run("transformer", "sgd", "wsd", batch=8), 602),
            (Run("transformer", "sgd", "cosine", batch=32), 603),
            (Run("transformer", "sgd", "rsqrt", batch=64), 604),
            (Run("mlp", "sgd", "rsqrt", batch=4), 605),
            (Run("transformer", "adam", "constant", batch=8), 607),
            (Run("mlp", "adamw", "wsd", batch=4), 608),
            (Run("transformer", "sgd", "rsqrt", batch=16), 609),
            (Run("flow", "adam", "constant", batch=4), 610),
        )
    ),
)

# An average by name: g5 is gamma 5, c20 a constant decay of rate 20/T, b0.9999 one of that beta, w
# the warm-up min(0.9999, (1 + n)/(10 + n)), u5 gamma 5 updated every 10th step only, k20 a constant
# decay that copies the weights in the first quarter of the run, r5 gamma 5 that begins anew with
# the weights after a quarter. d40 is a constant decay of rate 40/T up to half-way and 10/T later,
# e10 one of 10/T and 40/T, m40 one whose rate falls by a cosine from 40/T to 0.
EDM2 = "g6.937196 g16.972163"
RIGHT = (
    "g5 g10",
    EDM2,
    "g5 raw",
    "g10 raw",
    "g6.937196 raw",
    "g16.972163 raw",
    "c20 c40",
    "c10 c20",
    "c20 raw",
    "c40 raw",
    "w raw",
    "g5 g10 raw",
    "g5 c20",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Right tags of snapshots that are not stored evenly and at the same times.

    Attributes:
        name: what is special.
        averages: names of what is stored.
        first: numbers of the times, of ``TIMES``, of the first series.
        others: of all others.
    """

    name: str
    averages: str
    first: range
    others: range


LAYOUTS = (
    *(Layout("all 64 times", names, range(64), range(64)) for names in RIGHT),
    *(Layout("in turns", names, range(1, 64, 4), range(3, 64, 4)) for names in RIGHT),
    *(Layout("others one in four", names, range(1, 64, 2), range(7, 64, 8)) for names in RIGHT),
    *(Layout("others from half-way on", n, range(3, 64, 4), range(35, 64, 4)) for n in RIGHT),
    Layout("averages from a quarter on", "k20 k40", range(17, 64, 3), range(17, 64, 3)),
    Layout("averages from a quarter on", "k20 raw", range(17, 64, 3), range(17, 64, 3)),
)


@dataclass(frozen=True, slots=True)
class Wrong:
    """Wrong tags.

    Attributes:
        name: of the mistake.
        stored: names of the averages stored.
        told: names of what they are told to be.
        offset: what is added to the steps told, as a fraction of the run.
        mix: what else is wrong with the files.
    """

    name: str
    stored: str
    told: str
    offset: float = 0.0
    mix: str = ""


WRONG = (
    Wrong("5 and 10 exchanged", "g5 g10", "g10 g5"),
    Wrong("EDM2's exchanged", EDM2, "g16.972163 g6.937196"),
    Wrong("5, 10 told as 99, 5", "g5 g10", "g99 g5"),
    Wrong("5, 10 told as 5, 20", "g5 g10", "g5 g20"),
    Wrong("5, 10 told as 5, 12.2", "g5 g10", "g5 g12.2"),
    Wrong("both lengths x1.1", "g5 g10", "g5.6 g11.1"),
    Wrong("both x1.25", "g5 g10", "g6.5 g12.75"),
    Wrong("both x0.8", "g5 g10", "g3.8 g7.8"),
    Wrong("both x1.5", "g5 g10", "g8 g15.5"),
    Wrong("5, 10 told as EDM2's", "g5 g10", EDM2),
    Wrong("EDM2's told as 5, 10", EDM2, "g5 g10"),
    Wrong("updated every 10th step, 5, 10", "u5 u10", "g5 g10"),
    Wrong("updated every 10th step, EDM2's", "u6.937196 u16.972163", EDM2),
    Wrong("constant decays told as power, near", "c20 c40", "g19 g39"),
    Wrong("constant decays told as 5, 10", "c20 c40", "g5 g10"),
    Wrong("constant decays told as 8, 18", "c10 c20", "g8 g18"),
    Wrong("power told as constant, near", "g5 g10", "c12 c22"),
    Wrong("steps of an epoch x2, constant", "c20 c40", "c40 c80"),
    Wrong("steps of an epoch x1.25, constant", "c20 c40", "c25 c50"),
    Wrong("warm-up told as 0.9999, raw", "w raw", "b0.9999 raw"),
    Wrong("raw, 10 told as 5, 10", "raw g10", "g5 g10"),
    Wrong("5, 10 told as raw, 10", "g5 g10", "raw g10"),
    Wrong("5 and raw exchanged", "g5 raw", "raw g5"),
    Wrong("5, raw told as 10, raw", "g5 raw", "g10 raw"),
    Wrong("5, raw told as 6.2, raw", "g5 raw", "g6.2 raw"),
    Wrong("updated every 10th step, 5, raw", "u5 raw", "g5 raw"),
    Wrong("constant, raw told as 5, raw", "c20 raw", "g5 raw"),
    Wrong("constant, raw told as 18, raw", "c20 raw", "g18 raw"),
    Wrong("steps a quarter of the run too late", "g5 g10", "g5 g10", offset=0.25),
    Wrong("steps a whole run too late", "g5 g10", "g5 g10", offset=1.0),
    Wrong("steps a whole run too late, 5, raw", "g5 raw", "g5 raw", offset=1.0),
    Wrong("early half raw", "g5 g10", "g5 g10", mix="early raw"),
    Wrong("late half raw", "g5 g10", "g5 g10", mix="late raw"),
    Wrong("every other of 5 raw", "g5 g10", "g5 g10", mix="first alternates"),
    Wrong("every other file raw", "g5 g10", "g5 g10", mix="all alternate"),
    Wrong("two runs, one average each", "g5 g10", "g5 g10", mix="second of another run"),
    Wrong("two runs, early and late", "g5 g10", "g5 g10", mix="late of another run"),
    Wrong("one file of another run", "g5 g10", "g5 g10", mix="one of another run"),
    Wrong("10 frozen at its start", "g5 g10", "g5 g10", mix="second frozen"),
    Wrong("decay of x4 the length from half-way on, told as before, raw", "d40 raw", "c40 raw"),
    Wrong("decay of x4 the length from half-way on, told as after, raw", "d40 raw", "c10 raw"),
    Wrong("decays of x4 the length from half-way on, told as before", "d40 d20", "c40 c20"),
    Wrong("decay of x1/4 the length from half-way on, told as before, raw", "e10 raw", "c10 raw"),
    Wrong("decay that rises to 1, told as the first, raw", "m40 raw", "c40 raw"),
)
#: mistakes that the study did not have; on the runs of ``wide`` beside the others.
WRONG_WIDE = (
    Wrong("three files of another run", "g5 g10", "g5 g10", mix="three of another run"),
    Wrong("the steps of two files exchanged", "g5 g10", "g5 g10", mix="two exchanged"),
    Wrong("5 one file late", "g5 g10", "g5 g10", mix="first one late"),
    Wrong("both one file late", "g5 g10", "g5 g10", mix="all one late"),
    Wrong("begun anew after a quarter", "r5 r10", "g5 g10"),
    Wrong("begun after a quarter, told from the start", "k20 k40", "c20 c40"),
    Wrong("begun after a quarter, told from the start, raw", "k20 raw", "c20 raw"),
)
#: what a single average can't show.
ALONE = (
    Wrong("5 told as 10, alone", "g5", "g10"),
    Wrong("raw told as 5, alone", "raw", "g5"),
    Wrong("every other file of 5 raw, alone", "g5", "g5", mix="all alternate"),
)
#: times and types at which wrong tags are tried.
WRONG_AT = ((4, "fp32"), (8, "fp32"), (8, "bf16"), (16, "fp32"), (16, "bf16"))
WRONG_WIDE_AT = ((8, "fp16"), (16, "fp16"), (16, "fp32"))


@dataclass(frozen=True, slots=True)
class Case:
    """One set of snapshots under some tags.

    Attributes:
        group: what the training run was for.
        run: the training run.
        seed: its seed.
        name: of the mistake, or the averages stored where the tags are right.
        layout: what is special about the times; empty where nothing is.
        right: whether the tags are.
        count: times.
        stored: the storage type.
        state: of the evidence.
        gain: L; NaN where it was not looked for.
        jitter: J.
        worst: C.
        tag_error: NaN where not known.
        harm: P; NaN where not known.
        damage: what the tags and files do to the result, at the worst of three targets: its
            distance from what right tags of the right files of that type make, over the distance
            by which averaging moves the last weights. Of right tags, its distance from the truth.
        mended: the same with the first alternative's tags, at 16 times; NaN without one.
        foreign: how many files are said not to belong.
        blameless: how many of these do.
        seconds: of the processor that the test took.
    """

    group: str
    run: str
    seed: int
    name: str
    layout: str
    right: bool
    count: int
    stored: str
    state: str
    gain: float
    jitter: float
    worst: float
    tag_error: float
    harm: float
    damage: float
    mended: float
    foreign: int
    blameless: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Proposed:
    """What was proposed where tags were left out.

    Attributes:
        seed: of the training run.
        name: the averages stored.
        stored: the storage type.
        damage: of what is proposed, against the right tags; NaN where nothing is.
    """

    seed: int
    name: str
    stored: str
    damage: float
