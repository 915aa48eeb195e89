"""--device: what it takes, and that a GPU gives what the processor gives, within rounding."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from phema_cli.formats.base import DTYPES
from phema_cli.synthesis.averaging import Averager
from phema_cli.synthesis.tiling import Kind, tile_elements
from tests.builders import phema

GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="torch finds no GPU on this machine")
F16, BF16, F32, F64 = (DTYPES[n] for n in ("F16", "BF16", "F32", "F64"))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "mps"])
def test_other_devices_are_refused(ckpts, name):
    """A name that is none of the three forms is an error of usage, and nothing is written."""
    done = phema("synthesize", "-g", "7", "--device", name, ckpts, cwd=ckpts.parent)
    assert done.code == 2
    assert "takes cpu, cuda or cuda:N" in done.err
    assert not list(ckpts.parent.glob("phema-*"))


def test_a_gpu_that_is_not_there_is_an_error_before_any_work(ckpts):
    """The message says what torch finds, and nothing is written."""
    done = phema("synthesize", "-g", "7", "--device", "cuda:99", ckpts, cwd=ckpts.parent)
    assert done.code == 2
    assert "cuda:99: torch" in done.err
    assert not list(ckpts.parent.glob("phema-*"))


def test_the_processor_is_the_default(ckpts, tmp_path):
    """--device cpu changes no byte."""
    for name, options in (("a", []), ("b", ["--device", "cpu"])):
        out = tmp_path / f"{name}.safetensors"
        assert phema("synthesize", "-g", "7", *options, ckpts, "-o", out).code == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("memory", [1 << 20, 256 << 20, 4 << 30])
def test_tiles_are_the_largest_that_memory_allows(memory, apart):
    """Half of the memory is kept to, and what a GPU reads is counted in powers of two."""
    kinds = [Kind(F16, F16), Kind(F32, F32)]
    tile, size = tile_elements(kinds, 16, 1, 2, memory, apart=apart)
    assert size <= memory // 2
    assert tile % 256 == 0
    if apart:
        assert size == 2 << ((16 * 4 + 4) * tile - 1).bit_length()
        assert tile == 2 << 20 or 3 * size > memory // 2


@needs_gpu
@pytest.mark.parametrize("kind", [Kind(F16, F16), Kind(BF16, F32), Kind(F32, F32), Kind(F64, F64)])
@pytest.mark.parametrize("targets", [1, 9])
def test_a_gpu_gives_what_the_processor_gives(kind, targets):
    """Within rounding; what sources share, and a target that is a source, bit for bit."""
    random = np.random.default_rng(0)
    weights = random.uniform(-1, 1, (40, targets))
    weights += (1 - weights.sum(axis=0)) / 40
    weights[:, 0] = np.eye(40)[7]
    values = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0))
    values[:, 100:200] = values[0, 100:200]
    values[:, 150], values[:, 151] = -0.0, torch.inf
    values = values.to(getattr(torch, kind.dtype.label))
    made = []
    for device in ("cpu", "cuda:0"):
        tile = Averager([kind], weights, np.ones(targets), 6000, device).tile(kind)
        for row, source in zip(tile.rows(5000), values, strict=True):
            row[:] = source.view(torch.uint8).numpy().data
        out = getattr(torch, kind.out.label)
        rows = [torch.frombuffer(bytearray(data), dtype=out) for data in tile.averages(5000)]
        made.append(torch.stack(rows))
    here, there = made
    assert torch.equal(here[0], there[0])
    assert torch.equal(here[:, 100:200].view(torch.uint8), there[:, 100:200].view(torch.uint8))
    units = 2.0 ** -min(kind.out.mantissa_bits, 19)
    torch.testing.assert_close(there, here, rtol=units, atol=64 * 2.0**-24)


@needs_gpu
@pytest.mark.parametrize("options", [[], ["-j", "1"], ["-g", "6,7,8,9", "--dtype", "bfloat16"]])
def test_the_command_on_a_gpu(ckpts, tmp_path, options):
    """Outputs have the names, types and, within rounding, the values of the processor's."""
    for device in ("cpu", "cuda"):
        done = phema(
            *("synthesize", "-g", "7", *options, "--device", device),
            *(ckpts, "-o", tmp_path / device),
        )
        assert done.code == 0, done.err
    for path in (tmp_path / "cpu").iterdir():
        here, there = load_file(path), load_file(tmp_path / "cuda" / path.name)
        assert here.keys() == there.keys()
        for name, value in here.items():
            unit = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
            torch.testing.assert_close(there[name], value, rtol=unit, atol=2e-6 * bool(unit))
