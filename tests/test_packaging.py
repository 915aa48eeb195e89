"""What is published: the wheel, its metadata, and that it needs nothing which it does not name."""

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from phema_cli import __version__
from tests.pages import README, ROOT, blocks, without_measured

CONTAINER = ROOT / "Containerfile"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from what the container copies, without the network."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    text = CONTAINER.read_text(encoding="utf-8")
    for copied in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for name in copied.split():
            kind = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            kind(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", "-w", made, source], check=True)
    (path,) = made.iterdir()
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    """The metadata of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.mark.slow
def test_the_wheel_has_the_names_and_the_licence(wheel, metadata):
    """Distribution, package and command have their names; types come along, tests do not."""
    assert wheel.name == f"phema_cli-{__version__}-py3-none-any.whl"
    assert (metadata["Name"], metadata["License-Expression"]) == ("phema-cli", "MIT")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry,) = [n for n in names if n.endswith("entry_points.txt")]
        assert archive.read(entry).decode().split() == [
            *("[console_scripts]", "phema", "=", "phema_cli.__main__:run")
        ]
    assert {n.partition("/")[0] for n in names} == {
        "phema_cli",
        f"phema_cli-{__version__}.dist-info",
    }
    assert "phema_cli/py.typed" in names
    systems = [c for c in metadata.get_all("Classifier") if c.startswith("Operating System")]
    assert len(systems) == 3


@pytest.mark.slow
def test_the_description_leads_nowhere_else(metadata):
    """A package index shows the README without the repository: no relative link or picture."""
    text = metadata.get_payload(decode=True).decode()
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all(t.startswith("https://") for t in targets)
    assert "`docs/formats.md`" in text
    assert "<img" not in text


def requirements(names):
    """The distributions that these need, with themselves."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            needed = map(Requirement, distribution(name).requires or ())
            waiting += [r.name for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture
def environment(wheel, metadata, tmp_path):
    """A virtual environment with the wheel and what its metadata requires, and no more."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*command, "--no-index", "--no-deps", wheel], check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    for name in requirements(r.name for r in required if r.marker is None):
        files = distribution(name).files
        for first in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (packages / first).exists():
                (packages / first).symlink_to(distribution(name).locate_file(first))
    return python.parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="links to packages need rights on Windows")
def test_the_first_screen_needs_only_what_is_required(environment, tmp_path):
    """The README's first commands work with torch and the other requirements, and show the same."""
    kept = {"PATH": f"{environment}:/usr/bin:/bin", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    kept |= {"HOME": str(tmp_path), "PYTHONIOENCODING": "utf-8"}

    def said(command):
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=tmp_path,
            env=kept,
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return done.stderr + done.stdout

    where = 'python -c "import phema_cli; print(phema_cli.__file__)"'
    assert Path(said(where).strip()).is_relative_to(tmp_path)
    assert subprocess.run(
        [environment / "python", "-c", "import matplotlib"], capture_output=True, check=False
    ).returncode
    said("phema demo demo")
    first, _, _ = README.read_text(encoding="utf-8").partition("## Install")
    sessions = "".join(b.text for b in blocks(README, "console") if b.text in first)
    parts = re.split(r"^\$ ", sessions, flags=re.MULTILINE)[1:]
    assert len(parts) == 3
    for part in parts:
        command, _, shown = part.partition("\n")
        assert without_measured(said(command)) == without_measured(shown)


def test_the_citation_has_the_version():
    """CITATION.cff names the version and the licence of the package."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"]) == (__version__, "MIT")


def test_the_container_installs_what_it_copies():
    """What its commands name is in the repository, and it runs phema."""
    text = CONTAINER.read_text(encoding="utf-8")
    (copied,) = re.findall(r"^COPY (pyproject.*) \./$", text, re.MULTILINE)
    assert all(os.access(ROOT / name, os.R_OK) for name in copied.split())
    assert 'ENTRYPOINT ["phema"]' in text


def test_workflows_run_what_the_pages_say():
    """All systems and Pythons are there; the wheel runs the first screen of the README."""
    path = ROOT / ".github" / "workflows" / "test.yml"
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    minors = re.findall(r":: Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    assert jobs["test"]["strategy"]["matrix"] == {
        "os": ["ubuntu-latest", "macos-latest", "windows-latest"],
        "python": minors,
    }
    steps = [step["run"] for step in jobs["wheel"]["steps"] if "run" in step]
    first, _, _ = README.read_text(encoding="utf-8").partition("## Install")
    commands = re.findall(r"^\$ (.*?)(?: \| .*)?$", first, re.MULTILINE)
    assert len(commands) == 3
    assert set(commands) <= set(steps)
