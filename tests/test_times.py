"""Times: what trainers count, where it is not the steps of the raw weights."""

import re
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from ema_pytorch import EMA
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from phema_cli.snapshots import Config, scan
from tests.builders import phema
from tests.runs import base, libraries

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def averaged(root, *, updates=1, every=1, beta=None, first=0, begin=1, again=None):
    """A run of ``AveragedModel``, updated so often at every N-th step, with the raw weights.

    Its loop counts steps from ``begin``; ``first`` is the first of them that is an update. At step
    ``again`` it is resumed, and the average made anew.
    """
    root.mkdir()
    net = base.Net()
    base.load(net, 0)
    how = {} if beta is None else {"multi_avg_fn": get_ema_multi_avg_fn(beta)}
    average = AveragedModel(net, **how)
    for step in range(1, base.STEPS + 1):
        # Gradients are gathered before the weights move, and each batch counts.
        for _ in range(updates - 1):
            average.update_parameters(net)
        base.load(net, step)
        if step == again:
            average = AveragedModel(net, **how)
        count = step - 1 + begin
        if count % every == first % every and count >= first:
            average.update_parameters(net)
        if step in base.STORED:
            content = {"step": count, "swa": average.state_dict(), "model": base.raw(step)}
            torch.save(content, root / f"ckpt_{step}.pt")
    return root


def missed(folder, tmp_path, gamma, *options):
    """How far a synthesis is from the average itself, and what phema said of it."""
    out = tmp_path / "out.pt"
    done = phema("synthesize", folder, "-g", gamma, "-o", out, "--overwrite", *options)
    assert done.code == 0, done.err
    made = base.flat({n: v for n, v in torch.load(out).items() if n in base.parameters()})
    return base.missed(made, base.walk().power(float(gamma))[base.STEPS]), done.err


@pytest.mark.slow
def test_updates_that_outnumber_steps_are_the_time(tmp_path):
    """Of accumulated gradients each batch updates the average, whose law counts these."""
    folder = averaged(tmp_path / "run", updates=3, beta=0.995)
    law = ("--average", "exponential:beta=0.995,start=1")
    error, told = missed(folder, tmp_path, 7, *law)
    assert "its average counts 3000 updates at step 1000: times are these updates" in told
    assert error < 0.03
    stored = phema("inspect", folder, "--json", *law).json["snapshots"]
    assert {s["step"] for s in stored} == {3.0 * step for step in base.STORED}
    torch.save({"step": 990, "model": base.raw(990)}, folder / "last.pt")
    refused = phema("inspect", folder, *law)
    assert refused.code == 3
    own = "ckpt_100.pt and 19 others: its average counts 300 updates at step 100, and other files"
    assert own in refused.out
    assert phema("inspect", folder, *law, "--exclude", "last.pt").code == 0


@pytest.mark.slow
def test_averages_and_weights_of_a_directory_count_the_same(tmp_path):
    """Diffusers counts calls of its EMA, and its directories count steps."""
    kind = libraries.tiny()
    model = kind()
    ema = EMAModel(model.parameters(), model_cls=kind, model_config=model.config, decay=0.9)
    for step in range(1, 81):
        base.load(model, step)
        for _ in range(4):
            ema.step(model.parameters())
        if step % 10 == 0:
            ema.save_pretrained(tmp_path / f"checkpoint-{step}" / "unet_ema")
            model.save_pretrained(tmp_path / f"checkpoint-{step}" / "unet")
    refused = phema("inspect", tmp_path)
    assert refused.code == 3
    assert "its config.json counts 40 updates, and the weights beside it are of step 10" in (
        refused.out
    )
    alone = phema("inspect", tmp_path, "--exclude", "*/unet", "--json").json
    assert [s["step"] for s in alone["snapshots"]] == [40.0 * n for n in range(1, 9)]
    assert phema("inspect", tmp_path, "--raw", "--no-sample").code == 0


@pytest.mark.slow
def test_a_mean_of_every_tenth_step_is_a_mean(tmp_path):
    """Plain SWA counts its updates, so that it is of gamma 0 whatever lies between them."""
    folder = averaged(tmp_path / "run", every=10)
    error, told = missed(folder, tmp_path, 7, "--average", "power:gamma=0")
    assert "in effect" not in told
    assert error < 0.05


@pytest.mark.slow
def test_what_is_stored_after_the_last_epoch_is_no_new_beginning(tmp_path):
    """Lightning counts one epoch more once training has ended, at the same step."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = base.Net()
            base.load(self.net, 0)

        def training_step(self, batch, _):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return libraries.Replay(self.net, 5)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1)
    trainer = lightning.Trainer(max_epochs=4, callbacks=[keep], accelerator="cpu", **quiet)
    trainer.fit(Module(), DataLoader(TensorDataset(torch.randn(20, 4)), 2))
    trainer.save_checkpoint(tmp_path / "final.ckpt")
    found = scan([tmp_path], base.RAW).require()
    assert [s.tag.step for s in found] == [10.0, 20.0, 30.0, 40.0]


@pytest.mark.parametrize(
    ("epochs", "planned", "first"),
    [
        (range(2, 21, 2), 40, 1),
        (range(1, 21), 40, 1),
        (range(1, 21), 20, 1),
        (range(1, 20), 20, 0),
        (range(4, 20, 5), 40, 0),
    ],
)
def test_the_first_epoch_of_a_run(tmp_path, epochs, planned, first):
    """It is 1 where the last one is the last planned, else by the gap before the first file."""
    for epoch in epochs:
        content = {"state_dict": base.raw(epoch), "epoch": epoch, "args": {"epochs": planned}}
        torch.save(content, tmp_path / f"model_{epoch}.pth")
    found = scan([tmp_path], Config(raw=True)).require()
    assert [s.tag.step for s in found] == [epoch + 1 - first for epoch in epochs]


@pytest.mark.parametrize(
    ("numbers", "whole"), [((8, 16), True), ((0, 1), False), ((1, 2, 3), False)]
)
def test_numbers_of_adapters_are_no_ranks_of_processes(tmp_path, numbers, whole):
    """Ranks are all there from 0 or 1 on; what an adapter's rank is is a number like others."""
    for number in numbers:
        for step in (100, 200):
            tensors = {"w": torch.full((3,), float(np.log(step)))}
            torch.save(tensors, tmp_path / f"lora-rank{number}-step{step}.pt")
    done = phema("inspect", tmp_path, "--raw", "--select", f"*rank{numbers[0]}*", "--trust-tags")
    assert ("weights of one rank" not in done.err + done.out) == whole
    assert (done.code == 0) == whole


def test_a_number_that_int_does_not_read_is_none(tmp_path):
    """A name may have digits that count nothing."""
    for name in (
        "lora-rank1-step100",
        "lora-rank1-step200",
        "lora-rank\N{SUPERSCRIPT TWO}-step100",
    ):
        torch.save({"w": torch.ones(3)}, tmp_path / f"{name}.pt")
    done = phema("inspect", tmp_path, "--raw", "--select", "*rank1*", "--trust-tags")
    assert done.code == 0, done.out + done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "begin", "law"),
    [
        (0, 1, "exponential:beta=0.9,every=10,start=10"),
        (0, 0, "exponential:beta=0.9,every=10"),
        (1, 1, "exponential:beta=0.9,every=10,start=1"),
    ],
)
def test_counts_of_updates_say_after_which_steps_they_come(tmp_path, first, begin, law):
    """A loop's first update is that of step N, or of step 0, or of step 1, which has to be said."""
    folder = averaged(tmp_path / "run", every=10, beta=0.9, first=first, begin=begin)
    error, told = missed(folder, tmp_path, 7, "--average", "exponential:beta=0.9,start=1")
    doubt = "updates by step 100 are taken to be those after steps 10, 20, 30, ...;"
    assert (doubt in told) == (begin == 1)
    if first == 1:
        assert f"if they are after steps 1, 11, 21, ..., pass --average {law}" in told
        assert error > 0.06
        error, told = missed(folder, tmp_path, 7, "--average", law)
        assert doubt not in told
    assert error < 0.03
    laws = {
        s["law"] for s in phema("inspect", folder, "--json", "--average", law).json["snapshots"]
    }
    assert laws == {law, "raw"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "beta", "every", "law"),
    [
        ("power:gamma=0", None, 1, "power:gamma=0,start=500"),
        ("exponential:beta=0.99,start=1", 0.99, 1, "exponential:beta=0.99,start=501"),
        ("exponential:beta=0.9,start=1", 0.9, 10, "exponential:beta=0.9,every=10,start=510"),
    ],
)
def test_averages_that_begin_late_are_told_by_their_counts(tmp_path, said, beta, every, law):
    """Their first update copies; what does not copy is refused, with the law to pass."""
    folder = averaged(tmp_path / "run", every=every, beta=beta, first=500 + every)
    for path in folder.iterdir():
        content = torch.load(path)
        if content["step"] <= 500:
            path.unlink()
        else:
            # Raw weights would say it too.
            torch.save({"step": content["step"], "swa": content["swa"]}, path)
    assert phema("inspect", folder, "--average", "exponential:beta=0.99,start=700").code == 0
    error, told = missed(folder, tmp_path, 20, "--average", said)
    assert f"it is taken for {law}" in told
    assert error < 0.12
    if every > 1:
        refused = phema("inspect", folder, "--average", "exponential:beta=0.9")
        assert refused.code == 3
        assert "which has been updated from the beginning; pass --average" in refused.out
        insists = ("--average", "exponential:beta=0.9", "--trust-tags")
        assert phema("inspect", folder, *insists).code == 0
        (other,) = re.findall(r"pass --average (\S+) if it was a copy", refused.out)
        error, _ = missed(folder, tmp_path, 20, "--average", other)
        assert error < 0.12


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, float("inf"), float("nan"), -1])
@pytest.mark.parametrize("step", [0, 10])
def test_counters_that_make_no_sense_end_in_a_line(tmp_path, step, updates):
    """An average of step 0 that counts an update, and numbers that are no counts."""
    state = {"module.w": torch.ones(4), "n_averaged": torch.tensor(updates)}
    torch.save(state, tmp_path / f"model-step{step}.pt")
    done = phema("inspect", tmp_path, "--average", "exponential:beta=0.9")
    assert done.code in {0, 3}
    assert "bug" not in done.out + done.err


def test_an_average_that_began_again_is_refused(tmp_path):
    """A resumed job made it anew; raw weights beside it would confirm its tags."""
    folder = averaged(tmp_path / "run", beta=0.98, again=501)
    law = ("--average", "exponential:beta=0.98,start=1")
    refused = phema("inspect", folder, *law)
    assert refused.code == 3
    told = refused.out.replace("\n", " ")
    assert re.search(r"counts \d+ updates by step 550, and \d+ by step 500: it began again", told)
    late = [f"--exclude=ckpt_{step}.pt" for step in base.STORED if step > 500]
    assert phema("inspect", folder, *law, *late).code == 0
    assert phema("inspect", folder, *law, "--trust-tags").code == 0


@pytest.mark.slow
def test_a_counter_of_ema_pytorch_that_began_again_is_refused(tmp_path):
    """Its files count calls of ``update``, and their names go on."""
    net = base.Net()
    base.load(net, 0)
    ema = EMA(net, beta=0.98, update_every=1, update_after_step=0)
    for step in range(1, 801):
        base.load(net, step)
        if step == 400:
            ema.step.zero_()
        ema.update()
        if step % 50 == 0:
            torch.save({"step": step, "ema": ema.state_dict()}, tmp_path / f"{step}.pt")
    refused = phema(
        "inspect", tmp_path, "--average", "ema-pytorch:beta=0.98,every=1,update_after=0"
    )
    assert refused.code == 3
    assert "it began again in between" in refused.out.replace("\n", " ")


@pytest.mark.slow
def test_lightning_says_which_step_was_the_last_update(tmp_path):
    """So the first is known, also of snapshots at even steps alone."""
    left = libraries.lightning_ema_every_second(tmp_path)
    said = Config(average="exponential:beta=0.984,start=1", select=("*0.ckpt",))
    for every in (None, 2):
        found = scan([left.folder], replace(said, update_every=every))
        assert {s.tag.law for s in found.require()} == set(left.series)
        assert not [f for f in found.findings if "updates" in f.error.what]


@pytest.mark.parametrize(
    ("name", "entries", "time"),
    [
        ("checkpoint0003.pth", {"last_epoch": 3}, (4.0, "epochs")),
        ("latest_model.pth", {"it": 300}, (300.0, "steps")),
        ("epoch0-global_step300/a/net.pth", {}, (300.0, "steps")),
        ("epoch0_lr3/a/net.pth", {}, None),
    ],
)
def test_other_words_for_times(tmp_path, name, entries, time):
    """D-FINE, TorchSSL and Open-Sora; a name of more than words and numbers gives no time."""
    base.save({"model": base.raw(0), **entries}, tmp_path / name)
    found = [(s.tag.step, s.tag.unit) for s in scan([tmp_path], Config(raw=True)).snapshots]
    assert found == ([] if time is None else [time])
