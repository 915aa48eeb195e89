"""What can be asked of ``pack``: its options, each declared once."""

from dataclasses import dataclass

from phema_cli.options import option, part
from phema_cli.request import SOURCES, Config

#: that of formats/packing.py, which needs numpy; help does not.
LONGEST_CHAIN = 256

_PACKING, _OUTPUT = "Packing", "Output"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest:
    """How snapshots are packed, and where they go; the help of each option says what it holds.

    Attributes:
        max_error: the largest expected error of an average that is made of the packed snapshots.
        max_memory: in bytes.
        config: how snapshots are found and read.
    """

    output: str = option(
        "Directory for the packed snapshots.",
        group=_OUTPUT,
        metavar="DIR",
        short="-o",
        required=True,
        common=True,
    )
    bits: int = option(
        "Bits of an element: 16, 8 or 4; scales take a quarter of a bit more.",
        default=8,
        group=_PACKING,
        metavar="16|8|4",
        type=int,
        common=True,
    )
    keyframe_every: int = option(
        "Files from one that is whole to the next.",
        default=64,
        group=_PACKING,
        metavar="N",
        type=int,
        least=2,
        most=LONGEST_CHAIN,
    )
    max_error: float | None = option(
        "Exit with 1, and write nothing, if the expected_error is above X.",
        group=_PACKING,
        metavar="X",
        type=float,
        least=0.0,
    )
    dry_run: bool = option("Say what would be written.", default=False, group=_OUTPUT)
    jobs: int | None = option(
        "Workers; one for each processor by default.",
        group=_OUTPUT,
        metavar="N",
        short="-j",
        type=int,
        least=1,
    )
    max_memory: int = option(
        "Memory for buffers, of all workers.",
        default=256 << 20,
        group=_OUTPUT,
        metavar="SIZE",
    )
    config: Config = part(Config, SOURCES)
