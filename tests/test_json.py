"""The documents of ``--json`` fit the schemas of docs/schemas, in whatever situation."""

import json
import shutil

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors import safe_open
from safetensors.torch import save_file

from tests.builders import phema, write_run
from tests.pages import ROOT, blocks
from tests.reference import COMMANDS
from tests.schemas import SCHEMAS, assert_fits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Snapshots of several kinds: ckpts/, ckpts/ with one twice, raw weights, nested files."""
    place = tmp_path_factory.mktemp("json")
    write_run(place / "ckpts")
    shutil.copytree(place / "ckpts", place / "twice")
    first = min((place / "ckpts").iterdir())
    shutil.copy(first, place / "twice" / "again1.safetensors")
    (place / "broken").mkdir()
    (place / "broken" / "a-step100-gamma5.safetensors").write_bytes(b"no header")
    (place / "raw").mkdir()
    (place / "nested").mkdir()
    for step in (100, 200, 300):
        tensors = {"w": torch.full((4,), 1.0 + step)}
        torch.save(tensors, place / "raw" / f"checkpoint-{step}.pt")
        torch.save({"ema": tensors}, place / "nested" / f"{step // 100}.{step}.pt")
        torch.save({"state_dict_ema": tensors}, place / "nested" / f"checkpoint-{step}.pth.tar")
    (place / "soup").mkdir()
    for name in ("one", "other"):
        save_file({"w": torch.ones(3)}, place / "soup" / f"{name}.safetensors")
    (place / "soup.csv").write_text("one,0.5\nother,0.5\n".replace(",", ".safetensors,"))
    for name, tensors in {
        "zeros": {"w": torch.zeros(3), "a": torch.ones(1), "c": torch.ones(2)},
        "ones": {"w": torch.ones(3), "b": torch.ones(1), "c": torch.ones(3)},
    }.items():
        save_file(tensors, place / f"{name}.safetensors")
    made = phema("synthesize", "ckpts", "-g", 7, "-q", "-o", "out.safetensors", cwd=place)
    assert made.code == 0, made.err
    return place


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("inspect ckpts", 0),
        ("inspect ckpts --no-sample --step 60", 0),
        ("inspect twice", 3),
        ("inspect broken ckpts", 3),
        ("inspect raw --raw", 0),
        ("inspect raw --average exponential:beta=0.99", 0),
        ("inspect nested --select *.tar --average uniform:last=0.2 --steps-per-epoch 7", 0),
        ("weights ckpts -g 7", 0),
        ("weights ckpts -g 7 --no-sample --method projection", 0),
        ("weights raw --profile checkpoints:last=2", 0),
        ("weights soup --weights soup.csv", 0),
        ("plot raw --raw --profile decay:last=0.5,shape=sqrt --profile checkpoints:last=2", 0),
        ("weights ckpts -s 0.1,0.2 --profile uniform:last=0.5 --profile raw", 0),
        ("synthesize ckpts -g 7 -o new/", 0),
        ("synthesize ckpts -g 7,8 --profile raw --dry-run", 0),
        ("synthesize ckpts -g 7 -o shards/ --max-shard-size 60", 0),
        ("synthesize ckpts -g 7 -o out.safetensors --skip-existing", 0),
        ("synthesize ckpts -g 7 -o out.pt --no-sample", 0),
        ("diff out.safetensors out.safetensors", 0),
        ("diff zeros.safetensors ones.safetensors", 1),
        ("verify out.safetensors", 0),
        ("verify out.safetensors ckpts", 0),
        ("pack ckpts -o packed --dry-run", 0),
        ("pack raw -o packed-raw --raw --bits 16", 0),
        ("plot ckpts -g 7 --no-sample", 0),
        ("plot ckpts -s 0.1 --profile uniform:last=0.2 -o plot.svg", 0),
        ("plot ckpts -g 7 --profile raw", 0),
        ("plan --steps 1000 --parameters 1M --schedule constant", 0),
        ("plan --steps 200 --like ckpts --gammas 5,10 --snapshots 4", 0),
        ("sweep ckpts -g 5,7 --profile raw -o swept --no-sample --eval", 0),
        ("sweep ckpts -g 5,7 --keep none --refine 0 --maximize -o none --eval", 0),
    ],
)
def test_documents_fit_their_schemas(line, code, place):
    """What is printed fits the schema, also with errors found, without a sample, without work."""
    evaluated = ["test {target} != 'gamma 7' && echo 1"] if line.endswith("--eval") else []
    run = phema(*line.split(), *evaluated, "--json", cwd=place)
    assert run.code == code, run.err
    assert_fits(run.json)
    assert run.json["schema"] == f"phema/{line.split()[0]}/1"


def test_every_command_with_json_has_a_schema():
    """A command with ``--json`` has a schema and an example on the page; no schema is idle."""
    with_json = {c for c in COMMANDS if "--json" in phema(c, "--help", COLUMNS="100").out}
    assert set(SCHEMAS) == with_json | {"common", "synthesis", "keep"}
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)
    text = (ROOT / "docs" / "json.md").read_text()
    assert all(f"## phema/{name}/1" in text for name in SCHEMAS if name != "common")


def test_examples_of_the_page_fit_their_schemas():
    """Each example of docs/json.md is whole: what the schema asks for, and no more."""
    examples = [json.loads(block.text) for block in blocks(ROOT / "docs" / "json.md", "json")]
    for example in examples:
        assert_fits(example)
    assert {e["schema"].split("/")[1] for e in examples} == set(SCHEMAS) - {"common"}


@pytest.mark.parametrize(
    "line",
    [
        "ckpts -g 7 --no-sample",
        "ckpts -g 7 --drop twin",
        "raw --profile checkpoints:last=2",
        "soup --weights soup.csv",
    ],
)
def test_records_of_outputs_fit_their_schema(line, place):
    """What an output records of its making is a document as well."""
    asked = (*line.split(), "-o", "made.safetensors", "--overwrite")
    assert phema("synthesize", *asked, cwd=place).code == 0
    with safe_open(place / "made.safetensors", "pt") as file:
        assert_fits(json.loads(file.metadata()["phema"]))


@pytest.mark.parametrize("change", [{"more": 1}, {"path": None}, {"checked": {"sources": 1}}])
def test_schemas_are_strict(change, place):
    """A field too many, one of another type or one too few is a fault."""
    document = phema("verify", "out.safetensors", "--json", cwd=place).json
    with pytest.raises(AssertionError):
        assert_fits(document | change)
