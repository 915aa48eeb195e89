"""The documents as tests see them: pages, their code blocks, and what runs a block."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.builders import PHEMA
from tests.inprocess import as_process, called, exit_code
from tests.warm import programs

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted([README, CONTRIBUTING, *(ROOT / "docs").glob("*.md")])

#: kinds of blocks that ``run`` runs; a page's blocks share a directory, and the Python ones names.
RUN = ("console", "python", "sh")
#: blocks that need more than that, and the test that has it.
ELSEWHERE = {
    ("api.md", "{eval-rst}"): "test_site.py::test_python_names_are_described",
    ("architecture.md", "text"): "test_layout_of_the_code.py::test_the_page_draws_the_floors",
    ("README.md", "sh"): "test_docs.py::test_make_targets_of_the_readme_exist",
    ("cli.md", "text"): "test_docs.py::test_reference_is_what_the_commands_say",
    ("CONTRIBUTING.md", "sh"): "test_layout_of_the_code.py::test_make_targets_of_pages_exist",
    ("CONTRIBUTING.md", "python"): "test_docs.py::test_toy_format_of_the_page_works",
    ("trainers.md", "toml"): "test_docs.py::test_toml_example_is_understood",
    ("index.md", "{include}"): "test_site.py::test_the_site_is_built_without_a_warning",
    ("index.md", "{toctree}"): "test_site.py::test_the_site_is_built_without_a_warning",
    ("json.md", "json"): "test_json.py::test_examples_of_the_page_fit_their_schemas",
    ("training.md", "python"): "test_docs.py::test_programs_of_the_training_page_leave_snapshots",
    ("packing.md", "json"): "test_packing_format.py::test_the_entry_of_the_page",
    ("packing.md", "python"): "test_packing_format.py::test_the_reader_of_the_page",
    ("sweep.md", "json"): "test_sweep.py::test_the_page_shows_the_first_line_of_the_results",
    ("pipelines.md", "yaml"): "test_pipelines.py::test_the_action_does_what_it_says",
}
#: figures that depend on the machine's arithmetic: those of trained weights, and what is drawn of
#: them, by bars or in a chart.
_NUMBER = r"(?<![\w.-])(\d+\.\d+(e[+-]\d+)?|\d+e[+-]\d+)(?![\w.])"
_MEASURED = re.compile(
    r"^.*[│┤].*$|[└─┴]{9,}|"
    rf"[█▒░]{{9,}}|\d+ identical|{_NUMBER}( to {_NUMBER})?(, {_NUMBER}( to {_NUMBER})?)*",
    re.MULTILINE,
)
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: the first line of a block that is a file, after the line that names its interpreter.
_NAME = re.compile(r"\A(?:#!.*\n)?# (Makefile|[\w-]+\.\w+)$", re.MULTILINE)
#: a call of phema of which the shell does no more than to take quotes away, and what reads its
#: stdout.
_CALL = re.compile(r"phema ((?:'[^']*'|[^'\"|&;<>()$`\\*?\[\]{}~#!\n])*)(?:\| (?!.*phema)(.+))?\n?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name that it is to be saved by, which its first line says as a comment."""
        match = _NAME.match(self.text)
        return match[1] if match else None


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The code blocks of a page, all or those in one language."""
    found = [Block(*parts) for parts in _FENCE.findall(page.read_text(encoding="utf-8"))]
    return [b for b in found if language in (None, b.language)]


def runnable(page: Path) -> list[Block]:
    """The blocks of a page that are run one after another, or saved for those that follow."""
    taken = [b for b in blocks(page) if (page.name, b.language) not in ELSEWHERE]
    return [b for b in taken if b.language in RUN or b.file]


def run(page: Path, place: Path) -> None:
    """Run a page's blocks in a directory; console blocks have to show what they print."""
    # What one Python block defines the later ones know.
    space: dict[str, object] = {"__name__": "__main__"}
    for block in runnable(page):
        if block.file:
            (place / block.file).write_text(block.text)
        elif block.language == "python":
            python(block.text, place, space)
        elif block.language == "sh":
            shell(block.text, place)
        else:
            _session(block.text, place)


def python(code: str, place: Path, space: dict[str, object]) -> None:
    """Run Python code in this process as a program of its own; it has to succeed."""
    compiled = compile(code, "<block>", "exec")
    with as_process(place, environment(place)) as texts, _imports(place):
        ended = exit_code(lambda: exec(compiled, space))  # noqa: S102 - the documents' own
    assert ended == 0, f"{code}\n{texts}"


@contextmanager
def _imports(place: Path) -> Iterator[None]:
    """A directory's modules are found, and forgotten afterwards: others have the same names."""
    before = set(sys.modules)
    sys.path.insert(0, str(place))
    try:
        yield
    finally:
        sys.path.remove(str(place))
        for name in sys.modules.keys() - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(place):
                del sys.modules[name]


def environment(place: Path) -> dict[str, str]:
    """What a shell in a directory knows: that, phema, and a narrow terminal."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    path = f"{programs()}:{PHEMA.parent}:/usr/bin:/bin"
    return {"PATH": path, "COLUMNS": "80", "OMP_NUM_THREADS": "1", "HOME": str(place)} | kept


def shell(command: str, place: Path) -> str:
    """What a command prints, stderr first; it has to succeed.

    phema is called in this process, unless the shell has more to do than to start it.
    """
    call = _CALL.fullmatch(command)
    if call is None:
        return _bash(command, place)
    code, out, err = called(shlex.split(call[1]), place, environment(place))
    if call[2] is not None:
        # Of a pipe the shell has the last exit code.
        return err + _bash(call[2], place, out)
    assert code == 0, f"{command}\n{err}"
    return err + out


def _bash(command: str, place: Path, given: str = "") -> str:
    """What bash prints, stderr first."""
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=place,
        env=environment(place),
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stderr + done.stdout


def _session(text: str, place: Path) -> None:
    """Run a console block's commands; each prints what is shown, but for measured digits."""
    before, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not before
    for part in parts:
        command, _, shown = part.partition("\n")
        printed = shell(command, place)
        assert without_measured(printed) == without_measured(shown), f"$ {command}\n{printed}"


def without_measured(text: str) -> str:
    """Text with measured figures as # and single blanks."""
    return re.sub(r"\s+", " ", _MEASURED.sub("#", text)).strip()
