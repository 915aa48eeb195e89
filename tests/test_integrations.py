"""Runs of Lightning, the Hugging Face Trainer and accelerate store what a loop by hand does."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from phema_cli.errors import UsageError
from phema_cli.integrations import lightning as for_lightning
from phema_cli.integrations import transformers as for_transformers
from phema_cli.profiles import sigma_rel_from_gamma
from tests import callback_runs as runs
from tests import warm
from tests.builders import phema

# What the libraries themselves complain about is not ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
LIBRARIES = ["lightning", "transformers", "accelerate"]


def run(library, out, **how):
    """A run of a library that keeps averages, and its weights after each step."""
    if library != "accelerate":
        how = {"gammas": runs.GAMMAS, "every": runs.EVERY} | how
    return getattr(runs, library)(out, **how)


def files(folder):
    """Names and bytes of a directory's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(*steps):
    """Names of the snapshots of these steps."""
    return {f"ema-step{s:07d}-gamma{g:g}.safetensors" for s in steps for g in runs.GAMMAS}


def by_hand(library, path, folder):
    """What the loop by hand stores of a run, with the names of the library's model."""
    runs.by_hand(path, folder, prefix="model." if library == "lightning" else "")
    return files(folder)


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "how", [{}, {"accumulate": 3}, {"amp": True}], ids=["", "accumulate", "amp"]
)
def test_snapshots_are_those_of_a_loop_by_hand(library, how, tmp_path):
    """Every step that was made is taken in once: also of 3 batches, and where one overflowed."""
    path = run(library, tmp_path, **how)
    # The Trainers count a step that the scaler skipped; the loop goes on until it has its number.
    made = 9 if "amp" in how and library != "accelerate" else 10
    assert len(path) == made
    stored = files(tmp_path / "ckpts")
    assert stored.keys() == names(4, 8, made)
    assert stored == by_hand(library, path, tmp_path / "by hand")


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_resumed_run_stores_what_an_unbroken_one_does(library, tmp_path):
    """After a crash at step 5 and from the checkpoint of step 3 on: the same files, bit for bit."""
    run(library, tmp_path / "unbroken")
    with pytest.raises(runs.PowerCutError):
        run(library, tmp_path / "broken", crash_at=5)
    assert files(tmp_path / "broken" / "ckpts").keys() == names(4)
    for path in (tmp_path / "broken" / "ckpts").iterdir():
        path.unlink()
    run(library, tmp_path / "broken", resume=True)
    assert files(tmp_path / "broken" / "ckpts") == files(tmp_path / "unbroken" / "ckpts")


@pytest.mark.slow
def test_two_ranks_store_what_one_process_would(tmp_path):
    """Under torchrun each library leaves the snapshots of the loop by hand, which phema reads.

    Lightning is there by its older name, pytorch_lightning.
    """
    command = [warm.python(), "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    place = ["--master-addr", "localhost", "--master-port", "0", "--rdzv-backend", "c10d"]
    subprocess.run(
        [*command, *place, "--rdzv-endpoint", "localhost:0", "-m", "tests.callback_runs", tmp_path],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=200,
    )
    for library in LIBRARIES:
        stored = files(tmp_path / library / "ckpts")
        assert stored == files(tmp_path / library / "by hand")
        assert stored.keys() == names(4, 8, 10)
        report = phema("inspect", tmp_path / library / "ckpts", "--json").json
        found = sorted((s["step"], s["gamma"]) for s in report["snapshots"])
        assert found == [(s, g) for s in (4, 8, 10) for g in runs.GAMMAS]


@pytest.mark.slow
def test_a_fused_optimizer_skips_without_a_word(tmp_path):
    """A fused optimizer is called for a step that overflowed too, and that is not taken in."""
    path = run("lightning", tmp_path, amp=True, fused=True)
    assert len(path) == 9
    assert files(tmp_path / "ckpts") == by_hand("lightning", path, tmp_path / "by hand")


@pytest.mark.slow
@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_number_of_snapshots_is_spread_over_the_training(library, tmp_path):
    """snapshots=3 of 10 steps, and widths in the place of gammas, in half precision."""
    widths = [sigma_rel_from_gamma(g) for g in (4, 9)]
    how = {"gammas": None, "sigma_rels": widths, "every": None, "snapshots": 3, "name": "w"}
    run(library, tmp_path, dtype=torch.float16, **how)
    report = phema("inspect", tmp_path / "ckpts", "--json").json
    tags = [(s["step"], round(s["gamma"], 6), s["dtype"]) for s in report["snapshots"]]
    assert sorted(tags) == [(s, g, "float16") for s in (4, 7, 10) for g in (4, 9)]


@pytest.mark.parametrize("module", [for_lightning, for_transformers])
def test_a_callback_with_senseless_arguments_is_refused(module, tmp_path):
    """Two ways to say one thing, no snapshots, and gammas that do not exist are errors at once."""
    make = module.PowerEMACallback
    for how, words in (
        ({"gammas": (5,), "sigma_rels": (0.1,)}, "pass one of them"),
        ({"every": 5, "snapshots": 5}, "pass one of them"),
        ({"every": 0}, "at least 1"),
        ({"snapshots": -1}, "at least 1"),
        ({"gammas": (-1,)}, r"above -0\.5"),
        ({"dtype": torch.int8}, "can't be stored as int8"),
    ):
        with pytest.raises(UsageError, match=words):
            make(tmp_path, **how)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_checkpoint_without_averages_is_no_beginning(library, tmp_path, monkeypatch):
    """Going on from a checkpoint that has no averages is refused unless fresh=True says so."""
    kind = (for_lightning if library == "lightning" else for_transformers).PowerEMACallback
    with monkeypatch.context() as patch:
        patch.setattr(kind, "state_dict", lambda _: {}, raising=False)
        patch.setattr(kind, "on_save", lambda *_, **__: None, raising=False)
        with pytest.raises(runs.PowerCutError):
            run(library, tmp_path, crash_at=5)
    with pytest.raises(UsageError, match="at step 3 from a checkpoint without averages"):
        run(library, tmp_path, resume=True)
    run(library, tmp_path, resume=True, fresh=True)
    assert files(tmp_path / "ckpts").keys() == names(4, 7)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_without_the_library_the_error_names_the_extra(library):
    """What to install is said, in the place of the library's own missing name."""
    program = (
        "import sys\n"
        "for name in ('lightning', 'pytorch_lightning', 'transformers'):\n"
        "    sys.modules[name] = None\n"
        f"import phema_cli.integrations.{library}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert f'pip install "phema-cli[{library}]"' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", [for_lightning, for_transformers])
def test_examples_of_the_docstrings_are_those_of_the_page(module):
    """docs/training.md, whose blocks are run, has the example of each callback."""
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    example = module.PowerEMACallback.__doc__.partition("::\n")[2]
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert textwrap.dedent(example).strip() + "\n" in blocks
