"""A snapshot: checks of what it stores, and its file, which is written tensor by tensor."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from phema_cli.errors import UsageError
from phema_cli.formats import writer
from phema_cli.formats.base import DTYPES, PARTIAL, Checkpoint, DType
from phema_cli.formats.image import FileImage
from phema_cli.system.files import flush, replace, sync_folder, writing

if TYPE_CHECKING:
    import torch


class Snapshot(NamedTuple):
    """What a file is to hold.

    Attributes:
        shapes: element type and shape of each tensor, by name.
        averaged: names of those that are averages.
        metadata: text to text.
        packable: whether all averages are finite, and small enough to be packed.
    """

    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    averaged: set[str]
    metadata: Mapping[str, str]
    packable: bool

    def specs(self) -> dict[str, tuple[DType, tuple[int, ...]]]:
        """Types of safetensors and shapes, by name; raises as :func:`element_type`."""
        return {n: (element_type(dtype), shape) for n, (dtype, shape) in self.shapes.items()}


def element_type(dtype: torch.dtype) -> DType:
    """The element type of safetensors for torch's ``dtype``.

    Raises:
        UsageError: safetensors has none, or counts its elements in another way.
    """
    label = str(dtype).removeprefix("torch.")
    element = next((d for d in DTYPES.values() if d.label == label), None)
    if element is None or element.bits != 8 * dtype.itemsize:
        raise UsageError(f"{label} can't be stored in safetensors files")
    return element


def check_type(dtype: torch.dtype) -> None:
    """Refuse an element type that holds no averages.

    Raises:
        UsageError: it is not a floating-point type, has no sign, or safetensors lacks it.
    """
    import torch

    label = element_type(dtype).label
    if not dtype.is_floating_point or float(torch.tensor(-1.0).to(dtype)) != -1:
        raise UsageError(
            f"averages can't be stored as {label}",
            remedy="pass dtype=torch.float16, torch.bfloat16 or torch.float32",
        )


def is_same(tensor: torch.Tensor, first: torch.Tensor) -> bool:
    """Whether two tensors have the same type and values."""
    import torch

    if tensor.dtype != first.dtype:
        return False
    # torch does not compare types of one byte.
    one, other = (t.float() if t.dtype.itemsize == 1 else t for t in (tensor, first))
    return torch.equal(one, other.to(one.device))


def is_near(average: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether ``average`` is ``value`` up to rounding, where ``value`` is finite.

    The average of an infinity that never changes is NaN: infinity less infinity.
    """
    import torch

    wide = value.to(average.device, torch.float32)
    return bool((torch.isclose(average, wide, rtol=2**-20, atol=0.0) | ~wide.isfinite()).all())


def extremes(tensor: torch.Tensor) -> tuple[float, bool]:
    """The largest finite magnitude in a float32 tensor, and whether all its elements are finite."""
    if not tensor.numel():
        return 0.0, True
    largest = float(tensor.abs().amax())
    if math.isfinite(largest):
        return largest, True
    return float(tensor.nan_to_num(0.0, 0.0, 0.0).abs_().amax()), False


def _limit(dtype: torch.dtype) -> float:
    """The value from which on rounding leaves the range of a type.

    It is half a unit in the last place above the largest number. Converting a value would not show
    it: some types give infinity there, others their largest number.
    """
    import torch

    info = torch.finfo(dtype)
    return info.max + info.eps / 2 * 2.0 ** (math.frexp(info.max)[1] - 1)


def check_range(extremes: Iterable[tuple[str, float]], dtype: torch.dtype) -> None:
    """Refuse values that are too large for ``dtype``.

    Args:
        extremes: names of tensors, and the largest finite magnitude in each; infinity and NaN are
            the same in all types.
        dtype: the type that they are stored in.

    Raises:
        UsageError: there are some; names the tensor with the largest.
    """
    import torch

    large = [(value, name) for name, value in extremes if value >= _limit(dtype)]
    if not large:
        return
    value, name = max(large)
    more = len({n for _, n in large}) - 1
    others = f" (as {more} more tensor{'s' if more > 1 else ''})" if more else ""
    fits = value < _limit(torch.bfloat16)
    types = "torch.bfloat16 or torch.float32" if fits else "torch.float32"
    most = f"{element_type(dtype).label}'s {torch.finfo(dtype).max:.6g}"
    raise UsageError(
        f"{name} holds {value:.6g}, above {most}{others}",
        remedy=f"save with dtype={types}",
    )


def write(path: Path, made: Snapshot, tensors: Iterable[torch.Tensor]) -> None:
    """Write a safetensors file under another name, flush it, and rename it.

    Args:
        path: the file; its directory is made if need be.
        made: what it holds.
        tensors: in the order of ``made.shapes``, on any device; one is in memory at a time.

    Raises:
        StorageError: the operating system failed; no file is left under either name.
        UsageError: an element type can't be stored.
    """
    import torch

    def fill(stream: BufferedRandom) -> None:
        for tensor in tensors:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)

    empty = Checkpoint(path, "", (), {})
    image = writer("safetensors").encode(made.specs(), made.metadata, {}, empty)
    store(path, image, fill)


def store(
    path: Path,
    image: FileImage,
    fill: Callable[[BufferedRandom], None],
    replaced: Iterable[Path] = (),
    *,
    in_order: bool = False,
) -> None:
    """Write a file under another name, flush it, and rename it.

    Args:
        path: the file; its directory is made if need be.
        image: all of its bytes but the tensors' values.
        fill: writes those; the stream is behind the header, and can be read too.
        replaced: files that are removed, one after the other, once this one is complete.
        in_order: no later file may outlive this one if the power fails.

    Raises:
        StorageError: the operating system failed; no file is left under either name.
    """
    # Ranks without a process group, or a run that was started twice, may write the same snapshot at
    # the same time. Each writes its own file, and the last complete one stays.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("x+b") as stream:
                for _, head in image.segments:
                    stream.write(head)
                fill(stream)
                stream.flush()
                flush(stream.fileno())
            for other in replaced:
                other.unlink(missing_ok=True)
            replace(partial, path)
            if in_order:
                sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
