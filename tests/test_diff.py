"""Comparison of checkpoints: the figures, and what counts as a difference."""

import math

import pytest
import torch
from safetensors.torch import save_file

from phema_cli.errors import InputError
from phema_cli.snapshots.reading import read_checkpoint
from phema_cli.verify.diff import compare
from tests.builders import phema, read_index


def difference(tmp_path, a, b):
    """Compare two dicts of tensors through files."""
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    return compare(read_index(tmp_path / "a.safetensors"), read_index(tmp_path / "b.safetensors"))


def test_figures(tmp_path):
    """max_abs, rms and relative are those of the definition; integers don't enter the total."""
    a = {"x": torch.tensor([3.0, 4.0]), "y": torch.ones(2), "n": torch.tensor([1000])}
    b = {"x": torch.tensor([3.0, 4.5]), "y": torch.ones(2).half(), "n": torch.tensor([1001])}
    found = difference(tmp_path, a, b)
    by_name = {t.name: t for t in found.tensors}
    assert by_name["x"].max_abs == 0.5
    assert by_name["x"].rms == pytest.approx(0.5 / math.sqrt(2))
    assert by_name["x"].relative == pytest.approx(0.1)
    assert by_name["y"].relative == 0
    assert by_name["n"].relative == pytest.approx(1e-3)
    assert found.relative == pytest.approx(0.5 / math.sqrt(27))
    assert found.worst == pytest.approx(0.1)


@pytest.mark.parametrize("cast", [torch.complex64, torch.float8_e8m0fnu, torch.bool, torch.float64])
def test_every_type_can_differ(tmp_path, cast):
    """A changed element shows in any type, also those that are never averaged."""
    a = torch.tensor([1.0, 2.0, 1.0]).to(cast)
    b = torch.tensor([1.0, 2.0, 0.0]).to(cast)
    assert difference(tmp_path, {"x": a}, {"x": a}).worst == 0
    assert difference(tmp_path, {"x": a}, {"x": b}).worst > 0


def test_a_key_is_of_the_file_that_has_dicts(tmp_path):
    """What is nothing but weights needs none, as an output, and an unknown key is refused."""
    a, b = {"x": torch.ones(2)}, {"x": torch.zeros(2)}
    torch.save({"ema": a, "model": b}, tmp_path / "nested.pt")
    torch.save({"other": a, "third": b}, tmp_path / "nested2.pt")
    save_file(b, tmp_path / "plain.safetensors")
    torch.save(a, tmp_path / "plain.pt")
    for pair in (("nested.pt", "plain.safetensors"), ("plain.safetensors", "nested.pt")):
        assert phema("diff", *pair, "--key", "model", cwd=tmp_path).code == 0
        assert phema("diff", *pair, "--key", "ema", cwd=tmp_path).code == 1
    for pair, message in (
        (("nested.pt", "nested2.pt"), "nested2.pt: no dict of tensors, and no prefix"),
        (("nested2.pt", "plain.pt"), "nested2.pt: no dict of tensors, and no prefix"),
        (("plain.pt", "plain.safetensors"), "leave --key out: no dict is nested"),
    ):
        refused = phema("diff", *pair, "--key", "model", cwd=tmp_path)
        assert refused.code == 2
        assert message in refused.err


def test_strided_tensors_are_compared_in_order(tmp_path):
    """A transposed tensor of a .pt file equals its row-major copy."""
    w = torch.arange(6.0).reshape(2, 3).t()
    torch.save({"x": w}, tmp_path / "a.pt")
    save_file({"x": w.contiguous()}, tmp_path / "b.safetensors")
    pair = [read_checkpoint(tmp_path / n) for n in ("a.pt", "b.safetensors")]
    assert compare(*pair).worst == 0


@pytest.mark.parametrize(
    ("a", "b", "worst"),
    [
        ([math.nan, 1.0], [math.nan, 1.0], 0.0),
        ([math.inf, 1.0], [math.inf, 1.0], 0.0),
        ([math.nan, 1.0], [0.0, 1.0], math.inf),
        ([1.0, 1.0], [math.inf, 1.0], math.inf),
        ([0.0, 0.0], [0.0, 1e-3], math.inf),
        ([0.0, 0.0], [0.0, -0.0], 0.0),
    ],
)
def test_values_that_are_not_finite(tmp_path, a, b, worst):
    """Equal infinities and NaNs don't differ; a new one differs without bound."""
    assert difference(tmp_path, {"x": torch.tensor(a)}, {"x": torch.tensor(b)}).worst == worst


def test_names_and_shapes_are_part_of_it(tmp_path):
    """What only one side has, or has in another shape, is listed and counts without bound."""
    found = difference(
        tmp_path,
        {"a": torch.ones(1), "s": torch.ones(2), "c": torch.ones(1)},
        {"b": torch.ones(1), "s": torch.ones(3), "c": torch.ones(1)},
    )
    assert (found.only_a, found.only_b, found.reshaped) == (("a",), ("b",), ("s",))
    assert found.worst == math.inf
    assert [t.name for t in found.tensors] == ["c"]


def test_empty_tensors(tmp_path):
    """A tensor without elements does not differ."""
    assert difference(tmp_path, {"x": torch.ones(0)}, {"x": torch.ones(0)}).worst == 0


def test_a_directory_must_hold_one_checkpoint(tmp_path):
    """A directory with several is refused."""
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="holds 2 checkpoints"):
        read_checkpoint(tmp_path)


def test_neighbouring_large_integers_differ(tmp_path):
    """Integers that float64 can't tell apart are told apart."""
    a, b = torch.tensor([2**53, 5]), torch.tensor([2**53 + 1, 5])
    (found,) = difference(tmp_path, {"n": a}, {"n": b}).tensors
    assert found.max_abs == 1
    assert found.relative > 0


def test_types_that_cannot_be_compared(tmp_path):
    """A complex tensor against a real one is listed, not compared."""
    a, b = {"z": torch.ones(2, dtype=torch.complex64)}, {"z": torch.ones(2)}
    found = difference(tmp_path, a, b)
    assert found.reshaped == ("z",)
    assert found.worst == math.inf


def test_an_infinite_difference_is_infinite(tmp_path):
    """max_abs of an infinity against a number is infinite, not the largest float."""
    (found,) = difference(
        tmp_path, {"x": torch.tensor([1.0])}, {"x": torch.tensor([math.inf])}
    ).tensors
    assert found.max_abs == math.inf
