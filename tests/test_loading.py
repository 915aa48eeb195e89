"""From a training run to a model that answers: one command, and the library's own loader."""

import json
import os
import shlex
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import phema_cli
from phema_cli.synthesis.staging import Staging
from tests.builders import phema
from tests.libraries import small_unet

STEPS = (20, 40, 60, 80)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Libraries look for nothing outside."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")


def trained(model, loss, save, every=20):
    """Train a model a few steps, save it now and then; its states by step."""
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    stored = {}
    for step in range(1, STEPS[-1] + 1):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if step % every == 0:
            stored[step] = {k: v.clone() for k, v in model.state_dict().items()}
            save(step)
    return stored


def mean_of(stored, count):
    """The plain mean of the last states, in float64; integers of the last one."""
    last = list(stored.values())[-count:]
    return {
        name: torch.stack([s[name].double() for s in last]).mean(0)
        if value.is_floating_point()
        else value
        for name, value in last[-1].items()
    }


def assert_mean(made, stored, count=3):
    """A state is the mean of the last states, to the rounding of its type."""
    wanted = mean_of(stored, count)
    assert made.keys() == wanted.keys()
    for name, value in made.items():
        eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0
        scale = wanted[name].double().abs().max() if value.numel() else 0
        assert (value.double() - wanted[name]).abs().max() <= 4 * eps * scale, name


def tokens(vocabulary, length=12):
    """A batch of random tokens."""
    return torch.randint(vocabulary, (4, length))


def synthesized(folder, out, *arguments):
    """One command."""
    done = phema("synthesize", folder, "--profile", "checkpoints:last=3", *arguments, "-o", out)
    assert done.code == 0, done.err
    assert done.out == f"{out}\n"
    return done


def test_gpt2(tmp_path):
    """Embeddings are tied; config, generation config and tokenizer are with the weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    words = {f"w{i}": i for i in range(32)}
    inner = Tokenizer(WordLevel(words, unk_token="w0"))  # noqa: S106 - no password
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32))

    def save(step):
        folder = tmp_path / f"run/checkpoint-{step}"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        torch.save(model.state_dict(), folder / "optimizer.pt")

    def loss():
        data = tokens(32)
        return model(data, labels=data).loss

    stored = trained(model, loss, save)
    done = synthesized(tmp_path / "run", tmp_path / "merged")
    assert "copied with the weights: config.json" in " ".join(done.err.split())
    made = {p.name for p in (tmp_path / "merged").iterdir()}
    source = {p.name for p in (tmp_path / f"run/checkpoint-{STEPS[-1]}").iterdir()}
    assert made == source - {"trainer_state.json", "optimizer.pt"} | {"README.md"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_mean(loaded.state_dict(), stored)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("w3 w5")["input_ids"] == [3, 5]


def test_llama_in_shards(tmp_path):
    """A directory of shards gives a directory that loads, in shards of the size asked for."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)

    def save(step):
        model.save_pretrained(tmp_path / f"run/checkpoint-{step}", max_shard_size="6KB")

    def loss():
        data = tokens(32)
        return model(data, labels=data).loss

    stored = trained(model, loss, save)
    assert (tmp_path / "run/checkpoint-80/model.safetensors.index.json").exists()
    synthesized(tmp_path / "run", tmp_path / "merged", "--max-shard-size", "6KB")
    assert len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_mean(loaded.state_dict(), stored)
    synthesized(tmp_path / "run", tmp_path / "whole", "--dtype", "bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    assert_mean(loaded.state_dict(), stored)


def test_unet(tmp_path):
    """Diffusers' own names, with its config."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    model = small_unet()

    def save(step):
        model.save_pretrained(tmp_path / f"run/checkpoint-{step}/unet")

    def loss():
        x = torch.randn(2, 1, 8, 8)
        return (model(x, 3).sample - x).square().mean()

    stored = trained(model, loss, save)
    synthesized(tmp_path / "run", tmp_path / "merged")
    assert_mean(UNet2DModel.from_pretrained(tmp_path / "merged").state_dict(), stored)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Could not find a config file")
def test_peft_adapter(tmp_path):
    """The adapter loads onto its base model; the card names it where it is one of the hub's."""
    from huggingface_hub import ModelCard
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32)
    base = GPT2LMHeadModel(config)
    kept = {k: v.clone() for k, v in base.state_dict().items()}
    base.name_or_path = "openai-community/gpt2"
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    adapters = {}

    def save(step):
        model.save_pretrained(tmp_path / f"run/checkpoint-{step}")
        adapters[step] = {k: v.clone() for k, v in get_peft_model_state_dict(model).items()}

    def loss():
        data = tokens(32)
        return model(input_ids=data, labels=data).loss

    trained(model, loss, save)
    synthesized(tmp_path / "run", tmp_path / "merged")
    fresh = GPT2LMHeadModel(config)
    fresh.load_state_dict(kept)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "merged")
    assert_mean(get_peft_model_state_dict(loaded), adapters)
    card = ModelCard.load(tmp_path / "merged/README.md")
    assert card.data.base_model == "openai-community/gpt2"
    assert card.data.library_name == "peft"


def test_lora_of_diffusers(tmp_path):
    """``pytorch_lora_weights.safetensors`` in a checkpoint's directory stays what it is."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    stored = {}
    torch.manual_seed(2)
    value = torch.randn(4, 8)
    for step in STEPS:
        value = value + 0.1 * torch.randn_like(value)
        name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        layers = {f"{name}.lora_A.weight": value, f"{name}.lora_B.weight": value.T.contiguous()}
        Loader.save_lora_weights(tmp_path / f"run/checkpoint-{step}", unet_lora_layers=layers)
        stored[step] = {f"unet.{k}": v for k, v in layers.items()}
    synthesized(tmp_path / "run", tmp_path / "merged")
    state, _ = Loader.lora_state_dict(tmp_path / "merged")
    assert_mean(state, stored)


def test_lora_of_kohya(tmp_path):
    """A file stays a file that diffusers reads; it is known by the hashes of its own values."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    stored = {}
    (tmp_path / "run").mkdir()
    torch.manual_seed(2)
    up = torch.randn(8, 2)
    for step in STEPS:
        up = up + 0.1 * torch.randn_like(up)
        block = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
        name = f"{block}_attn1_to_q"
        stored[step] = {
            f"{name}.lora_up.weight": up,
            f"{name}.lora_down.weight": up.T.contiguous(),
            f"{name}.alpha": torch.tensor(2.0),
        }
        metadata = {
            "ss_steps": str(step),
            "ss_network_dim": "2",
            "sshs_model_hash": "ab" * 32,
            "sshs_legacy_hash": "0123abcd",
            "modelspec.hash_sha256": "0x" + "cd" * 32,
        }
        save_file(stored[step], tmp_path / f"run/style-step{step:08d}.safetensors", metadata)
    synthesized(tmp_path / "run", tmp_path / "style.safetensors", "-j", 2)
    out = tmp_path / "style.safetensors"
    assert_mean(load_file(out), stored)
    with safe_open(out, framework="pt") as file:
        told = file.metadata()
    data = out.read_bytes()
    digest = sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert told["sshs_model_hash"] == digest
    assert told["modelspec.hash_sha256"] == f"0x{digest}"
    assert told["ss_network_dim"] == "2"
    assert "sshs_legacy_hash" not in told
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(out)
    assert len(state) == 2
    assert list(alphas.values()) == [2.0]
    assert phema("verify", out, tmp_path / "run", "--full").code == 0
    out.write_bytes(data.replace(digest.encode(), b"0" * 64, 1))
    done = phema("verify", out, tmp_path / "run", "--full")
    assert done.code == 1
    assert "the hash in its metadata differs" in done.err


def test_model_card(tmp_path):
    """The hub's parser reads every source and weight, and the command makes the same output."""
    from huggingface_hub import ModelCard

    for step, state in zip(STEPS, walk(), strict=True):
        home = tmp_path / f"run/checkpoint-{step}"
        home.mkdir(parents=True)
        save_file(state, home / "model.safetensors")
        (home / "config.json").write_text('{"model_type": "gpt2"}')
    asked = ("run", "--raw", "-g", "3,7", "--profile", "checkpoints:last=2")
    done = phema("synthesize", *asked, "--exclude", "*-20", "-j", "1", cwd=tmp_path)
    made = [tmp_path / line for line in done.out.splitlines()]
    weights = phema("weights", *asked, "--exclude", "*-20", "--json", cwd=tmp_path).json["targets"]
    for path, target in zip(made, weights, strict=True):
        card = ModelCard.load(path / "README.md").data
        says = card.to_dict()["phema"]
        assert card.library_name == "transformers"
        assert "checkpoint-averaging" in card.tags
        assert says["target"] == target["profile"]
        told = {s["name"]: s["weight"] for s in says["sources"]}
        assert told == {s["name"]: s["weight"] for s in target["sources"] if s["weight"]}
        assert " -j" not in says["command"]
        again = shlex.split(says["command"])
        assert phema(*again[1:], "-o", "again", cwd=tmp_path).code == 0
        for file in ("model.safetensors", "README.md", "config.json"):
            assert (tmp_path / "again" / file).read_bytes() == (path / file).read_bytes()
        for file in (tmp_path / "again").iterdir():
            file.unlink()


def walk():
    """A small walk, a state for each step."""
    torch.manual_seed(3)
    a, b = torch.randn(30, 20), torch.randn(7)
    for _ in STEPS:
        a, b = a + 0.1 * torch.randn_like(a), b + 0.1 * torch.randn_like(b)
        yield {"a": a, "b": b}


@pytest.fixture
def folders(tmp_path):
    """Checkpoints that are directories, each with a config."""
    for step, state in zip(STEPS, walk(), strict=True):
        home = tmp_path / f"run/checkpoint-{step}"
        home.mkdir(parents=True)
        save_file(state, home / "model.safetensors")
        (home / "config.json").write_text(json.dumps({"step": step}))
    return tmp_path / "run"


def test_weights_alone(tmp_path, folders):
    """--no-side-files leaves all others out; a name of a file gives that file alone."""
    synthesized(folders, tmp_path / "merged", "--no-side-files")
    assert [p.name for p in (tmp_path / "merged").iterdir()] == ["model.safetensors"]
    done = synthesized(folders, tmp_path / "merged.safetensors")
    assert "copied" not in done.err
    one = load_file(tmp_path / "merged/model.safetensors")
    other = load_file(tmp_path / "merged.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("shape", [("--no-side-files",), ("--max-shard-size", "1KB")])
def test_a_card_goes_with_its_weights(tmp_path, folders, shape):
    """Weights that replace others leave no card of these; what else lies there stays."""
    out, asked = tmp_path / "merged", ("synthesize", folders, "--raw", "--trust-tags", "-g")
    synthesized(folders, out)
    assert "phema synthesize" in (out / "README.md").read_text()
    alone = ("-o", out, "--no-side-files", *shape)
    assert phema(*asked, 4, *alone).code == 2
    assert (out / "README.md").exists()
    assert phema(*asked, 4, *alone, "--overwrite").code == 0
    names = {p.name for p in out.iterdir()}
    assert "README.md" not in names
    assert "config.json" in names
    (out / "README.md").write_text("mine")
    assert phema(*asked, 3, *alone, "--overwrite").code == 0
    assert (out / "README.md").read_text() == "mine"


def test_a_card_goes_with_a_file_of_its_name_alone(tmp_path, folders):
    """Another file beside the weights is not what the card speaks of."""
    out, asked = tmp_path / "merged", ("synthesize", folders, "--raw", "--trust-tags", "-g", 4)
    synthesized(folders, out)
    for name, stays in (("other.safetensors", True), ("model.safetensors", False)):
        for _ in range(2):
            assert phema(*asked, "-o", out / name, "--overwrite").code == 0
        assert (out / "README.md").exists() is stays


def test_what_stands_beside_is_of_the_targets_source(tmp_path, folders):
    """An earlier target has the files of its own time."""
    synthesized(folders, tmp_path / "merged", "--step", 60)
    assert json.loads((tmp_path / "merged/config.json").read_text()) == {"step": 60}


@pytest.mark.linux("a named pipe")
def test_nothing_is_followed(tmp_path, folders):
    """Links, pipes, directories and what is too large stay where they are, and that is told."""
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    newest = folders / "checkpoint-80"
    (newest / "linked.json").symlink_to(secret)
    os.mkfifo(newest / "pipe.json")
    (newest / "folder.json").mkdir()
    (newest / ".hidden.json").write_text("{}")
    with (newest / "huge.json").open("wb") as stream:
        stream.truncate(1 << 40)
    done = synthesized(folders, tmp_path / "merged")
    told = " ".join(done.err.split())
    assert "not copied: linked.json is a link" in told
    assert "not copied: huge.json is too large" in told
    assert sorted(p.name for p in (tmp_path / "merged").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    quiet = phema("synthesize", folders, "--profile", "checkpoints:last=3", "-q", cwd=tmp_path)
    assert quiet.err == ""


def test_what_is_there_is_not_replaced_unasked(tmp_path, folders):
    """A README of the user's counts as an output that exists."""
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/README.md").write_text("mine")
    asked = ("synthesize", folders, "--profile", "checkpoints:last=3", "-o", tmp_path / "merged")
    done = phema(*asked)
    assert done.code == 2
    assert "exists already" in done.err
    assert [p.name for p in (tmp_path / "merged").iterdir()] == ["README.md"]
    assert phema(*asked, "--overwrite").code == 0
    assert phema(*asked).code == 2
    assert phema(*asked, "--skip-existing").code == 0


@pytest.mark.parametrize(
    ("output", "targets", "made"),
    [
        ("new", "3", ["new"]),
        ("new/", "3", ["new/phema-step0000080-gamma3"]),
        ("new", "3,4", ["new/phema-step0000080-gamma3", "new/phema-step0000080-gamma4"]),
        ("new-{gamma}", "3,4", ["new-3", "new-4"]),
        (".", "3", ["phema-step0000080-gamma3"]),
        (None, "3", ["phema-step0000080-gamma3"]),
    ],
)
def test_names_of_directories(tmp_path, folders, output, targets, made):
    """One output is what -o says; several, and those of a name with a slash, are inside of it."""
    asked = ("synthesize", folders, "--raw", "-g", targets, *(("-o", output) if output else ()))
    done = phema(*asked, cwd=tmp_path)
    assert done.out.splitlines() == made
    assert all((tmp_path / name / "config.json").is_file() for name in made)


def test_a_source_that_changes(tmp_path, folders, monkeypatch):
    """A file that grows between plan and copy is an error, and nothing stays."""
    config = folders / "checkpoint-80/config.json"
    begin = Staging.open

    def growing(staging):
        config.write_text(config.read_text() + " " * 100)
        begin(staging)

    monkeypatch.setattr(Staging, "open", growing)
    done = phema(
        "synthesize", folders, "--profile", "checkpoints:last=3", "-o", tmp_path / "merged"
    )
    assert done.code == 3
    assert "config.json: changed while it was read" in done.err
    assert not (tmp_path / "merged").exists()
    assert not list(Path(tmp_path).glob("*.partial"))


def mean(folder, out, *more):
    """The call that most of these tests are about."""
    asked = ("synthesize", folder, "--profile", "checkpoints:last=3", "-o", out)
    return phema(*asked, *more, verified=False)


def test_other_weights_in_the_directory_stay(tmp_path, folders):
    """--overwrite replaces the model, not the adapter or the distributed checkpoint beside it."""
    out = tmp_path / "out"
    assert mean(folders, out).code == 0
    for name in ("adapter_model.safetensors", ".metadata", "__0_0.distcp", "notes.txt"):
        (out / name).write_bytes(b"mine")
    (out / "model-00001-of-00002.safetensors").write_bytes(b"of a model before")
    assert mean(folders, out, "--overwrite").code == 0
    assert {p.name for p in out.iterdir() if p.read_bytes() == b"mine"} == {
        *("adapter_model.safetensors", ".metadata", "__0_0.distcp", "notes.txt"),
    }
    assert not (out / "model-00001-of-00002.safetensors").exists()


def test_skipping_needs_the_output_itself(tmp_path, folders):
    """Another kind of weights, a file, or what was interrupted is no output that exists."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "adapter_model.safetensors").write_bytes(b"mine")
    assert mean(folders, out, "--skip-existing").code == 0
    assert (out / "model.safetensors").exists()
    (tmp_path / "out.partial").mkdir()
    assert mean(folders, out, "--skip-existing").code == 2
    (tmp_path / "file").write_text("mine")
    done = mean(folders, tmp_path / "file", "--skip-existing")
    assert done.code == 2
    assert "is a file, and the output is a directory" in done.err


def test_an_output_in_the_root_of_the_run(folders):
    """It is the checkpoint that the directory is, whatever lies below."""
    assert mean(folders, folders).code == 0
    assert phema("verify", folders, folders, "--raw").code == 0
    assert phema("diff", folders, folders).code == 0


def test_notices_are_told_once(tmp_path, folders):
    """However many outputs get the same files."""
    asked = ("synthesize", folders, "--raw", "-g", "3,4,5", "-o", tmp_path / "o/")
    done = phema(*asked)
    assert done.err.count("copied with the weights") == 1


def test_a_sweep_leaves_what_is_not_its_own(tmp_path, folders):
    """Directories that were there are not taken, those that it made are gone as a whole."""
    first = tmp_path / "swept/phema-step0000080-checkpoints-last2"
    first.mkdir(parents=True)
    (first / "README.md").write_text("mine")
    asked = ("sweep", folders, "--profile", "checkpoints:last=2", "--profile", "checkpoints:last=3")
    options = ("-o", tmp_path / "swept", "--keep", "none", "--minimize", "--eval", "echo 1 {path}")
    done = phema(*asked, *options)
    assert done.code == 2
    assert "exists already" in done.err
    assert (first / "README.md").read_text() == "mine"
    (first / "README.md").unlink()
    first.rmdir()
    assert phema(*asked, *options).code == 0
    assert not list((tmp_path / "swept").glob("phema-*"))


@pytest.mark.parametrize("name", ['it\'s "quoted": #1', "ünï-😀", "a\x85b\u2028c", "x\x7fy"])
def test_card_of_odd_names(tmp_path, name):
    """The hub's parser gets every name back, and the text stays in its lines."""
    from huggingface_hub import ModelCard

    (tmp_path / "run").mkdir()
    for number, state in enumerate(walk()):
        save_file(state, tmp_path / f"run/{name}{'abcd'[number]}.safetensors")
    parts = {"a": 1e-5, "b": 0.5, "c": 0.49999}
    weights = {f"{name}{letter}.safetensors": weight for letter, weight in parts.items()}
    (out,) = phema_cli.synthesize(
        tmp_path / "run", weights=weights, output=tmp_path / "o", max_shard_size=500
    )
    says = ModelCard.load(out / "README.md").data.to_dict()["phema"]
    assert {s["name"]: s["weight"] for s in says["sources"]} == weights
    assert says["merge_method"] == "exact"
    assert "step" not in says
