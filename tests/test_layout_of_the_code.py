"""The pages for contributors say what the code and the Makefile are."""

import ast
import itertools
import pkgutil
import re
import tomllib

import pytest

from tests.pages import CONTRIBUTING, ROOT, blocks

CODE = ROOT / "phema_cli"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
#: lines of a module, and of a function beside its docstring.
LONGEST, SCREEN = 400, 60


def test_the_page_draws_the_floors():
    """The picture has the floors that import-linter holds, from the top down."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    (picture,) = blocks(ARCHITECTURE, "text")
    drawn = [re.match(r"\w+( \| \w+)*", line)[0] for line in picture.text.splitlines()]
    assert drawn == [layer.replace("phema_cli.", "") for layer in layers]


def test_every_package_has_a_floor():
    """No package stands beside the floors, where nothing would hold its imports."""
    (picture,) = blocks(ARCHITECTURE, "text")
    packages = {p.parent.name for p in CODE.glob("*/__init__.py")}
    assert packages <= set(re.findall(r"\w+", picture.text))


@pytest.mark.parametrize("page", [ARCHITECTURE, CONTRIBUTING], ids=lambda p: p.name)
def test_modules_that_a_page_names_exist(page):
    """A module named by its path or by its name alone is there."""
    names = {p.name for folder in (CODE, ROOT / "tests") for p in folder.rglob("*.py")}
    paths = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("*/**/*.py")}
    for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
        assert name in names or any(p.endswith(f"/{name}") or p == name for p in paths), name


def test_functions_that_the_maths_page_names_exist():
    """Every equation has its place: what the tables name is there."""
    names = []
    for table in re.split(r"\| what \| where, in ", (ROOT / "docs" / "maths.md").read_text())[1:]:
        package = re.match(r"`([\w.]+)`", table)[1]
        rows = itertools.takewhile(lambda row: row[:1] == "|", table.splitlines()[1:])
        cells = [row.rsplit("|", 2)[1] for row in rows]
        names += [f"{package}.{name}" for cell in cells for name in re.findall(r"`(.+?)`", cell)]
    assert len(names) > 20
    for name in names:
        assert pkgutil.resolve_name(name), name


def test_make_targets_of_pages_exist():
    """Contributors are told of no target that the Makefile lacks."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in (CONTRIBUTING, ARCHITECTURE, ROOT / ".pre-commit-config.yaml"):
        assert set(re.findall(r"(?:`|^|entry: )make ([a-z-]+)", page.read_text(), re.M)) <= targets


@pytest.mark.parametrize("path", sorted(CODE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_packages_hand_names_on(path):
    """An ``__init__.py`` defines nothing; the one of phema itself imports on first use."""
    defined = [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    assert defined == (["__getattr__"] if path.parent == CODE else [])


def test_modules_are_short():
    """A module has one subject and fits into a reader's head."""
    assert all(len(p.read_text().splitlines()) <= LONGEST for p in CODE.rglob("*.py"))


def test_functions_fit_on_a_screen():
    """None is longer, its docstring left out."""
    for path in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                assert lines <= SCREEN, (path, node.name)


#: methods that read and write text, and what each has to be told.
_TEXTS = {"read_text": {"encoding"}, "write_text": {"encoding", "newline"}}


@pytest.mark.parametrize("path", sorted(CODE.rglob("*.py")), ids=lambda p: p.stem)
def test_text_files_are_the_same_on_every_system(path):
    """Whoever reads or writes text says its encoding, and how lines end: Windows has others.

    What opens files is ruff's to check (PLW1514); this finds the methods of any object.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            told = {keyword.arg for keyword in node.keywords}
            assert _TEXTS.get(node.func.attr, set()) <= told, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "path", sorted((CODE.parent / "tests").rglob("*.py")), ids=lambda p: p.stem
)
def test_no_test_module_imports_another(path):
    """What several need stands in a module of its own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").rpartition(".")[2].startswith("test_"), path
