"""Trainers: what each leaves on disk is taken for what it is, and put together rightly."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import phema_cli
from phema_cli.errors import PhemaError
from phema_cli.formats.reader import FileReader
from phema_cli.pack.plan import make_plan
from phema_cli.pack.request import PackRequest
from phema_cli.pack.write import write
from phema_cli.snapshots import scan
from phema_cli.trainers.registry import TRAINERS, parse_law
from tests.pages import ROOT
from tests.runs import base, diffusion, language, libraries, refused, vision

CODE = ROOT / "phema_cli"
MODULES = {Path(str(vars(t)["__file__"])).stem: t for t in TRAINERS}
LONGEST = 200
#: modules that register fixtures.
WRITERS = (diffusion, language, libraries, vision)

# What the libraries themselves complain about is not ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings(
        "ignore::lightning.fabric.utilities.rank_zero.LightningDeprecationWarning"
    ),
]


@pytest.mark.parametrize("trainer", [t.NAME for t in TRAINERS])
def test_every_trainer_has_a_fixture(trainer):
    """A module without files to show that it is right is not finished."""
    written = [whose for whose, _ in base.FIXTURES] + [{name} for name, _ in refused.CASES]
    assert any(trainer in whose for whose in written)


def test_fixtures_are_of_trainers():
    """No fixture names a trainer that there is none of."""
    known = {t.NAME for t in TRAINERS}
    assert all(whose <= known for whose, _ in base.FIXTURES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whose", "write"), [pytest.param(w, f, id=f.__name__) for w, f in base.FIXTURES]
)
def test_what_a_trainer_leaves(whose, write, tmp_path):
    """Its series, laws, times and names are right, and so is what is made of them."""
    root = tmp_path / "run"
    root.mkdir()
    left = write(root)
    found = scan([left.folder], left.said)
    _check_scan(found, left, whose)
    _check_values(found, left)
    _check_packed(left, tmp_path / "packed")
    _check_raw(left)
    _check_hint(left)
    error = _check_result(left, tmp_path / "out.safetensors")
    if any(s.tag.profile.sparse for s in found.snapshots):
        made = phema_cli.average([left.folder], gamma=base.GAMMA, config=left.said)
        assert error < 2 * made.figures.expected_error


def _check_scan(found, left, whose):
    """What the scan says of the files."""
    errors = [str(f.error) for f in found.findings if f.level == "error"]
    assert not errors, errors[0]
    assert {s.name for s in found.snapshots if not whose <= set(s.trainers)} == left.unmarked
    keys = {_label(law): key for law, key in left.series.items()}
    assert {s.tag.label: s.series for s in found.snapshots} == keys
    for law in left.series:
        ours = [s.tag for s in found.snapshots if s.tag.label == _label(law)]
        origin = left.origin if isinstance(left.origin, str) else left.origin[law]
        assert {(tag.unit, tag.step_origin) for tag in ours} == {(left.unit, origin)}, law
        told = law != "raw" and (left.said.average is not None or left.said.gammas != ())
        assert {tag.profile_origin == "command line" for tag in ours} == {told or left.said.raw}
        assert [tag.step for tag in ours] == pytest.approx(list(left.times)), law
    needed, known = left.called(base.parameters()), left.called(base.names()) | left.also
    for s in found.snapshots:
        own = set(s.checkpoint.tensors)
        assert needed <= own <= known, (s.name, s.series, sorted(own ^ needed)[:4])
    out = {str(f.error.where) for f in found.findings if f.error.what.startswith("left out")}
    assert out == left.left_out


def _check_values(found, left):
    """What is stored is what its law makes of the run; its profile is that law's."""
    laws = {_label(law): parse_law(law) for law in left.series}
    with FileReader() as reader:
        for s in found.snapshots:
            law, stored = laws[s.tag.label], {}
            assert s.tag.profile == law.profile(s.tag.step)
            for name in left.called(base.parameters()):
                extent = s.checkpoint.tensors[name]
                raw = bytearray(extent.elements * extent.dtype.bits // 8)
                reader.read_elements(extent, 0, memoryview(raw))
                stored[name] = torch.frombuffer(raw, dtype=getattr(torch, extent.dtype.label))
            assert base.inexact(stored, law, s.tag.step, left) < left.inexact, s.name


def _check_packed(left, folder):
    """Packed, they are averages of the same laws and times, of the same tensors."""
    found = scan([left.folder], replace(left.said, trust_tags=True))
    write(make_plan(found, PackRequest(output=str(folder), config=left.said)))
    one, other = (sorted(map(_identity, s.require())) for s in (found, scan([folder])))
    assert one == other


def _identity(snapshot):
    """What a snapshot is, whatever file it is in."""
    profile = snapshot.tag.profile
    names = sorted(snapshot.checkpoint.tensors)
    return (*profile.breaks, profile.exponent, snapshot.partial, *names)


def _check_raw(left):
    """Raw weights can be taken without the averages beside them."""
    if "raw" in left.series and len(left.series) > 1:
        found = scan([left.folder], replace(left.said, raw=True, average=None, gammas=()))
        assert [s.tag.step for s in found.require()] == pytest.approx(list(left.times))
        assert {s.tag.label for s in found.snapshots} == {"raw"}


def _label(text):
    """What tables show of a law."""
    law = parse_law(text)
    return law.text if law.gamma is None else f"gamma {law.gamma:.10g}"


def _check_hint(left):
    """Where the user has to say something, the error says what, and what is usual."""
    if left.hint is None:
        return
    silent = replace(left.said, average=None, gammas=(), steps_per_epoch=None)
    with pytest.raises(PhemaError) as caught:
        scan([left.folder], silent).require()
    assert left.hint in str(caught.value)


def _check_result(left, out):
    """A synthesis is as near to the true average as its sources allow; returns its error."""
    (made,) = phema_cli.synthesize(
        [left.folder], gamma=base.GAMMA, output=out, config=left.said, jobs=1
    )
    tensors = load_file(made)
    error = base.error(tensors, left)
    assert error < left.error
    assert set(tensors) <= left.called(base.names()) | left.also
    if "raw" in left.series and left.whole:
        assert set(tensors) >= left.called(base.names())
    assert all(torch.isfinite(t.double()).all() for t in tensors.values())
    return error


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.__name__) for _, case in refused.CASES]
)
def test_what_cannot_be_averaged(case, tmp_path):
    """Files of a trainer that hold no whole weights are refused with the tool that gathers them."""
    message = case(tmp_path)
    with pytest.raises(PhemaError, match=message):
        scan([tmp_path], base.RAW).require()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_say_what_they_are(name):
    """Each module has what the documentation shows of it, and is short."""
    module = MODULES[name]
    for field in ("NAME", "SOURCE"):
        assert isinstance(getattr(module, field), str)
        assert getattr(module, field)
    assert module.__doc__
    assert len(Path(module.__file__).read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_names_are_unique():
    """Messages that name a trainer name one."""
    names = [t.NAME for t in TRAINERS]
    assert len(set(names)) == len(names)


def test_nobody_else_names_a_trainer():
    """What is known of a trainer stands in its module: no other code has its name.

    EDM2's files are a format as well.
    """
    names = {t.NAME for t in TRAINERS} - NAMED_ELSEWHERE
    found = {}
    for path in sorted(CODE.rglob("*.py")):
        inside = path.relative_to(CODE).as_posix()
        if inside.startswith(ELSEWHERE):
            continue
        text = _code(path)
        if said := {n for n in names if re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", text)}:
            found[inside] = said
    assert found == {}


#: what a law's source is, and what trains beside the tracker.
ELSEWHERE = ("trainers/", "integrations/", "tracker/", "profiles/laws.py")
#: names that are words of their own, or of a format, or of phema.
NAMED_ELSEWHERE = {"phema", "EDM2", "Cosmos", "Composer", "Hugging Face"}


def _code(path):
    """The texts of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    strings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in strings
    ]
    return "\n".join(texts)
