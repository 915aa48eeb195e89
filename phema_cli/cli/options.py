"""The options that commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from phema_cli.cli import completing

_TARGETS, _SOURCES, _GENERAL, OUTPUT = "Targets", "Sources", "General", "Output"


def option(*names: str, help: str, panel: str = _GENERAL, **more: Any) -> Any:  # noqa: A002, ANN401 - typer's own names and types
    """A typer option that also reads ``PHEMA_<OPTION>``."""
    long = next(n for n in names if n.startswith("--")).partition("/")[0]
    variable = "PHEMA_" + long.removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        *names, help=help, rich_help_panel=panel, envvar=variable, show_envvar=False, **more
    )


def flag(*names: str, help: str, panel: str = _GENERAL) -> Any:  # noqa: A002, ANN401 - as above
    """An option without a value; nothing stands for one in the help."""
    return option(*names, help=help, panel=panel, metavar="")


Paths = Annotated[
    list[str],
    typer.Argument(
        help="Snapshots, or directories that hold them; URLs too.",
        metavar="PATH",
        autocompletion=completing.paths,
    ),
]
Gamma = Annotated[
    list[str] | None,
    option(
        "--gamma",
        "-g",
        help="Target gammas: 7 or 5,7,9 or 4,5,...,10.",
        panel=_TARGETS,
        metavar="LIST",
    ),
]
SigmaRel = Annotated[
    list[str] | None,
    option(
        "--sigma-rel",
        "-s",
        help="Targets by sigma_rel: 0.10 or 0.05,0.06,...,0.15.",
        panel=_TARGETS,
        metavar="LIST",
    ),
]
Profile = Annotated[
    list[str] | None,
    option(
        "--profile",
        help="Target of another weighting: uniform:last=0.2, exponential:beta=0.999, "
        "exponential:halflife=2000, cooldown:last=0.2, raw, csv:FILE.",
        panel=_TARGETS,
        metavar="PROFILE",
        autocompletion=completing.profiles,
    ),
]
Step = Annotated[
    float | None,
    option(
        "--step",
        help="Time of the targets; the last snapshot's by default.",
        panel=_TARGETS,
        metavar="N",
    ),
]
Method = Annotated[
    str,
    option(
        "--method",
        help="How weights are solved: blue, normalized, projection.",
        panel=_TARGETS,
        metavar="NAME",
        autocompletion=completing.methods,
    ),
]
Pattern = Annotated[
    str | None,
    option(
        "--pattern",
        help="Regular expression searched in each path, with named groups gamma, sigma_rel, "
        "beta, index, step, kimg or epoch.",
        panel=_SOURCES,
        metavar="REGEX",
    ),
]
Gammas = Annotated[
    list[str] | None,
    option(
        "--gammas",
        help="Gammas that the index in a name counts, or the one gamma of all.",
        panel=_SOURCES,
        metavar="LIST",
    ),
]
SigmaRels = Annotated[
    list[str] | None,
    option("--sigma-rels", help="The same by sigma_rel.", panel=_SOURCES, metavar="LIST"),
]
UpdateEvery = Annotated[
    int | None,
    option(
        "--update-every",
        help="Steps between two updates of the averages, as the trainer was told.",
        panel=_SOURCES,
        min=1,
        metavar="N",
    ),
]
StepsPerEpoch = Annotated[
    int | None,
    option(
        "--steps-per-epoch",
        help="Steps of an epoch, for snapshots that count epochs.",
        panel=_SOURCES,
        min=1,
        metavar="N",
    ),
]
Average = Annotated[
    list[str] | None,
    option(
        "--average",
        help="What the average is, where the files don't say: exponential:beta=0.999, ...",
        panel=_SOURCES,
        metavar="LAW",
        autocompletion=completing.averages,
    ),
]
Raw = Annotated[
    bool,
    flag(
        "--raw",
        help="The snapshots are raw weights; averages beside them are left out.",
        panel=_SOURCES,
    ),
]
TrustTags = Annotated[
    bool,
    flag(
        "--trust-tags",
        help="What you say of the snapshots holds, whatever the files say.",
        panel=_SOURCES,
    ),
]
NamesFrom = Annotated[
    Path | None,
    option(
        "--names-from",
        help="State dict that names the tensors of snapshots that are lists.",
        panel=_SOURCES,
        metavar="FILE",
    ),
]
Key = Annotated[
    str | None,
    option(
        "--key",
        help="Dict of weights inside a nested checkpoint, dotted.",
        panel=_SOURCES,
        metavar="NAME",
    ),
]
Select = Annotated[
    list[str] | None,
    option("--select", help="Use only these snapshots.", panel=_SOURCES, metavar="GLOB"),
]
Exclude = Annotated[
    list[str] | None,
    option("--exclude", help="Leave these snapshots out.", panel=_SOURCES, metavar="GLOB"),
]
Copy = Annotated[
    list[str] | None,
    option(
        "--copy",
        help="Tensors to copy from the newest snapshot instead of averaging.",
        panel=_SOURCES,
        metavar="GLOB",
    ),
]
Drop = Annotated[
    list[str] | None,
    option("--drop", help="Tensors to leave out.", panel=_SOURCES, metavar="GLOB"),
]
NoSample = Annotated[
    bool,
    flag(
        "--no-sample",
        help="Read no tensors to learn how they move and round; assume a random walk in log time.",
        panel=_TARGETS,
    ),
]
Format = Annotated[
    str | None,
    option(
        "--format",
        help="safetensors, torch or edm2; by the ending of -o by default, else safetensors.",
        panel=OUTPUT,
        metavar="NAME",
        autocompletion=completing.formats,
    ),
]
Dtype = Annotated[
    str | None,
    option(
        "--dtype",
        help="Type of averaged tensors: float32, float16, bfloat16, ...; as stored by default.",
        panel=OUTPUT,
        metavar="TYPE",
        autocompletion=completing.dtypes,
    ),
]
Jobs = Annotated[
    int | None,
    option(
        "--jobs",
        "-j",
        help="Workers, up to 256; one per processor by default, at most 8.",
        min=1,
        max=256,
        metavar="N",
    ),
]
MaxMemory = Annotated[
    str,
    option("--max-memory", help="Memory to use above what torch itself takes.", metavar="SIZE"),
]
Json = Annotated[bool, flag("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, flag("--quiet", "-q", help="No progress, tables or notices on stderr.")]
Verbose = Annotated[bool, flag("--verbose", "-v", help="Show every snapshot or tensor.")]
