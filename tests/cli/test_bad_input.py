"""Bad input: one line, the right exit code, and no output file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.builders import phema, write_run

FIRST = "ema-step0000025-gamma5.safetensors"


def empty(ckpts):
    """Remove every snapshot."""
    for path in ckpts.iterdir():
        path.unlink()


def no_tags(ckpts):
    """Leave a file that does not say what it is."""
    (ckpts / FIRST).unlink()
    save_file({"w": torch.ones(4, 3)}, ckpts / "weights-step25.safetensors")


def contradiction(ckpts):
    """Give a file a name that contradicts its metadata."""
    (ckpts / FIRST).rename(ckpts / "ema-step0000027-gamma5.safetensors")


def duplicate(ckpts):
    """Store a snapshot twice."""
    shutil.copy(ckpts / FIRST, ckpts / "again1.safetensors")


def only_step_zero(ckpts):
    """Leave nothing but a snapshot of step 0."""
    empty(ckpts)
    save_file({"w": torch.ones(4, 3)}, ckpts / "e-step0-gamma5.safetensors")


def missing_shard(ckpts):
    """Add an index whose shard is not there."""
    folder = ckpts / "step25-gamma4"
    folder.mkdir()
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shape_mismatch(ckpts):
    """Give one snapshot a transposed tensor."""
    metadata = {"gamma": "5.0", "step": "25"}
    tensors = {"w": torch.ones(3, 4), "twin": torch.ones(7), "count": torch.tensor(1)}
    save_file(tensors, ckpts / FIRST, metadata)


def missing_tensor(ckpts):
    """Take the tensor that training moves out of one snapshot."""
    save_file({"twin": torch.ones(7)}, ckpts / FIRST, {"gamma": "5.0", "step": "25"})


def truncated(ckpts):
    """Cut a file short."""
    data = (ckpts / FIRST).read_bytes()
    (ckpts / FIRST).write_bytes(data[:-5])


def not_a_checkpoint(ckpts):
    """Put text where a snapshot should be."""
    (ckpts / FIRST).write_text("hello")


def text_as_pt(ckpts):
    """Put text under a torch ending."""
    (ckpts / "x-step1-gamma5.pt").write_text("hello")


def legacy(ckpts):
    """Add a file in torch's format before 1.6."""
    torch.save(
        {"w": torch.ones(1)}, ckpts / "x-step1-gamma5.pt", _use_new_zipfile_serialization=False
    )


def bad_toml(ckpts):
    """Write a phema.toml with a wrong type."""
    (ckpts / "phema.toml").write_text("gammas = 5")


BROKEN = [
    (empty, "no snapshots found"),
    (
        no_tags,
        (
            "weights-step25.safetensors: does not say whether it is an average or the raw weights; "
            "pass --raw if it is the raw weights, --gammas or --average LAW if it is an average"
        ),
    ),
    (contradiction, "its step is 25 by its step and 27 by its name"),
    (duplicate, "the same gamma 5 and step 25 as again1.safetensors"),
    (only_step_zero, "at step 0 there is no average yet"),
    (missing_shard, "its shard 'model-00001-of-00001.safetensors' is missing"),
    (shape_mismatch, "tensor w is float32 [3, 4] instead of float32 [4, 3]"),
    (missing_tensor, "tensor w is missing"),
    (truncated, "cut short"),
    (not_a_checkpoint, "not a safetensors file"),
    (text_as_pt, "not a PyTorch checkpoint"),
    (legacy, "torch's legacy format"),
    (bad_toml, "gammas must be a list of numbers"),
]


@pytest.mark.parametrize(("breakage", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_broken_inputs(ckpts, tmp_path, breakage, message):
    """Each broken directory ends with exit code 3, one line that says so, and no output."""
    breakage(ckpts)
    run = phema("synthesize", "-g", 7, ckpts, "-q", cwd=tmp_path)
    assert run.code == 3
    assert message in run.err
    assert run.err.count("\n") == 1
    assert run.err.startswith("phema: ")
    assert run.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["ckpts"]


USAGE = [
    (("-s", "0.2887"), "0.2887"),
    (("-s", "0.5"), "12^-1/2 = 0.2887"),
    (("-g", "-1"), "gamma -1 is"),
    (("-g", "7", "--step", "101"), "later than the last snapshot's, 100"),
    (("-g", "7", "--step", "0"), "step 0 is not above 0"),
    (("-g", "seven"), "'seven' is not a number"),
    (("-g", "5,...,7"), "... needs two numbers"),
    (("-g", "5,6,...,7.5"), "steps of 1 don't lead from 6 to 7.5"),
    (("-g", "7,7"), "given twice"),
    (("-g", "5,6,...,6"), "don't lead from 6 to 6"),
    (("-g", "0,1e-30,...,1e10"), "is not a number"),
    (("-g", "1e7"), "at most 10000"),
    (("-s", "1e-200"), "not a number"),
    (("-s", "1e-9"), "must be between"),
    (("-g", "7", "-o", "{gamma}.pt", "--format", "edm3"), "no output format"),
    (("-g", "7", "--method", "magic"), "no method 'magic'"),
    (("-g", "7", "--dtype", "int8"), "no float type 'int8'"),
    (("-g", "7", "--max-shard-size", "5XB"), "not a size"),
    (("-g", "7", "--pattern", "("), "not a regular expression"),
    (("-g", "7", "--pattern", "x"), "no named group"),
    (("-g", "7", "--gammas", "5", "--sigma-rels", "0.1"), "the same thing"),
    (("-g", "7", "-o", "{what}"), "unknown placeholder"),
    (("-g", "7", "--raw", "--average", "power:gamma=5"), "average and raw exclude each other"),
    (("-g", "7", "--raw", "--gammas", "5"), "gammas and raw exclude each other"),
    (("-g", "7", "--raw", "--sigma-rels", "0.1"), "sigma_rels and raw exclude each other"),
    (("-g", "7", "--jobs", "0"), "--jobs"),
    (("--gama", "7"), "No such option"),
    (("--sigma-rels", "0.1"), "leave it out; a target is --gamma or --sigma-rel"),
    ((), "no target given; pass --gamma, --sigma-rel or --profile"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), USAGE, ids=lambda v: " ".join(v) if v else "none"
)
def test_usage_errors(ckpts, tmp_path, arguments, message):
    """Each command line that makes no sense ends with exit code 2 and one line."""
    run = phema("synthesize", ckpts, "-q", *arguments, cwd=tmp_path)
    assert run.code == 2
    assert message in run.err
    assert run.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["ckpts"]


def test_a_path_with_a_typo_is_answered_with_the_right_one(tmp_path):
    """What lies beside it and is called nearly so is named; nothing else is."""
    (tmp_path / "ckpts").mkdir()
    run = phema("inspect", "ckpt", cwd=tmp_path)
    assert (run.code, run.err) == (
        3,
        "phema: ckpt: no such file or directory; did you mean ckpts?\n",
    )
    for other in ("runs", "run/ckpts", "c\0"):
        run = phema("inspect", other, cwd=tmp_path)
        assert run.code == 3
        assert "did you mean" not in run.err


def test_existing_output_is_refused(ckpts, tmp_path):
    """Without --overwrite an existing output stays as it is, exit code 2."""
    (tmp_path / "o.safetensors").write_text("mine")
    run = phema("synthesize", "-g", 7, ckpts, "-o", "o.safetensors", "-q", cwd=tmp_path)
    assert (run.code, run.out) == (2, "")
    assert "pass --overwrite or --skip-existing" in run.err
    assert (tmp_path / "o.safetensors").read_text() == "mine"
    done = phema(
        "synthesize", "-g", 7, ckpts, "-o", "o.safetensors", "-q", "--overwrite", cwd=tmp_path
    )
    assert done.code == 0


def test_one_gamma_is_allowed_with_a_warning(tmp_path):
    """A single gamma works, and says that and with what expected error."""
    write_run(tmp_path / "one", gammas=(5.0,))
    run = phema("synthesize", "-g", 7, tmp_path / "one", cwd=tmp_path)
    assert run.code == 0
    assert "warning: all snapshots have gamma 5" in run.err
    assert "expected_error" in run.err


@pytest.mark.parametrize("name", ["weights.safetensors", "last.safetensors"])
@pytest.mark.parametrize("step", [None, "100"])
def test_files_without_a_number_are_left_out(ckpts, tmp_path, name, step):
    """A file that has no time, or that of a numbered one, is left out with a notice."""
    metadata = None if step is None else {"gamma": "5", "step": step}
    save_file({"w": torch.ones(4, 3)}, ckpts / name, metadata)
    run = phema("synthesize", "-g", 7, ckpts, cwd=tmp_path)
    assert run.code == 0
    (notice,) = [line for line in run.err.splitlines() if line.startswith("notice: ")]
    why = "nothing says when it was stored"
    if step is not None:
        why = "of the same time as ema-step0000100-gamma5.safetensors"
    assert notice == f"notice: {name}: left out: {why}"


def test_step_zero_beside_others_is_left_out(ckpts, tmp_path):
    """A snapshot of step 0 is left out with a notice; the others are used."""
    save_file({"w": torch.ones(4, 3)}, ckpts / "e-step0-gamma5.safetensors")
    run = phema("synthesize", "-g", 7, ckpts, cwd=tmp_path)
    assert run.code == 0
    assert "e-step0-gamma5.safetensors: left out: at step 0" in run.err


class Shell:
    """Unpickled freely, it would run a command."""

    def __reduce__(self):
        import os

        return os.system, ("touch ran",)


def test_a_pickle_that_runs_code_is_refused(ckpts, tmp_path):
    """Exit code 4, the global named, nothing run."""
    torch.save({"w": torch.ones(4, 3), "x": Shell()}, ckpts / "x-step10-gamma5.pt")
    run = phema("synthesize", "-g", 7, ckpts, "-q", cwd=tmp_path)
    assert run.code == 4
    assert "posix.system" in run.err
    assert run.err.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_inspect_lists_every_problem(ckpts):
    """Inspect shows all problems last, each with its remedy, how to go on, and exits with 3."""
    truncated(ckpts)
    save_file({"w": torch.ones(4, 3)}, ckpts / "weights-step30.safetensors")
    run = phema("inspect", ckpts)
    assert run.code == 3
    *_, first, second, way = run.out.splitlines()
    assert first.startswith("error: ")
    assert "cut short; copy it again, or leave it out with --exclude" in first
    assert second.startswith("error: weights-step30.safetensors: does not say")
    assert "; pass --raw" in second
    assert way.startswith("try: phema inspect ")
    assert run.out.count("error: ") == 2
    assert "7 snapshots" in run.out
    document = phema("inspect", ckpts, "--json").json
    assert [f["level"] for f in document["findings"]] == ["error", "error"]
    assert document["targets"] == []
    assert phema("inspect", ckpts, "--exclude", FIRST, "--exclude", "weights*").code == 0


def test_unwritable_directory_is_a_storage_error(ckpts, tmp_path):
    """Where the output can't be written the exit code is 5 and the path is named."""
    (tmp_path / "file").write_text("")
    run = phema(
        "synthesize", "-g", 7, ckpts, "-q", "-o", Path("file") / "o.safetensors", cwd=tmp_path
    )
    assert run.code == 5
    assert "file/o.safetensors: cannot write" in run.err


def test_a_name_that_no_file_system_takes(ckpts, tmp_path):
    """A name too long is a storage error for an output and no such file for an input."""
    long = "x" * 300
    run = phema("synthesize", "-g", 7, ckpts, "-q", "-o", long, cwd=tmp_path)
    assert (run.code, run.err.count("\n")) == (5, 1)
    assert phema("inspect", long).code == 3


@pytest.mark.parametrize(
    "command", [("inspect",), ("weights", "-g", "7"), ("synthesize", "-g", "7"), ("diff", ".")]
)
def test_a_path_that_does_not_exist(tmp_path, command):
    """Every command says so in one line and exits with 3."""
    run = phema(*command, "nowhere", cwd=tmp_path)
    assert run.code == 3
    assert run.err.count("\n") == 1
