"""What averages look like that nobody describes, or the user describes wrongly, by the command."""

import json
import shlex
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.builders import phema
from tests.simulated import glide, times_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run():
    """A simulated run."""
    return glide()


def tensors(run, name, step):
    """A checkpoint of an average of it."""
    values = run.path if name == "raw" else run.average(name)
    return {"w": torch.tensor(values[step - 1], dtype=torch.float32).reshape(20, 30)}


def nested(run, folder, names, count=16, *, epochs=False):
    """Files that hold several dicts: what the averages are stands nowhere."""
    folder.mkdir()
    for number, step in enumerate(map(int, times_of(count)), start=1):
        held = {key: tensors(run, name, step) for key, name in names.items()}
        time = {"epoch": number} if epochs else {"step": step}
        torch.save({**held, **time}, folder / f"ckpt_{number if epochs else step}.pt")
    return folder


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("5", "--gammas 5"),
        ("c0.98", "--average exponential:beta=0.98"),
        ("w0.999", "--average warmup:beta=0.999"),
    ],
)
def test_an_average_beside_raw_weights_is_named(run, tmp_path, name, option):
    """16 times are enough; the option that is proposed is one that phema accepts and confirms."""
    folder = nested(run, tmp_path / "run", {"model": "raw", "ema": name})
    asked = phema("inspect", "run", cwd=tmp_path)
    assert asked.code == 3
    assert asked.out.endswith(f"try: phema inspect run {option}\n")
    followed = phema("inspect", "--json", *shlex.split(option), folder)
    assert followed.code == 0
    assert json.loads(followed.out)["evidence"]["tags"] == "confirmed"
    for command in (("synthesize", "--gamma", "7"), ("weights", "--gamma", "7")):
        refused = phema(*command, folder)
        assert refused.code == 3
        assert option in refused.err
    assert list(tmp_path.iterdir()) == [folder]


def test_the_last_file_once_more_changes_nothing(run, tmp_path):
    """Two files of one time say the same twice."""
    folder = nested(run, tmp_path / "run", {"model": "raw", "ema": "w0.9999"}, epochs=True)
    asked = phema("inspect", "run", cwd=tmp_path)
    assert asked.out.endswith("try: phema inspect run --gammas 8\n")
    shutil.copy(folder / "ckpt_16.pt", folder / "last.pt")
    assert phema("inspect", "run", cwd=tmp_path).out.endswith(asked.out.splitlines()[-1] + "\n")


@pytest.mark.parametrize(
    ("fast", "option"),
    [("10", "--gammas 10,5"), ("c0.98", "--average exponential:beta=0.98 --average power:gamma=5")],
)
def test_two_averages_of_one_file_are_named(run, tmp_path, fast, option):
    """With the keys that say which is which, also where they are of two kinds."""
    nested(run, tmp_path / "run", {"model": "raw", "ema_fast": fast, "ema_slow": "5"})
    asked = phema("inspect", "run", cwd=tmp_path)
    option = f"--key ema_fast,ema_slow {option}"
    assert asked.out.endswith(f"try: phema inspect run {option}\n")
    followed = phema("inspect", "run", "--json", *shlex.split(option), cwd=tmp_path)
    assert json.loads(followed.out)["evidence"]["tags"] == "confirmed"


def test_nothing_is_guessed_where_data_can_not_tell(run, tmp_path):
    """Few times, no look at the tensors, something else that is wrong: only what is missing."""
    few = nested(run, tmp_path / "few", {"model": "raw", "ema": "5"}, count=8)
    many = nested(run, tmp_path / "many", {"model": "raw", "ema": "5"})
    assert "look" not in phema("inspect", few).out
    assert "look" not in phema("inspect", many, "--no-sample").out
    assert "looks like gamma 5" in phema("inspect", many).out
    save_file({"w": torch.zeros(2)}, many / "ema-step5-gamma5.safetensors")
    broken = phema("inspect", many)
    assert broken.code == 3
    assert "looks" not in broken.out


@pytest.mark.parametrize("name", ["c0.999", "c0.9999"])
def test_nothing_is_proposed_that_would_be_refused(run, tmp_path, name):
    """Of an average as long as the run the best that is tried fits as badly as all others."""
    nested(run, tmp_path / "run", {"model": "raw", "ema": name})
    assert "looks" not in phema("inspect", tmp_path / "run").out


@pytest.mark.parametrize(("name", "proposed"), [("c0.98", False), ("5", True)])
def test_no_decay_per_step_is_proposed_of_epochs(run, tmp_path, name, proposed):
    """A power function is the same in all units."""
    nested(run, tmp_path / "run", {"model": "raw", "ema": name}, epochs=True)
    assert ("looks" in phema("inspect", tmp_path / "run").out) is proposed


def test_tensors_that_do_not_fit_are_not_read(run, tmp_path):
    """An average of another shape is no average of these weights."""
    folder = nested(run, tmp_path / "run", {"model": "raw", "ema": "5"})
    last = torch.load(folder / "ckpt_1024.pt")
    torch.save({**last, "ema": {"w": torch.zeros(3)}}, folder / "ckpt_1024.pt")
    asked = phema("inspect", folder)
    assert asked.code == 3
    assert "looks" not in asked.out


def between(run, folder):
    """Two averages whose names have an index, and raw weights between their times."""
    folder.mkdir()
    rows = [r"pattern = 'avg-(?P<index>\d)-(?P<step>\d+)'"]
    for step in range(25, 1001, 25):
        for index, name in enumerate(("5", "10"), start=1):
            save_file(tensors(run, name, step), folder / f"avg-{index}-{step}.safetensors")
        save_file(tensors(run, "raw", step - 12), folder / f"raw-{step - 12}.safetensors")
        rows.append(f'[snapshots."raw-{step - 12}.safetensors"]')
        rows.append(f'average = "raw"\nstep = {step - 12}')
    (folder / "phema.toml").write_text("\n".join(rows))
    return folder


def test_laws_that_fit_better_are_told_of_the_averages_that_were_compared(run, tmp_path):
    """Raw weights of other times take no part, and the option goes by the index in names."""
    between(run, tmp_path / "run")
    asked = phema("inspect", "run", "--gammas", "10,5", cwd=tmp_path)
    assert asked.code == 3
    assert "as gamma 10 (tagged gamma 5) and gamma 5 (tagged gamma 10)" in asked.out
    assert "pass --gammas 5,10, or" in asked.out
