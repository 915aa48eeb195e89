"""Digests of sources: those of their values, whatever read them."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from phema_cli.snapshots import scan
from phema_cli.snapshots.reading import read_checkpoint
from phema_cli.synthesis import Request, plan
from phema_cli.synthesis import execute as execution
from phema_cli.verify.check import verify
from phema_cli.verify.recipe import provenance_of, remake
from tests.builders import execute, run, synthesize, write_run

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
(SNIPPET,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def documented(path, names=None):
    """The digest of a snapshot's tensors as the documents tell others to compute it."""
    place = {}
    exec(SNIPPET, place)  # noqa: S102 - our own page
    tensors = load_file(path)
    types = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
    return place["digest"](
        {
            name: (types[t.dtype], list(t.shape), t.numpy().tobytes())
            for name, t in tensors.items()
            if names is None or name in names
        }
    )


def digests(out):
    """The digests that an output records, by name of the source."""
    record = provenance_of(read_checkpoint(out))
    return {s["name"]: s.get("digest") for s in record["sources"]}


@pytest.fixture
def large(tmp_path):
    """Four snapshots with a tensor of three blocks, tensors that follow on it, and an integer."""
    (tmp_path / "in").mkdir()
    for step in (1, 2):
        for gamma in ("5", "10"):
            random = torch.Generator().manual_seed(step * int(gamma))
            tensors = {
                "w": torch.randn(2**21 + 5, generator=random).half(),
                "v": torch.randn(300, 3, generator=random).half(),
                "a": torch.randn(7, generator=random),
                "empty": torch.empty(0, 3),
                "n": torch.arange(10) * step,
            }
            metadata = {"step": str(step), "gamma": gamma}
            save_file(tensors, tmp_path / "in" / f"{step}-{gamma}.safetensors", metadata)
    return tmp_path / "in"


def test_digests_are_the_documented_ones(large, tmp_path):
    """Whatever the workers, memory, format, shards and targets: those of the values read."""
    averaged = {"w", "v", "a", "empty"}
    expected = {p.name: documented(p, averaged) for p in large.iterdir()}
    # The newest one of the first gamma gives the integers too.
    base = "2-10.safetensors"
    expected[base] = documented(large / base)
    ways = [
        ["-g", 7, "-j", 2, "--max-memory", "100KB", "-o", tmp_path / "a.safetensors"],
        ["-g", "6,7", "-j", 1, "--format", "torch", "-o", tmp_path / "b"],
    ]
    for options in ways:
        for out in run("synthesize", large, "--digest", *options).out.split():
            assert digests(Path(out)) == expected
    (out,) = synthesize(large, gamma=7, digest=True, output=tmp_path / "c", max_shard_size=4 << 20)
    assert len(list(out.iterdir())) == 3
    assert digests(out) == expected
    index = json.loads((out / "model.safetensors.index.json").read_text())
    record = json.loads(index["metadata"]["phema"])
    assert {s["name"]: s["digest"] for s in record["sources"]} == expected


def test_what_is_not_read_has_no_digest(tmp_path):
    """A target that is a stored snapshot is made of that one, and of the newest one's integers."""
    write_run(tmp_path / "in")
    outputs = synthesize(tmp_path / "in", gamma=[5, 7], digest=True, output=tmp_path / "o")
    own, base = (f"ema-step0000100-gamma{gamma}.safetensors" for gamma in (5, 10))
    alone, all_of_them = map(digests, outputs)
    assert None not in all_of_them.values()
    assert {name: digest for name, digest in alone.items() if digest} == {
        own: documented(tmp_path / "in" / own, {"w", "twin"}),
        base: documented(tmp_path / "in" / base, {"count"}),
    }
    assert len(alone) == 8


def test_a_run_that_goes_on_gives_the_same_digests(large, tmp_path):
    """What an interrupted run has read is read again."""

    def planned(out):
        request = Request(gammas=(7.0,), output=str(out), digest=True, jobs=1, max_memory=1 << 20)
        return plan(scan([large]), request)[0]

    whole, broken = planned(tmp_path / "whole.safetensors"), planned(tmp_path / "b.safetensors")
    execute(whole)
    seen = []

    def stop(done):
        seen.append(done)
        if sum(seen) > 8 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execution.execute(broken, progress=stop)
    execute(broken)
    expected = hashlib.blake2b((tmp_path / "whole.safetensors").read_bytes()).digest()
    assert hashlib.blake2b((tmp_path / "b.safetensors").read_bytes()).digest() == expected


def test_verification_compares_them_in_full_only(large, tmp_path):
    """Without --full values are read at random, and no digest is compared."""
    (out,) = synthesize(large, gamma=7, digest=True, output=tmp_path / "o")
    recipe = remake(read_checkpoint(out), scan([large]))
    assert verify(recipe).digests == 0
    assert verify(recipe, full=True).digests == 4
