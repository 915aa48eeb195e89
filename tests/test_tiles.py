"""Segments: tensors that follow on one another everywhere are read and written as one."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from phema_cli import scan
from phema_cli.synthesis import Request, make_recipe
from phema_cli.synthesis.tiles import segments
from tests.builders import execute


def planned(folder, names, **request):
    """The recipe for two snapshots of tensors of these names and types."""
    folder.mkdir()
    for step in (1, 2):
        tensors = {n: torch.full((5,), float(step)).to(dtype) for n, dtype in names.items()}
        metadata = {"gamma": "5.0", "step": str(step)}
        save_file(tensors, folder / f"s{step}.safetensors", metadata)
    return make_recipe(
        scan([folder]), Request(gamma=(7.0,), output=str(folder / "out"), **request)
    )[0]


def parts(recipe):
    """Number of elements of each segment."""
    return [segment.elements for segment in segments(recipe)]


def test_neighbours_of_one_type_are_one_segment(tmp_path):
    """Three float32 tensors are one run; those of another type, and integers, begin another."""
    kinds = {"a": torch.float32, "b": torch.float32, "c": torch.float32}
    kinds |= {"h": torch.float16, "i": torch.int32}
    recipe = planned(tmp_path / "in", kinds)
    assert sorted(parts(recipe)) == [5, 5, 15]
    (segment,) = [s for s in segments(recipe) if s.elements == 15]
    assert [e.shape for e in segment.sources.values()] == [(15,), (15,)]
    assert [e.offset for e in segment.sources.values()] == [
        s.checkpoint.tensors["a"].offset for s in reversed(recipe.sources)
    ]


def test_another_order_in_a_source_parts_them(tmp_path):
    """What follows on one another in one source only is not one run."""
    recipe = planned(tmp_path / "in", {"a": torch.float32, "b": torch.float32})
    first = recipe.sources[0]
    a, b = (first.checkpoint.tensors[n] for n in "ab")
    swapped = {"a": replace(a, offset=b.offset), "b": replace(b, offset=a.offset)}
    changed = replace(first, checkpoint=replace(first.checkpoint, tensors=swapped))
    assert parts(recipe) == [10]
    assert parts(replace(recipe, sources=(changed, *recipe.sources[1:]))) == [5, 5]


@pytest.mark.parametrize("change", ["checksums", "offsets", "homes"])
def test_outputs_part_them_too(tmp_path, change):
    """Tensors with checksums of their own, apart from one another or in two files stay two."""
    recipe = planned(tmp_path / "in", {"a": torch.float32, "b": torch.float32})
    (output,) = recipe.outputs
    (file,) = output.files
    image = file.image
    if change == "homes":
        other = replace(output, files=(file, file), homes={"a": 0, "b": 1})
    elif change == "offsets":
        image = replace(image, offsets=dict(image.offsets) | {"b": image.offsets["b"] + 8})
        other = replace(output, files=(replace(file, image=image),))
    else:
        image = replace(image, checksums={"a": (0,), "b": (4,)})
        other = replace(output, files=(replace(file, image=image),))
    assert parts(replace(recipe, outputs=(other,))) == [5, 5]


def test_many_small_tensors_come_out_right(tmp_path):
    """Five hundred tensors of a few elements each, over several tiles and workers."""
    (tmp_path / "in").mkdir()
    random = torch.Generator().manual_seed(0)
    values = [
        {f"t{i:03d}": torch.randn(i % 7, 3, generator=random) for i in range(500)} for _ in range(2)
    ]
    for step, tensors in enumerate(values, start=1):
        metadata = {"gamma": "5.0", "step": str(step)}
        save_file(tensors, tmp_path / "in" / f"s{step}.safetensors", metadata)
    request = Request(gamma=(5.0,), step=1.5, output=str(tmp_path / "o.safetensors"), jobs=3)
    recipe, (path,) = make_recipe(scan([tmp_path / "in"]), request)
    execute(replace(recipe, tile_elements=100), processes=True)
    first, second = recipe.weights[:, 0]
    for name, made in load_file(path).items():
        torch.testing.assert_close(made, first * values[0][name] + second * values[1][name])
