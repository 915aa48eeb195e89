"""Snapshots: how files are found, tagged and compared, and what phema.toml says of them."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from phema_cli.errors import InputError, PhemaError, StorageError, UnsafePickleError, UsageError
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.snapshots import Config, Finding, Scan, Snapshot, Tag, scan
from phema_cli.snapshots.base import snapshot_name
from phema_cli.snapshots.consistency import check
from phema_cli.snapshots.reading import read_checkpoint
from phema_cli.snapshots.tensors import strip_prefixes
from tests.builders import read_index


def put(root, name, metadata=None, tensors=None):
    """Write a small checkpoint; metadata and tensors as given."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"w": torch.ones(2)} if tensors is None else tensors
    if name.endswith(".safetensors"):
        save_file(tensors, path, metadata)
    else:
        torch.save({**(metadata or {}), "state": tensors}, path)
    return path


def put_sharded(folder, base="model", metadata=None):
    """Write a checkpoint in two shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = {n: f"{base}-0000{i}-of-00002.safetensors" for i, n in enumerate(("v", "w"), 1)}
    for tensor, shard in shards.items():
        save_file({tensor: torch.ones(2)}, folder / shard, metadata)
    (folder / f"{base}.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def toml(root, *lines):
    """Write the directory's phema.toml."""
    (root / "phema.toml").write_text("\n".join(lines))


def tags(found):
    """Gamma and step by name."""
    return {s.name: (s.tag.gamma, s.tag.step) for s in found.snapshots}


def origins(found):
    """Where gamma and step of the only snapshot were read."""
    (snapshot,) = found.snapshots
    return snapshot.tag.profile_origin, snapshot.tag.step_origin


def said(found, level):
    """Texts of the findings of a level, each with its where."""
    return [str(f.error) for f in found.findings if f.level == level]


def errors(found):
    """The error findings."""
    return [f.error for f in found.findings if f.level == "error"]


# --- tags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("ema-step0000100-gamma5", (5, 100)),
        ("ema-step0000100-gamma6.94", (6.94, 100)),
        ("step0000100-gamma5", (5, 100)),
        ("run/ema-step0000100-gamma5", (5, 100)),
        ("my-own-ema-step0.5-gamma5", (5, 0.5)),
        ("ema-step100-gamma=-0.25", (-0.25, 100)),
        ("ema-step0000100-gamma5/model", (5, 100)),
        ("ema-step0000100-gamma5/diffusion_pytorch_model", (5, 100)),
        ("ema-step0000001-gamma0", (0, 1)),
    ],
)
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_tag_from_names(tmp_path, name, tag, ending):
    """Gamma and step are read from a snapshot's own name in the shape that phema writes."""
    put(tmp_path, name + ending)
    found = scan([tmp_path])
    assert list(tags(found).values()) == [tag]
    assert origins(found) == ("name", "name")


@pytest.mark.parametrize(
    "name",
    [
        *("gamma=5-step=100", "gamma_5_step_100", "Gamma5.Step100", "gamma5-step100"),
        *("ema-step100-gamma5-v2", "ema-step100-gamma5_final", "ema-step100-snr_gamma5"),
        *("ema-step100-sigma0.1", "ema-step100-sigma_rel0.1", "ema-step100-beta0.9"),
        *("gamma5/global_step100", "gamma5/checkpoint-100/model", "checkpoint-100/gamma5"),
        *("step100/gamma=5/diffusion_pytorch_model", "ema-step100-gamma5/step100"),
    ],
)
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_names_that_say_no_average(tmp_path, name, ending):
    """Words in other names, and in those of directories, may mean anything: no average is read."""
    put(tmp_path, name + ending)
    found = scan([tmp_path])
    (error,) = errors(found)
    assert error.what == "does not say whether it is an average or the raw weights"
    assert "--raw" in error.remedy
    assert "--average LAW" in error.remedy
    assert not found.snapshots


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("x_step_100", 100),
        ("x.Step=100", 100),
        ("global_step100", 100),
        ("x-iter100", 100),
        ("100_updates", 100),
        ("x-step1.5k", 1500),
        ("x_step-2M", 2e6),
        ("step-1B", 1e9),
        ("checkpoint-100", 100),
        ("epoch3-step100", 100),
        ("checkpoint-3-step100", 100),
        ("step-1000/x", 1000),
        ("checkpoint-1000/a/x", 1000),
        ("iter_0001000/x", 1000),
        ("step-1000/x-step7", 7),
        ("step-1000/a-step7/model", 7),
        ("step-1000/checkpoint-7/x", 7),
    ],
)
def test_time_from_names(tmp_path, name, step):
    """A time is a word and a number in the snapshot's own name, or all of a directory's above."""
    put(tmp_path, name + ".safetensors", {"gamma": "5"})
    found = scan([tmp_path])
    assert list(tags(found).values()) == [(5, step)]
    assert origins(found) == ("content", "name")


def test_two_times_in_a_name(tmp_path):
    """A name with two numbers of steps is an error that names both and the remedy."""
    put(tmp_path, "x-step5-iter6.safetensors", {"gamma": "5"})
    (error,) = errors(scan([tmp_path]))
    assert "gives two times, 5 and 6 steps" in error.what
    assert error.where == "x-step5-iter6.safetensors"
    assert "--pattern" in error.remedy


@pytest.mark.parametrize(
    "name",
    [
        *("timestep100-gamma5", "gamma5", "gamma5-steps1x", "gamma5-step1.5.3", "mycheckpoint-1x"),
        *("my-step-1000/x1", "step-1000-lr0.1/x1", "gamma5/x1"),
    ],
)
def test_names_without_a_step(tmp_path, name):
    """What only looks like a step is not read as one."""
    put(tmp_path, name + ".safetensors", {"gamma": "5"})
    (error,) = errors(scan([tmp_path]))
    assert error.what == "does not say at which step it was stored"
    assert error.where == name + ".safetensors"
    assert "phema.toml" in error.remedy
    assert "--pattern" in error.remedy


@pytest.mark.parametrize(
    ("metadata", "gamma"),
    [({"gamma": "7.25"}, 7.25), ({"sigma_rel": "0.1"}, gamma_from_sigma_rel(0.1))],
)
def test_tag_from_metadata(tmp_path, metadata, gamma):
    """Gamma, or sigma_rel, and step are read from the metadata."""
    put(tmp_path, "a.safetensors", metadata | {"step": "1200", "note": "x"})
    found = scan([tmp_path])
    assert tags(found) == {"a.safetensors": (gamma, 1200)}
    assert origins(found) == ("content", "content")
    assert found.snapshots[0].tag.profile.end == 1200


def test_numbers_in_pickles(tmp_path):
    """Of numbers beside the weights of a .pt file a step is one; a gamma may be anything."""
    put(tmp_path, "a.pt", {"gamma": 0.99, "step": 1200})
    (error,) = errors(scan([tmp_path]))
    assert error.what == "does not say whether it is an average or the raw weights"
    found = scan([tmp_path], Config(gammas=(5.0,)))
    assert tags(found) == {"a.pt": (5, 1200)}
    assert origins(found) == ("command line", "content")


def test_fields_may_come_from_different_places(tmp_path):
    """Gamma of the metadata and step of the name make one tag, each with its origin."""
    put(tmp_path, "step5.safetensors", {"gamma": "7"})
    assert origins(scan([tmp_path])) == ("content", "name")


def test_root_name_fills_in(tmp_path):
    """The scanned directory's own name gives the time where nothing below it does."""
    put(tmp_path / "step-9", "a.safetensors", {"gamma": "5"})
    put(tmp_path / "step-9", "b-step7.safetensors", {"gamma": "5"})
    found = scan([tmp_path / "step-9"])
    assert tags(found) == {"b-step7.safetensors": (5, 7), "a.safetensors": (5, 9)}
    put(tmp_path / "gamma5-step9", "x1.safetensors", {"gamma": "5"})
    (error,) = errors(scan([tmp_path / "gamma5-step9"]))
    assert error.what == "does not say at which step it was stored"


def test_file_given_directly(tmp_path):
    """A file is scanned as a directory's content is, its directory's name giving the time."""
    path = put(tmp_path / "step-7", "a.safetensors", {"gamma": "5"})
    assert tags(scan([path])) == {"a.safetensors": (5, 7)}


@pytest.mark.parametrize(
    ("name", "metadata", "gamma"),
    [
        ("x-step5-gamma6.94", {"gamma": "6.937379"}, 6.937379),
        ("x-step5-gamma6.9372", {"sigma_rel": "0.1"}, gamma_from_sigma_rel(0.1)),
        ("x-step5-gamma1e-05", {"gamma": "1.0000004e-05"}, 1.0000004e-05),
        ("x-step5-gamma7", {"gamma": "7.00001"}, 7.00001),
        ("gamma6.9/x-step5-gamma6.94", None, 6.94),
        ("gamma6.9/x-step5-gamma7", {"gamma": "7"}, 7),
        ("x-gamma6-step5", {"gamma": "7"}, 7),
    ],
)
def test_roundings_agree(tmp_path, name, metadata, gamma):
    """A rounded value in the own name agrees with the exact one, which counts."""
    put(tmp_path, name + ".safetensors", metadata)
    assert list(tags(scan([tmp_path])).values()) == [(gamma, 5)]


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("x-step5-gamma5", {"gamma": "6"}, "its gamma is 6 by its entry gamma and 5 by its name"),
        (
            "x-step5-gamma5",
            {"gamma": "5", "step": "7"},
            "its step is 7 by its step and 5 by its name",
        ),
        ("x-step5", {"gamma": "5", "step": "7"}, "its step is 7 by its step and 5 by its name"),
        ("x-step5-gamma7", {"gamma": "6.937"}, "6.937 by its entry gamma and 7 by its name"),
        ("x-step5-gamma6.94", {"gamma": "6.946"}, "6.946 by its entry gamma and 6.94 by its name"),
        ("x-step5-gamma6.7", {"sigma_rel": "0.1"}, "6.937203938 by its entry sigma_rel and 6.7"),
        (
            "x-step5-gamma5",
            {"gamma": "5", "sigma_rel": "0.1"},
            "5 by its entry gamma and 6.937203938 by its entry sigma_rel",
        ),
    ],
)
def test_contradiction(tmp_path, name, metadata, message):
    """Two places that disagree are an error that names the file, both values and the remedy."""
    put(tmp_path, name + ".safetensors", metadata)
    (error,) = errors(scan([tmp_path]))
    assert message in error.what
    assert error.where == name + ".safetensors"
    assert "phema.toml" in error.remedy


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"gamma": "five"}, "gamma is 'five', not a number"),
        ({"gamma": "5,every=10"}, "gamma is '5,every=10', not a number"),
        ({"sigma_rel": "nan"}, "sigma_rel is 'nan', not a number"),
        ({"step": "nan"}, "its step is not a number"),
        ({"step": "inf"}, "its step is not a number"),
        ({"step": "five"}, "its step is not a number"),
        ({"step": "1e17"}, "its step is 1e+17, above the limit of"),
        ({"gamma": "-0.5"}, "gamma must be above -0.5 and at most 10000, not -0.5"),
        ({"gamma": "1e5"}, "gamma must be above -0.5 and at most 10000, not 100000"),
        ({"sigma_rel": "0.29"}, "sigma_rel must be between 0.0001 and 12^-1/2 = 0.2887, not 0.29"),
        ({"sigma_rel": "0"}, "sigma_rel must be between 0.0001 and 12^-1/2 = 0.2887, not 0"),
    ],
)
def test_impossible_values(tmp_path, metadata, message):
    """A value that is no number, or out of range, is an error that names the file."""
    put(tmp_path, "a.safetensors", {"gamma": "5", "step": "5"} | metadata)
    (error,) = errors(scan([tmp_path]))
    assert message in error.what
    assert error.where == "a.safetensors"
    assert error.exit_code == 3


def test_the_step_after(tmp_path):
    """Content that counts one update more or less than the name is a habit of trainers."""
    put(tmp_path, "x-step5.safetensors", {"gamma": "5", "step": "6"})
    assert tags(scan([tmp_path])) == {"x-step5.safetensors": (5, 6)}


@pytest.mark.parametrize(
    "metadata",
    [{"step": "final"}, {"gamma": "2,2"}, {"gamma": "-3"}, {"sigma_rel": "2"}, {"gamma": "9"}],
)
def test_phema_toml_overrules_any_metadata(tmp_path, metadata):
    """A row in phema.toml counts also where the metadata are no numbers at all."""
    put(tmp_path, "a.safetensors", metadata)
    toml(tmp_path, '[snapshots."a.safetensors"]', "gamma = 5", "step = 7")
    assert tags(scan([tmp_path])) == {"a.safetensors": (5, 7)}


def test_other_metadata_are_not_tags(tmp_path):
    """Of the metadata gamma, sigma_rel and step are read, and none that a --pattern may name."""
    metadata = {"gamma": "5", "step": "100", "kimg": "8388", "index": "1", "beta": "0.9"}
    put(tmp_path, "a.safetensors", metadata)
    assert tags(scan([tmp_path])) == {"a.safetensors": (5, 100)}
    with pytest.raises(UsageError, match="the names have no index to assign them by"):
        scan([tmp_path], Config(gammas=(6.0, 7.0)))


@example(gamma=5.0000001, step=5)
@given(
    gamma=st.floats(1e-3, 1e3) | st.integers(0, 1000).map(float),
    step=st.integers(1, 10**9) | st.floats(0.5, 1e6),
)
def test_names_that_phema_writes(tmp_path_factory, gamma, step):
    """The name that phema gives a snapshot never contradicts its exact metadata."""
    root = tmp_path_factory.mktemp("names")
    put(
        root,
        snapshot_name("ema", step, gamma) + ".safetensors",
        {"gamma": repr(gamma), "step": repr(step)},
    )
    found = scan([root])
    shutil.rmtree(root)
    assert [(s.tag.gamma, s.tag.step) for s in found.snapshots] == [(gamma, step)]


@pytest.mark.parametrize("gamma", [-0.25, 1e-5, 9876.543])
def test_names_that_phema_writes_for_odd_gammas(tmp_path, gamma):
    """Also a negative, tiny or huge gamma that phema wrote is read back."""
    name = snapshot_name("ema", 5, gamma) + ".safetensors"
    put(tmp_path, name, {"gamma": repr(gamma), "step": "5"})
    assert tags(scan([tmp_path])) == {name: (gamma, 5)}


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pattern", "gammas", "tag"),
    [
        ("0.200.pt", r"^(?P<index>\d+)\.(?P<step>\d+)\.pt$", (5,), (5, 200)),
        ("ema_1_300.pth", r"ema_(?P<index>\d)_(?P<step>\d+)", (5,), (5, 300)),
        ("g6.9/t40.pt", r"g(?P<gamma>[\d.]+)/t(?P<step>\d+)", (), (6.9, 40)),
        ("s0.10@40.pt", r"s(?P<sigma_rel>[\d.]+)@(?P<step>\d+)", (), (6.9372, 40)),
        ("a-0008388-0.100.pt", r"-(?P<kimg>\d+)-(?P<sigma_rel>0\.\d+)", (), (6.9372, 8388608)),
        ("t40.pt", r"t(?P<step>\d+)|i(?P<index>\d)", (5,), (5, 40)),
        ("t40-step7-gamma6.pt", r"t(?P<step>\d+)", (), (6, 40)),
        ("a7-step40.pt", r"a(?P<gamma>\d)", (), (7, 40)),
        ("a7-step40-gamma6.pt", r"a(?P<gamma>\d)", (), (7, 40)),
        ("x7.pt", r"(?P<what>x)(?P<step>\d)", (5,), (5, 7)),
    ],
)
def test_pattern(tmp_path, name, pattern, gammas, tag):
    """Each named group of --pattern is read as what it says."""
    put(tmp_path, name)
    found = scan([tmp_path], Config(pattern=pattern, gammas=gammas))
    assert list(tags(found).values()) == [pytest.approx(tag, rel=1e-5)]


@pytest.mark.parametrize(
    ("indices", "gammas"),
    [
        ("01", (5.0, 10.0)),
        ("12", (5.0, 10.0)),
        ("012", (5.0, 10.0, 20.0)),
        ("123", (5.0, 10.0, 20.0)),
    ],
)
def test_indices_count_gammas(tmp_path, indices, gammas):
    """Indices count --gammas from 0, or from 1 where they are exactly 1 to their number."""
    for index in indices:
        put(tmp_path, f"a{index}-step40.pt")
    found = scan([tmp_path], Config(pattern=r"a(?P<index>\d)", gammas=gammas))
    assert not found.findings
    assert [s.tag.gamma for s in sorted(found.snapshots, key=lambda s: s.name)] == [*gammas]


@pytest.mark.parametrize(("indices", "lost"), [("0", "10"), ("1", "5"), ("02", "10")])
def test_gammas_that_no_index_counts(tmp_path, indices, lost):
    """A value of --gammas that no name counts is an error of usage that names it."""
    for index in indices:
        put(tmp_path, f"a{index}-step40.pt")
    gammas = (5.0, 10.0, 20.0)[: max(2, int(indices[-1]) + 1)]
    with pytest.raises(UsageError, match=f"gamma {lost} is not used") as caught:
        scan([tmp_path], Config(pattern=r"a(?P<index>\d)", gammas=gammas))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("index", ["x", "1234567890"])
def test_index_that_is_no_number(tmp_path, index):
    """An index that counts nothing is an error that quotes it, whatever --gammas says."""
    put(tmp_path, f"a{index}-step40.pt")
    found = scan([tmp_path], Config(pattern=r"a(?P<index>\w+)-", gammas=(5.0,)))
    (error,) = errors(found)
    assert error.what == f"its index is {index!r}, not a number"


@pytest.mark.parametrize("kimg", [1, 999, 1000, 8388, 131072, 2147483])
def test_kimg_is_whole_batches_of_images(tmp_path, kimg):
    """EDM2's kimg becomes the number of images, a multiple of 1024 whose thousands it is."""
    put(tmp_path, f"a-{kimg:07d}-0.100.pt")
    pattern = r"-(?P<kimg>\d+)-(?P<sigma_rel>0\.\d+)"
    ((_, step),) = tags(scan([tmp_path], Config(pattern=pattern))).values()
    assert step % 1024 == 0
    assert kimg * 1000 - 1024 < step < (kimg + 2) * 1000
    assert kimg < 1024 or step // 1000 == kimg


def test_trainers_own_state_is_left_out(tmp_path):
    """Optimizer, scheduler and random state beside the weights are left out with a notice."""
    put(tmp_path, "checkpoint-100/a-step100-gamma5.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
        (tmp_path / "checkpoint-100" / name).write_bytes(b"not read")
    found = scan([tmp_path])
    assert tags(found) == {"checkpoint-100/a-step100-gamma5.safetensors": (5, 100)}
    assert len([t for t in said(found, "notice") if "a trainer's own state" in t]) == 4
    assert not errors(found)


def test_linked_directories_are_named(tmp_path):
    """A link to a directory is left out with a notice; a circle of links is an error."""
    put(tmp_path, "in/a-step5-gamma5.safetensors")
    put(tmp_path, "out/a-step6-gamma5.safetensors")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "out")
    found = scan([tmp_path / "in"])
    assert said(found, "notice") == ["linked: left out: links to directories are not followed"]
    assert len(found.snapshots) == 1
    circle = tmp_path / "in" / "b-step7-gamma5.safetensors"
    circle.symlink_to(circle)
    (error,) = errors(scan([tmp_path / "in"]))
    assert "b-step7-gamma5.safetensors" in str(error)


@pytest.mark.linux("named pipes")
def test_named_pipes_are_passed_over(tmp_path):
    """A named pipe in the directory is not opened: nothing would ever come out of it."""
    put(tmp_path, "a-step5-gamma5.safetensors")
    os.mkfifo(tmp_path / "b-step6-gamma5.safetensors")
    assert len(scan([tmp_path]).snapshots) == 1


def test_gammas_in_two_ways(tmp_path):
    """Gammas and sigma_rels in one phema.toml are an error that names it."""
    put(tmp_path, "a-step5-gamma5.safetensors")
    toml(tmp_path, "gammas = [5]", "sigma_rels = [0.1]")
    with pytest.raises(InputError, match="say the same thing") as caught:
        scan([tmp_path])
    assert caught.value.where == str(tmp_path / "phema.toml")


def test_a_given_gamma_counts_before_the_outer_directory(tmp_path):
    """One --gammas value goes before a gamma in the name of the scanned directory."""
    put(tmp_path, "gamma3/step5.safetensors")
    found = scan([tmp_path / "gamma3"], Config(gammas=(6.0,)))
    assert [s.tag.gamma for s in found.snapshots] == [6]


def test_names_of_any_bytes(tmp_path):
    """A file whose name is no UTF-8 is known by an escaped name."""
    put(tmp_path, "a-step5-gamma5.safetensors")
    (tmp_path / "a-step5-gamma5.safetensors").rename(tmp_path / "x\udcff-step5-gamma5.safetensors")
    (snapshot,) = scan([tmp_path]).snapshots
    assert snapshot.name == "x\\udcff-step5-gamma5.safetensors"


def test_hardly_different_gammas_warn(tmp_path):
    """Two gammas a rounding apart are most likely one, and make the weights large."""
    put(tmp_path, "a-step5-gamma16.9722.safetensors")
    put(tmp_path, "b-step5-gamma16.9706.safetensors")
    assert any("hardly differ" in text for text in said(scan([tmp_path]), "warning"))


def test_a_pattern_finds_one_law(tmp_path):
    """A name with two of them is an error, whichever of the groups is the last."""
    put(tmp_path, "g5-s0.2-t40.pt")
    pattern = r"g(?P<gamma>\d)-s(?P<sigma_rel>[\d.]+)-t(?P<step>\d+)"
    (error,) = errors(scan([tmp_path], Config(pattern=pattern)))
    assert error.what == "the pattern finds gamma and sigma_rel, which say the same thing"


def test_pattern_leaves_out_what_does_not_match(tmp_path):
    """A file that --pattern does not match is left out, with a notice that names it."""
    put(tmp_path, "t40.pt")
    put(tmp_path, "other.pt")
    found = scan([tmp_path], Config(pattern=r"t(?P<step>\d+)", raw=True))
    assert list(tags(found)) == ["t40.pt"]
    assert said(found, "notice") == ["other.pt: left out: it does not match --pattern"]


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "not a regular expression"), ("step(\\d+)", "no named group")]
)
def test_bad_pattern(tmp_path, pattern, message):
    """A --pattern that can't work is an error of usage."""
    put(tmp_path, "step5-gamma5.safetensors")
    with pytest.raises(UsageError, match=message) as caught:
        scan([tmp_path], Config(pattern=pattern))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("gammas", "message"),
    [
        ((), "its name has an index and no gamma"),
        ((5.0, 6.0), "its index is 2, but 2 averages are given"),
    ],
)
def test_index_without_its_gamma(tmp_path, gammas, message):
    """An index that --gammas does not cover is an error that names the file."""
    put(tmp_path, "2.200.pt")
    pattern = r"^(?P<index>\d+)\.(?P<step>\d+)"
    (error,) = errors(scan([tmp_path], Config(pattern=pattern, gammas=gammas)))
    assert message in str(error)
    assert "2.200.pt" in error.where


def test_one_of_gammas_for_all(tmp_path):
    """A single --gammas value holds for snapshots that say none, and for them only."""
    put(tmp_path, "step5.safetensors")
    put(tmp_path, "step5-gamma7.safetensors")
    found = scan([tmp_path], Config(gammas=(6.0,)))
    assert tags(found) == {"step5.safetensors": (6, 5), "step5-gamma7.safetensors": (7, 5)}
    assert [s.tag.profile_origin for s in found.snapshots] == ["command line", "name"]


def test_several_gammas_without_index(tmp_path):
    """Of several --gammas none is guessed: an error of usage says how they are told apart."""
    put(tmp_path, "step5.safetensors")
    with pytest.raises(
        UsageError, match="2 averages are given, and the names have no index"
    ) as caught:
        scan([tmp_path], Config(gammas=(6.0, 7.0)))
    assert "--pattern with a group index" in caught.value.remedy
    assert "--key" in caught.value.remedy


def test_several_gammas_of_phema_toml(tmp_path):
    """A phema.toml may speak of other files: gammas that nothing counts are none of these."""
    put(tmp_path, "step5.safetensors")
    put(tmp_path, "a-step5-gamma5.safetensors")
    toml(tmp_path, "gammas = [6, 7]")
    found = scan([tmp_path])
    assert tags(found) == {"a-step5-gamma5.safetensors": (5, 5)}
    (error,) = errors(found)
    assert error.what == "does not say whether it is an average or the raw weights"


@pytest.mark.parametrize("option", [{"gammas": (6.0,)}, {"average": "exponential:beta=0.9"}])
def test_one_average_for_several_series(tmp_path, option):
    """One value for several averages that may be meant is an error of usage that names them."""
    torch.save({"ema1": {"w": torch.ones(2)}, "ema2": {"w": torch.ones(2)}}, tmp_path / "step5.pt")
    with pytest.raises(UsageError, match=r"there are several: ema1, ema2") as caught:
        scan([tmp_path], Config(**option))
    assert "--key" in caught.value.remedy


@pytest.mark.parametrize(
    ("pattern", "lines", "gamma", "origin"),
    [
        (
            r"a(?P<gamma>\d)",
            ['pattern = "b(?P<gamma>.)"', '[snapshots."a7-b8-step5.safetensors"]', "gamma = 4"],
            7,
            "command line",
        ),
        (
            None,
            ['pattern = "b(?P<gamma>.)"', '[snapshots."a7-b8-step5.safetensors"]', "gamma = 4"],
            4,
            "phema.toml",
        ),
        (None, ['pattern = "b(?P<gamma>.)"', "gammas = [3]"], 8, "phema.toml"),
        (None, ["gammas = [3]"], 6, "content"),
    ],
)
def test_precedence(tmp_path, pattern, lines, gamma, origin):
    """The command line overrules phema.toml, a row there its pattern, and both the content."""
    put(tmp_path, "a7-b8-step5.safetensors", {"gamma": "6"})
    toml(tmp_path, *lines)
    found = scan([tmp_path], Config(pattern=pattern))
    assert tags(found) == {"a7-b8-step5.safetensors": (gamma, 5)}
    assert origins(found)[0] == origin


def test_a_row_and_a_pattern_complete_each_other(tmp_path):
    """Of what a row and a pattern say of a file the average and the time may come from either."""
    put(tmp_path, "a7-t5.safetensors")
    toml(tmp_path, '[snapshots."a7-t5.safetensors"]', "gamma = 4", "step = 9")
    both = r"a(?P<gamma>\d)-t(?P<step>\d)"
    for pattern, tag, where in [
        (r"a(?P<gamma>\d)", (7, 9), ("command line", "phema.toml")),
        (r"t(?P<step>\d)", (4, 5), ("phema.toml", "command line")),
        (both, (7, 5), ("command line", "command line")),
    ]:
        found = scan([tmp_path], Config(pattern=pattern))
        assert list(tags(found).values()) == [tag]
        assert origins(found) == where
    toml(tmp_path, f"pattern = '{both}'", '[snapshots."a7-t5.safetensors"]', "step = 9")
    assert list(tags(scan([tmp_path])).values()) == [(7, 9)]


def test_gammas_of_the_command_line_go_before_those_of_phema_toml(tmp_path):
    """An index of phema.toml's pattern counts the --gammas given, all of which must be used."""
    put(tmp_path, "1.200.pt")
    toml(tmp_path, r"pattern = '^(?P<index>\d+)\.(?P<step>\d+)'", "gammas = [5, 6]")
    assert tags(scan([tmp_path])) == {"1.200.pt": (6, 200)}
    put(tmp_path, "0.200.pt")
    found = scan([tmp_path], Config(gammas=(7.0, 8.0)))
    assert tags(found) == {"0.200.pt": (7, 200), "1.200.pt": (8, 200)}


def test_row_keeps_a_file_that_the_pattern_leaves_out(tmp_path):
    """A file with a row in phema.toml is taken though the pattern does not match it."""
    put(tmp_path, "t4.pt")
    put(tmp_path, "last.pt")
    toml(
        tmp_path,
        r"pattern = 't(?P<step>\d+)\.pt'",
        "gammas = [5]",
        '[snapshots."last.pt"]',
        "step = 9",
    )
    assert tags(scan([tmp_path])) == {"t4.pt": (5, 4), "last.pt": (5, 9)}


# --- phema.toml ---------------------------------------------------------------------------------


def test_config_says_pattern_and_sigma_rels(tmp_path):
    """sigma_rels in phema.toml are what an index counts."""
    put(tmp_path, "1.200.pt")
    toml(tmp_path, r"pattern = '^(?P<index>\d+)\.(?P<step>\d+)'", "sigma_rels = [0.2, 0.1]")
    found = scan([tmp_path])
    assert tags(found) == {"1.200.pt": (gamma_from_sigma_rel(0.1), 200)}
    assert origins(found) == ("phema.toml", "phema.toml")


def test_config_says_gammas(tmp_path):
    """A single gamma in phema.toml holds for snapshots that say none."""
    put(tmp_path, "step5.pt")
    toml(tmp_path, "gammas = [6.5]")
    found = scan([tmp_path])
    assert tags(found) == {"step5.pt": (6.5, 5)}
    assert origins(found) == ("phema.toml", "name")


def test_config_says_key(tmp_path):
    """The key in phema.toml picks the dict of weights, one on the command line goes before."""
    content = {"first": {"w": torch.ones(2)}, "model": {"v": torch.ones(2)}}
    torch.save(content, tmp_path / "step5.pt")
    assert "pass --key" in errors(scan([tmp_path]))[0].remedy
    toml(tmp_path, 'key = "first"', "gammas = [5]")
    assert list(scan([tmp_path]).snapshots[0].checkpoint.tensors) == ["w"]
    found = scan([tmp_path], Config(key="model"))
    assert list(found.snapshots[0].checkpoint.tensors) == ["v"]
    with pytest.raises(UsageError, match="no prefix of their names, is 'other'") as caught:
        scan([tmp_path], Config(key="other"))
    assert caught.value.remedy == "there are first, model"
    toml(tmp_path, 'key = "other"', "gammas = [5]")
    with pytest.raises(InputError, match=r"1 file was left out: .*it holds no other"):
        scan([tmp_path])


def test_key_is_a_prefix(tmp_path):
    """A key may be a prefix of names; a part of an average is the same average."""
    tensors = {"unet.w": torch.ones(2), "text.w": torch.ones(3)}
    put(tmp_path, "a.safetensors", {"gamma": "5", "step": "7"}, tensors)
    put(tmp_path, "b-step8-gamma5.safetensors", tensors=tensors)
    found = scan([tmp_path], Config(key="unet"))
    assert not errors(found)
    assert tags(found) == {"a.safetensors": (5, 7), "b-step8-gamma5.safetensors": (5, 8)}
    assert [s.checkpoint.tensors["w"].shape for s in found.snapshots] == [(2,), (2,)]


@pytest.fixture
def several(tmp_path):
    """Three snapshots, one of them in a subdirectory."""
    put(tmp_path, "a-step1-gamma5.safetensors")
    put(tmp_path, "b-step2-gamma5.safetensors")
    put(tmp_path, "sub/c-step3-gamma5.safetensors")
    return tmp_path


GLOBS = [
    ({"select": ("a-*", "sub/*")}, "ac"),
    ({"select": ("*-step2-*",)}, "b"),
    ({"select": ("c-*",)}, "c"),
    ({"exclude": ("sub/*",)}, "ab"),
    ({"exclude": ("c-*", "[ab]-step2*")}, "a"),
    ({"select": ("*",), "exclude": ("a-*",)}, "bc"),
    ({"exclude": ("A-*",)}, "abc"),
]


@pytest.mark.parametrize(("config", "left"), GLOBS)
@pytest.mark.parametrize("by", ["command line", "phema.toml"])
def test_select_and_exclude(several, config, left, by):
    """Globs of relative paths or names say which files count, whoever gives them."""
    if by == "phema.toml":
        toml(several, *(f"{name} = {list(globs)}" for name, globs in config.items()))
    found = scan([several], Config(**config) if by == "command line" else None)
    assert "".join(n.removeprefix("sub/")[0] for n in tags(found)) == left
    assert said(found, "notice") == []


def test_globs_of_the_command_line_go_before(several):
    """A --select takes the place of phema.toml's select, which may be a single text."""
    toml(several, 'select = "a-*"')
    assert list(tags(scan([several]))) == ["a-step1-gamma5.safetensors"]
    found = scan([several], Config(select=("b-*",)))
    assert list(tags(found)) == ["b-step2-gamma5.safetensors"]


def test_copy(several):
    """Globs of tensors to copy are handed on, those of the command line before phema.toml's."""
    assert scan([several]).copy == ()
    toml(several, 'copy = ["*.ids", "x"]')
    assert scan([several]).copy == ("*.ids", "x")
    assert scan([several], Config(copy=("y",))).copy == ("y",)


@pytest.mark.parametrize("name", ["last.safetensors", "run/model.safetensors", "shards"])
@pytest.mark.parametrize("field", ["gamma = 7", "sigma_rel = 0.1"])
def test_rows(tmp_path, name, field):
    """A row of phema.toml tags the file or directory of that name."""
    if name == "shards":
        put_sharded(tmp_path / name)
    else:
        put(tmp_path, name)
    toml(tmp_path, f'[snapshots."{name}"]', field, "step = 2000.5")
    found = scan([tmp_path])
    ((gamma, step),) = tags(found).values()
    assert (round(gamma, 2), step) == (7 if "gamma" in field else 6.94, 2000.5)
    assert origins(found) == ("phema.toml", "phema.toml")


def test_rows_that_name_no_file_are_told(tmp_path):
    """In one notice; rows of files that are there and not used are no mistake."""
    for name in ("a-step1-gamma5.pt", "b-step2-gamma5.pt"):
        put(tmp_path, name)
    toml(tmp_path, '[snapshots."b-step2-gamma5.pt"]', "gamma = 6")
    assert not [f for f in scan([tmp_path], Config(exclude=("b*",))).findings if "row" in str(f)]
    toml(tmp_path, '[snapshots."b-step2-gamma5"]', "gamma = 6")
    found = scan([tmp_path])
    told = "phema.toml: a row names no file that may be a snapshot: 'b-step2-gamma5'"
    assert [str(f.error) for f in found.findings if f.level == "notice"] == [told]
    toml(tmp_path, '[snapshots."c.pt"]', "gamma = 6", '[snapshots."d.pt"]', "gamma = 6")
    found = scan([tmp_path])
    assert "2 rows name no file that may be a snapshot: first 'c.pt'" in str(found.findings)


def test_row_settles_a_contradiction(tmp_path):
    """Metadata and name that disagree no longer matter where phema.toml says which."""
    put(tmp_path, "step5-gamma5.safetensors", {"gamma": "6"})
    toml(tmp_path, '[snapshots."step5-gamma5.safetensors"]', "gamma = 6")
    assert tags(scan([tmp_path])) == {"step5-gamma5.safetensors": (6, 5)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pattern = ", "not TOML"),
        (b"\xff", "not TOML"),
        ("paterns = 'x'", "unknown entry 'paterns'"),
        ("pattern = 5", "pattern must be a text"),
        ("key = [5]", "key must be a list of texts"),
        ("key = 5", "key must be a list of texts"),
        ("pattern = '('", "not a regular expression"),
        ("pattern = 'step'", "no named group"),
        ("gammas = 5", "gammas must be a list of numbers"),
        ("gammas = ['5']", "gammas must be a list of numbers"),
        ("gammas = [true]", "gammas must be a list of numbers"),
        ("gammas = [-3]", "gamma"),
        ("gammas = [nan]", "gamma"),
        ("sigma_rels = [0.1, 0.3]", "12^-1/2 = 0.2887, not 0.3"),
        ("sigma_rels = [nan]", "sigma_rel"),
        ("select = 5", "select must be a list of texts"),
        ("exclude = [5]", "exclude must be a list of texts"),
        ("copy = {}", "copy must be a list of texts"),
        ("snapshots = 5", "snapshots must be a table of tables"),
        ("[snapshots]\na = 5", "snapshots.a must be a table"),
        ("[snapshots.a]\nkimg = 5", "snapshots.a must be a table"),
        ("[snapshots.a]\nstep = -5\ngamma = -3", "gamma"),
        ("[snapshots.a]\nsigma_rel = 0.3", "12^-1/2 = 0.2887, not 0.3"),
        ("[snapshots.a]\ngamma = 5\nsigma_rel = 0.2", "a gives gamma and sigma_rel, which say the"),
        ("[snapshots.a]\naverage = 'raw'\ngamma = 5", "a gives gamma and average, which say the"),
        ("[snapshots.a]\nstep = '5'", "snapshots.a must be a table"),
        ("[snapshots.a]\nstep = true", "snapshots.a must be a table"),
    ],
)
def test_bad_phema_toml(tmp_path, text, message):
    """A phema.toml that says nonsense is an error that names it and what is wrong in it."""
    put(tmp_path, "step5-gamma5.safetensors")
    path = tmp_path / "phema.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        scan([tmp_path]).require()
    assert caught.value.where == str(path)


def test_phema_toml_that_cannot_be_read(tmp_path):
    """A phema.toml that is no file is the operating system's failure, and is named."""
    put(tmp_path, "step5-gamma5.safetensors")
    (tmp_path / "phema.toml").mkdir()
    with pytest.raises(StorageError, match="cannot read") as caught:
        scan([tmp_path])
    assert caught.value.where == str(tmp_path / "phema.toml")


# --- what is left out ---------------------------------------------------------------------------


def test_step_zero(several):
    """A snapshot of step 0 is left out with a notice."""
    put(several, "a-step0-gamma5.safetensors")
    found = scan([several])
    assert "a-step0-gamma5.safetensors" not in tags(found)
    assert said(found, "notice") == [
        "a-step0-gamma5.safetensors: left out: at step 0 there is no average yet"
    ]


def test_files_named_after_an_average_beside_others(tmp_path):
    """With one of each time they are the average of the others, which no option need say."""
    for step in (1, 2):
        put(tmp_path, f"step{step}/ema.safetensors")
        put(tmp_path, f"step{step}/net.safetensors")
    raw = scan([tmp_path], Config(raw=True))
    assert {s.name for s in raw.require()} == {f"step{n}/net.safetensors" for n in (1, 2)}
    both = scan([tmp_path], Config(average="exponential:beta=0.9"))
    assert {(s.name, s.tag.law) for s in both.require()} == {
        (f"step{n}/{name}.safetensors", law)
        for n in (1, 2)
        for name, law in (("net", "raw"), ("ema", "exponential:beta=0.9"))
    }


def test_the_best_ema_among_raw_weights_is_left_out(tmp_path):
    """Its dict is called like theirs, and only its name tells."""
    for step in (1, 3):
        torch.save({"model": {"w": torch.ones(2)}, "step": step}, tmp_path / f"net{step}.pt")
    torch.save({"model": {"w": torch.ones(2)}, "step": 2}, tmp_path / "best_ema.pt")
    found = scan([tmp_path], Config(raw=True))
    assert {s.name for s in found.snapshots} == {"net1.pt", "net3.pt"}
    assert "it is an average" in " ".join(str(f.error) for f in found.findings)
    alone = scan([tmp_path], Config(raw=True, select=("best*",)))
    assert {s.name for s in alone.snapshots} == {"best_ema.pt"}


def test_names_of_directories_say_nothing_of_averages(tmp_path):
    """Two runs stay two runs, whatever the words in the names of their directories."""
    for folder in ("no-ema", "lr3"):
        (tmp_path / folder).mkdir()
        for step in (50, 100):
            save_file({"w": torch.ones(2)}, tmp_path / f"{folder}/model-step{step}.safetensors")
    found = scan([tmp_path], Config(raw=True))
    assert any(f.level == "error" for f in found.findings)
    assert {s.name.split("/")[0] for s in found.snapshots} == {"no-ema", "lr3"}


def test_a_word_that_most_files_have_leaves_none_out(tmp_path):
    """With --raw all are raw weights, though one file's name lacks the word."""
    for step in range(50, 450, 50):
        save_file({"w": torch.ones(2)}, tmp_path / f"swa-unet-step{step}.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "final-step410.safetensors")
    assert len(scan([tmp_path], Config(raw=True)).require()) == 9


@pytest.mark.parametrize(
    "names",
    [
        ["a.w", "b.w", "c.w", "avg.0"],
        ["ema_net.w", "ema_net.b", "ema_head.v"],
        ["encoder.w", *(f"fc_{part}.{i}" for part in ("mean", "logvar") for i in "01234")],
    ],
)
def test_parts_with_an_averages_name_stay_in_the_network(tmp_path, names):
    """Nothing is lost of it, and nothing is advised that would."""
    for step in (1, 2):
        tensors = {name: torch.ones(3, 2) for name in names}
        torch.save({"state_dict": tensors, "step": step}, tmp_path / f"{step}.pt")
    found = scan([tmp_path], Config(raw=True))
    (left,) = {tuple(s.checkpoint.tensors) for s in found.require()}
    assert len(left) == len(names)
    assert not [f for f in found.findings if "--drop" in str(f.error)]


@pytest.mark.parametrize(
    ("own", "other", "told"),
    [
        ("online_encoder.", "target_encoder.", "target_encoder"),
        ("backbone.", "momentum_backbone.", "momentum_backbone"),
        ("module.encoder_q.", "module.encoder_k.", "encoder_k"),
        ("net.", "net_momentum.", "net_momentum"),
        ("encoder.", "decoder.", None),
    ],
)
def test_networks_that_follow_others_are_told(tmp_path, own, other, told):
    """Self-supervised learning stores the average of a network among its raw weights."""
    parts = {f"{p}{i}.weight": torch.ones(2, 2) for p in (own, other) for i in range(4)}
    for step in (5, 10):
        content = {"state_dict": parts, "global_step": step, "pytorch-lightning_version": "2.5"}
        torch.save(content, tmp_path / f"epoch=0-step={step}.ckpt")
    found = scan([tmp_path], Config(raw=True))
    notices = " ".join(str(f.error) for f in found.findings)
    assert found.require()
    # Once, however many files have them, and not where they are left out.
    assert notices.count("have the names of others") == (told is not None)
    assert told is None or f"--drop '*{told}.*'" in notices
    left = scan([tmp_path], Config(raw=True, drop=(f"*{told or 'x'}.*",)))
    assert "have the names of others" not in " ".join(str(f.error) for f in left.findings)


def test_what_only_sounds_like_an_average_is_kept(tmp_path):
    """Parts called so that fit no others are the network's own; a list of its parameters is one."""
    own = {"body.weight": torch.ones(2, 3), "swa_head.weight": torch.ones(4)}
    torch.save({"model": own, "step": 1}, tmp_path / "net.pt")
    (alone,) = scan([tmp_path], Config(raw=True)).require()
    assert alone.checkpoint.tensors.keys() == own.keys()
    shadow = {f"shadow_params.{i}": t for i, t in enumerate(own.values())}
    both = {**{f"model.{n}": t for n, t in own.items()}, **shadow, "num_updates": torch.tensor(1)}
    torch.save({"model": both, "step": 1}, tmp_path / "net.pt")
    found = scan([tmp_path], Config(average="warmup:beta=0.999")).require()
    assert {(s.series, s.tag.label) for s in found} == {
        ("model", "raw"),
        ("shadow_params", "warmup:beta=0.999"),
    }
    assert all(f"model.{n}" in s.checkpoint.tensors for s in found for n in own)
    only = {f"{head}.w": torch.ones(2, 3) for head in ("ema_fast", "ema_slow")}
    torch.save({"model": only, "step": 1}, tmp_path / "net.pt")
    with pytest.raises(UsageError, match="there are several: ema_fast, ema_slow"):
        scan([tmp_path], Config(average="exponential:beta=0.9"))


def test_means_and_best_ones_are_left_out(tmp_path):
    """The number in ``avg_10`` counts checkpoints, and ``best_7`` is of the same time as one."""
    for number in (6, 7):
        put(tmp_path, f"step{number}.pt", {"step": number})
    put(tmp_path, "best_7.th", {"step": 7})
    for name in ("avg_10.pt", "valid.acc.ave_10best.pth", "last-v1.pt"):
        put(tmp_path, name)
    found = scan([tmp_path], Config(raw=True))
    assert {s.name for s in found.require()} == {"step6.pt", "step7.pt"}


def test_outputs_of_phema(several):
    """What phema synthesized is left out with a notice, whatever its tag."""
    put(several, "out-step9-gamma7.safetensors", {"phema": "{}", "gamma": "7", "step": "9"})
    found = scan([several])
    assert len(found.snapshots) == 3
    (notice,) = said(found, "notice")
    assert notice == "out-step9-gamma7.safetensors: left out: it was synthesized by phema"


def test_hidden_and_other_files(several):
    """Hidden files, hidden directories and files of other endings are passed over in silence."""
    for name in (".a-step9-gamma5.safetensors", ".cache/b-step9-gamma5.safetensors"):
        put(several, name)
    (several / "notes-step9-gamma5.txt").touch()
    found = scan([several])
    assert len(found.snapshots) == 3
    assert said(found, "notice") + said(found, "error") == []


def test_hidden_directory_given_by_name(tmp_path):
    """A hidden directory that the user names is scanned."""
    put(tmp_path, ".run/step5-gamma5.safetensors")
    assert len(scan([tmp_path / ".run"]).snapshots) == 1


def test_only_left_out(tmp_path):
    """Where all files are left out the error says how many and why the first."""
    put(tmp_path, "a-step0-gamma5.safetensors")
    put(tmp_path, "b-step0-gamma5.safetensors")
    with pytest.raises(InputError, match=r"2 files were left out.*a-step0.*step 0") as caught:
        scan([tmp_path])
    assert caught.value.where == str(tmp_path)


def test_nothing_is_selected(tmp_path):
    """Where globs leave out all files, in phema.toml or of all kinds, the error says so."""
    put(tmp_path, "a-step1-gamma5.safetensors")
    put(tmp_path, "b-step2-gamma5.safetensors")
    message = "no snapshots found: select and exclude leave out all 2 files"
    with pytest.raises(InputError, match=message):
        scan([tmp_path], Config(exclude=("*",)))
    for line in ('select = ["c*"]', 'exclude = ["*"]'):
        (tmp_path / "phema.toml").write_text(line)
        with pytest.raises(InputError, match=message) as caught:
            scan([tmp_path])
        assert "these lines of phema.toml" in caught.value.remedy
    # One of several is told, unless --select counts in its place.
    (tmp_path / "phema.toml").write_text('select = ["a*", "c*"]')
    told = [str(f.error) for f in scan([tmp_path]).findings if f.level == "notice"]
    assert told == ["phema.toml: select 'c*' matches no file"]
    found = scan([tmp_path], Config(select=("b*",)))
    assert not [f for f in found.findings if f.level == "notice"]


def test_empty_directory(tmp_path):
    """A directory without snapshots is an error that names it and the endings looked for."""
    with pytest.raises(InputError, match="no snapshots found") as caught:
        scan([tmp_path])
    assert caught.value.where == str(tmp_path)
    assert ".safetensors" in caught.value.remedy


@pytest.mark.parametrize("name", ["missing", "missing.safetensors", "a" * 300])
def test_missing_path(several, name):
    """A path that does not exist is an error that names it."""
    with pytest.raises(PhemaError) as caught:
        scan([several, several / name])
    assert caught.value.where == str(several / name)


@pytest.mark.linux("named pipes")
def test_path_that_cannot_be_listed(tmp_path):
    """A path that is neither file nor directory is the operating system's failure."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="cannot list") as caught:
        scan([tmp_path / "pipe"])
    assert caught.value.where == str(tmp_path / "pipe")


def test_broken_files_are_findings(several):
    """Each broken file is an error of its own, with its exit code, and hides no other."""
    (several / "bad.safetensors").write_bytes(b"x")
    (several / "link.safetensors").symlink_to(several / "nowhere")
    torch.save({"f": print, "w": torch.ones(1)}, several / "evil.pt")
    put(several, "empty-step5-gamma5.safetensors", tensors={})
    put(several, "short-step6-gamma5.safetensors", tensors={"w": torch.ones(0)})
    found = scan([several])
    assert len(found.snapshots) == 3
    assert said(found, "notice") == [
        "empty-step5-gamma5.safetensors: left out: it holds no weights"
    ]
    assert {Path(e.where).name: type(e) for e in errors(found)} == {
        "bad.safetensors": InputError,
        "link.safetensors": StorageError,
        "evil.pt": UnsafePickleError,
        "short-step6-gamma5.safetensors": InputError,
    }


def test_same_file_given_twice(several):
    """A file reached by several paths, a link among them, counts once."""
    (several / "z.safetensors").symlink_to(several / "a-step1-gamma5.safetensors")
    again = [several, several, several / "sub", several / "a-step1-gamma5.safetensors"]
    found = scan([*again, str(several / "sub" / ".." / "sub")])
    assert len(found.snapshots) == 3
    assert said(found, "error") == []


@pytest.mark.parametrize("name", ["bad.safetensors", "a-step0-gamma5.safetensors"])
def test_same_finding_once(several, name):
    """A file reached by several paths is complained of once."""
    put(several, name)
    (several / "bad.safetensors").write_bytes(b"x")
    found = scan([several, several, several / name])
    wheres = [f.error.where for f in found.findings if name in (f.error.where or "")]
    assert len(wheres) == 1


def test_several_paths(tmp_path):
    """Snapshots of several directories, each read by its own phema.toml, are taken together."""
    put(tmp_path, "one/t5.pt")
    put(tmp_path, "two/5.pt")
    toml(tmp_path / "one", "pattern = 't(?P<step>.)'", "gammas = [5]", "copy = ['a']")
    toml(tmp_path / "two", "pattern = '(?P<step>.).pt'", "gammas = [7]", "copy = ['b']")
    found = scan([tmp_path / "one", tmp_path / "two"])
    assert tags(found) == {"t5.pt": (5, 5), "5.pt": (7, 5)}
    assert found.copy == ("a",)


# --- names and shards ---------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["model", "diffusion_pytorch_model"])
def test_sharded_directory(tmp_path, base):
    """A sharded checkpoint is one snapshot, named by its directory and tagged by its name."""
    put_sharded(tmp_path / "run" / "x-step100-gamma5", base)
    put_sharded(tmp_path / "run" / "checkpoint-200", base, {"gamma": "5"})
    put_sharded(tmp_path / "run" / "third", base, {"gamma": "5", "step": "300"})
    found = scan([tmp_path])
    assert tags(found) == {
        "run/x-step100-gamma5": (5, 100),
        "run/checkpoint-200": (5, 200),
        "run/third": (5, 300),
    }
    assert [len(s.checkpoint.files) for s in found.snapshots] == [2, 2, 2]


def test_sharded_root(tmp_path):
    """A sharded checkpoint whose directory is given itself is named by that directory."""
    put_sharded(tmp_path / "step100-gamma5")
    assert tags(scan([tmp_path / "step100-gamma5"])) == {"step100-gamma5": (5, 100)}


def test_sharded_with_names_of_their_own(tmp_path):
    """Two sharded checkpoints in one directory are two snapshots that can be told apart."""
    put_sharded(tmp_path, "ema-step1-gamma5")
    put_sharded(tmp_path, "ema-step2-gamma5")
    found = scan([tmp_path])
    assert sorted(tags(found).values()) == [(5, 1), (5, 2)]
    assert all(f"step{s.tag.step:.0f}" in s.name for s in found.snapshots)


def test_single_file_in_its_own_directory(tmp_path):
    """A model.safetensors is named by its directory, a file with a name of its own by both."""
    put(tmp_path, "step5-gamma5/model.safetensors")
    put(tmp_path, "step6-gamma5/pytorch_model.bin")
    put(tmp_path, "step-7/ema.safetensors", {"gamma": "5"})
    assert list(tags(scan([tmp_path]))) == [
        "step5-gamma5",
        "step6-gamma5",
        "step-7/ema.safetensors",
    ]


def test_stale_shards_beside_an_index(tmp_path):
    """Shards of an earlier split beside an index are not taken for snapshots."""
    put_sharded(tmp_path / "step5-gamma5")
    put(tmp_path, "step5-gamma5/model-00003-of-00003.safetensors")
    found = scan([tmp_path])
    assert tags(found) == {"step5-gamma5": (5, 5)}
    assert said(found, "error") == []


def test_orphan_shard(several):
    """A shard without an index is an error, unless it is left out."""
    put(several, "step9-gamma5/model-00001-of-00002.safetensors")
    (error,) = errors(scan([several]))
    assert error.what == "is a shard, and its index is missing"
    assert error.where == "step9-gamma5/model-00001-of-00002.safetensors"
    assert errors(scan([several], Config(exclude=("step9-*",)))) == []


def test_read_checkpoint(tmp_path):
    """A file, a shard, an index or a directory with one checkpoint can be read untagged."""
    path = put(tmp_path, "one/a.safetensors")
    put_sharded(tmp_path / "two")
    assert read_checkpoint(path).path == path
    assert read_checkpoint(str(tmp_path / "one")).path == path
    assert sorted(read_checkpoint(tmp_path / "two").tensors) == ["v", "w"]
    shard = tmp_path / "two" / "model-00001-of-00002.safetensors"
    assert list(read_checkpoint(shard).tensors) == ["v"]
    with pytest.raises(InputError, match="holds 2 checkpoints, not one") as caught:
        read_checkpoint(tmp_path)
    assert caught.value.where == str(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_checkpoint(tmp_path / "none")


def test_order(tmp_path):
    """Snapshots and findings come in the same order whatever the order the files were made in."""
    names = [f"{n}-step{s}-gamma{g}" for n, s, g in zip("dcab", (9, 1, 10, 9), "5678", strict=True)]
    untagged = [f"{folder}/x-step5" for folder in "qhzkbmwcfe"]
    names += ["y-step0-gamma5", *untagged]
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            put(tmp_path / folder, name + ".safetensors")
    one, two = (scan([tmp_path / folder]) for folder in ("one", "two"))
    assert list(tags(one).values()) == [(6, 1), (5, 9), (8, 9), (7, 10)]
    assert tags(one) == tags(two)
    assert [str(f.error) for f in one.findings] == [str(f.error) for f in two.findings]
    wheres = [e.where for e in errors(one)]
    assert wheres == [f"{name}.safetensors" for name in sorted(untagged)]


# --- whether they fit ---------------------------------------------------------------------------


def test_duplicates(tmp_path):
    """Two snapshots of one gamma and step are an error that names both."""
    put(tmp_path, "a-step5-gamma5.safetensors")
    put(tmp_path, "b-step5-gamma5.safetensors")
    put(tmp_path, "c-step5-gamma6.safetensors")
    (error,) = errors(scan([tmp_path]))
    assert "gamma 5 and step 5 as a-step5-gamma5.safetensors" in error.what
    assert error.where == "b-step5-gamma5.safetensors"
    assert "--exclude" in error.remedy


def test_duplicates_of_two_directories(tmp_path):
    """Also where two directories hold files of the same name the error tells them apart."""
    put(tmp_path, "one/step5-gamma5.safetensors")
    put(tmp_path, "two/step5-gamma5.safetensors")
    (error,) = errors(scan([tmp_path / "one", tmp_path / "two"]))
    assert "one" in str(error)
    assert "two" in str(error)


def test_two_runs_are_seen_whatever_lies_between_their_names(tmp_path):
    """Times of two directories overlap; those of a third, between them by name, do not."""
    for run, steps in {"a": (100, 200, 300), "b": (5000, 6000), "c": (150, 250, 350)}.items():
        for step in steps:
            for gamma in (5, 10):
                put(tmp_path, f"run_{run}/x-step{step}-gamma{gamma}.safetensors")
    (error,) = errors(scan([tmp_path]))
    assert str(error).startswith("run_c: is of another run: ")
    assert "are in run_a;" in str(error)
    assert error.option == "--exclude 'run_c/*'"
    put(tmp_path, "run_c/x-step300-gamma5.safetensors")
    first, second = errors(scan([tmp_path]))
    assert first.what == error.what
    assert "has the same gamma 5 and step 300" in second.what


@pytest.mark.parametrize("given", ["directories", "files"])
def test_two_runs_given_as_two_paths_are_seen(tmp_path, given):
    """As where one directory holds both; two directories of one run are no error."""
    for run, first in (("a", 100), ("b", 150), ("c", 500)):
        for step in range(first, first + 300, 100):
            put(tmp_path, f"run_{run}/x-step{step}-gamma5.safetensors")
    runs = {run: [tmp_path / f"run_{run}"] for run in "abc"}
    if given == "files":
        runs = {run: sorted(folder.iterdir()) for run, (folder,) in runs.items()}
    (error,) = errors(scan([*runs["a"], *runs["b"]]))
    assert str(error).startswith(f"{tmp_path / 'run_b'}: is of another run: ")
    assert f"are in {tmp_path / 'run_a'};" in str(error)
    assert not errors(scan([*runs["a"], *runs["c"]]))


BASE = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3.0)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": BASE["w"]}, "tensor b is missing"),
        (BASE | {"x": torch.ones(1)}, "tensor x is only in this one"),
        (
            BASE | {"w": torch.ones(3, 2)},
            "tensor w is float32 [3, 2] instead of float32 [2, 3]",
        ),
        (
            {"w": torch.ones(3, 2), "x": torch.ones(1)},
            "tensor b is missing (and 2 more differences)",
        ),
    ],
)
def test_differences(tmp_path, tensors, message):
    """A snapshot with other names, shapes or types than the newest is an error that says how."""
    put(tmp_path, "a-step1-gamma5.safetensors", tensors=tensors)
    put(tmp_path, "b-step2-gamma5.safetensors", tensors=BASE)
    moved = {n: t + 1 for n, t in BASE.items()}
    put(tmp_path, "c-step2-gamma6.safetensors", tensors=moved)
    (error,) = errors(scan([tmp_path]))
    assert error.what == f"does not fit c-step2-gamma6.safetensors: {message}"
    assert error.where == "a-step1-gamma5.safetensors"
    assert "--exclude" in error.remedy


def test_nothing_in_common(tmp_path):
    """Snapshots without a tensor in common are of two networks, or of two parts of one."""
    put(tmp_path, "a-step1-gamma5.safetensors", tensors={"x": torch.ones(1)})
    put(tmp_path, "b-step2-gamma5.safetensors", tensors=BASE)
    (error,) = errors(scan([tmp_path]))
    assert error.what.startswith(
        "has no tensor in common with b-step2-gamma5.safetensors: it is another"
    )
    assert error.where == "a-step1-gamma5.safetensors"
    assert error.remedy.startswith("gather parts into one file")


@pytest.mark.parametrize(
    ("prefix", "notices"),
    [
        ("module.", ["module."]),
        ("_orig_mod.", ["_orig_mod."]),
        ("ema_model.module.", ["ema_model.", "module."]),
        ("model.", []),
    ],
)
def test_prefixes_that_all_have(tmp_path, prefix, notices):
    """Wrappers' prefixes on all tensors of all snapshots are removed, with a notice each."""
    for step in (1, 2):
        tensors = {f"{prefix}{n}": t for n, t in BASE.items()}
        put(tmp_path, f"step{step}-gamma5.safetensors", tensors=tensors)
    found = scan([tmp_path])
    kept = "" if notices else prefix
    for snapshot in found.snapshots:
        extents = snapshot.checkpoint.tensors
        assert sorted(extents) == [kept + "b", kept + "w"]
        assert all(name == extent.name for name, extent in extents.items())
    assert said(found, "notice") == [f"prefix {p} removed from all tensor names" for p in notices]


@pytest.mark.parametrize(
    "other", [BASE, {"module.w": BASE["w"], "b": BASE["b"]}, {"module.": BASE["w"]}]
)
def test_prefixes_that_not_all_have(tmp_path, other):
    """A prefix that a single tensor of a single snapshot lacks stays on all."""
    tensors = {f"module.{n}": t for n, t in BASE.items()}
    put(tmp_path, "step1-gamma5.safetensors", tensors=other)
    put(tmp_path, "step2-gamma5.safetensors", tensors=tensors)
    found = scan([tmp_path])
    assert sorted(found.snapshots[1].checkpoint.tensors) == ["module.b", "module.w"]
    assert said(found, "notice") == []
    assert len(errors(found)) == 1


def test_one_gamma_warns(several):
    """Snapshots of one gamma give a warning, of two none."""
    (warning,) = said(scan([several]), "warning")
    assert "all snapshots have gamma 5" in warning
    put(several, "d-step3-gamma6.safetensors")
    assert said(scan([several]), "warning") == []


def test_gammas_that_hardly_differ_warn(several):
    """Gammas that are surely roundings of one give a warning that names both."""
    put(several, "d-step3.safetensors", {"gamma": "5.0001"})
    (warning,) = said(scan([several]), "warning")
    assert "gammas 5 and 5.0001 hardly differ" in warning


def test_types_that_cannot_be_averaged_warn(tmp_path):
    """The first tensor of such a type in the newest snapshot is named, with the remedy."""
    for gamma in (5, 6):
        tensors = {"c": torch.ones(1, dtype=torch.complex64), "w": torch.ones(2)}
        put(tmp_path, f"step4-gamma{gamma}.safetensors", tensors=tensors)
    (warning,) = said(scan([tmp_path]), "warning")
    assert warning.startswith("step4-gamma6.safetensors: ")
    assert "tensor c: complex64" in warning
    assert "--copy 'c'" in warning
    assert said(scan([tmp_path], Config(copy=("c",))), "warning") == []


def test_nothing_to_compare():
    """No snapshots give no findings and no prefixes."""
    assert list(check([])) == []
    assert strip_prefixes([]) == ([], [])


def test_require_raises_the_first_error(several):
    """Scan.require raises the first error with its type and place, and counts the others."""
    assert scan([several]).require() == scan([several]).snapshots
    (several / "aa.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="not a safetensors file;") as one:
        scan([several]).require()
    assert one.value.where == str(several / "aa.safetensors")
    torch.save({"f": print}, several / "a.pt")
    put(several, "z-step4.safetensors")
    with pytest.raises(UnsafePickleError, match=r"\(and 2 more: see phema inspect\);") as first:
        scan([several]).require()
    assert first.value.where == str(several / "a.pt")
    assert first.value.remedy


def test_require_passes_over_warnings(several):
    """Warnings and notices don't stand against using the snapshots."""
    snapshots = scan([several]).snapshots
    found = Scan(
        snapshots, (Finding("warning", InputError("a")), Finding("notice", InputError("b")))
    )
    assert found.require() == snapshots


def test_tag_has_the_profile(tmp_path):
    """A snapshot made by hand has the profile of its gamma, ending at its step."""
    path = put(tmp_path, "a.safetensors")
    tag = Tag(PowerProfile(5.0, 100.0), 100.0, 5.0, "name", "name")
    snapshot = Snapshot("a", read_index(path), tag)
    assert snapshot.tag.label == "gamma 5"
    assert snapshot.tag.profile.end == snapshot.tag.step
