"""Shells complete commands, options, their values, snapshots and the directories that hold them."""

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from phema_cli.cli import completing
from phema_cli.profiles import LAWS, PROFILES
from phema_cli.trainers.registry import LAWS as OWN
from phema_cli.trainers.registry import parse_law
from tests.pages import environment

LINES = [
    ("phema insp", ["inspect"]),
    ("phema weights --sig", ["--sigma-rel", "--sigma-rels"]),
    ("phema synthesize --method ", ["blue", "normalized", "projection"]),
    ("phema synthesize --format s", ["safetensors"]),
    ("phema synthesize --dtype b", ["bfloat16"]),
    ("phema synthesize --profile r", ["raw"]),
    ("phema inspect ", ["ckpts/", "docs/", "run/", "runs/", "sharded/", "top.ckpt"]),
    ("phema inspect ckpts/ ru", ["run/", "runs/"]),
    ("phema inspect runs/", ["runs/first/tries/"]),
    ("phema inspect ckpts/ckpts/../x", ["ckpts/ckpts/../x-step1.pt"]),
    ("phema diff t", ["top.ckpt"]),
    ("phema verify top.ckpt ck", ["ckpts/"]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Directories with snapshots, without, on the way to some, and with names that need quotes."""
    place = tmp_path_factory.mktemp("completion")
    for name in (
        "ckpts/ckpts/y.safetensors",
        "ckpts/x-step1.pt",
        "run/checkpoint-10/model.safetensors",
        "runs/first/tries/z.pkl",
        "docs/page.md",
        "with blank/x.pt",
        ".hidden/x.pt",
        "sharded/step-1/__0_0.distcp",
        "top.ckpt",
        "note.txt",
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    return place


def script(shell):
    """A shell's command that turns completion on."""
    return {
        "bash": 'eval "$(_PHEMA_COMPLETE=source_bash phema)"',
        "zsh": 'autoload -U compinit; compinit -u; eval "$(_PHEMA_COMPLETE=source_zsh phema)"',
        "fish": "_PHEMA_COMPLETE=source_fish phema | source",
    }[shell]


def ask(shell, code, place):
    """What a shell's script prints."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    bare = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    return subprocess.run(
        [shell, *bare, "-c", f"{script(shell)}\n{code}"],
        cwd=place,
        env=environment(place) | {"TERM": "dumb"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.slow
def test_bash_gets_candidates(place):
    """The function that bash calls, given the words and the cursor, gives the candidates."""
    code = "complete -p phema\n"
    for line, _ in LINES:
        words = [*shlex.split(line), *([""] if line.endswith(" ") else [])]
        code += f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n"
        code += '_phema_completion phema; echo "${COMPREPLY[*]}"\n'
    declared, *answers = ask("bash", code, place).splitlines()
    assert "-F _phema_completion phema" in declared
    assert [sorted(a.split()) for a in answers] == [sorted(expected) for _, expected in LINES]


@pytest.mark.slow
def test_fish_gets_candidates(place):
    """What fish would complete a line by are the candidates; snapshots come with a word."""
    code = "".join(f"complete -C {shlex.quote(line)}; echo =\n" for line, _ in LINES)
    answers = ask("fish", code, place).split("=\n")[:-1]
    found = [sorted(row.partition("\t")[0] for row in a.splitlines()) for a in answers]
    assert found == [sorted(expected) for _, expected in LINES]
    assert "ckpts/\tsnapshots\n" in "".join(answers)


@pytest.mark.slow
def test_completion_installs_itself(place):
    """``--install-completion`` knows the shell that it is called from, for which it stays."""
    code = "phema --install-completion\nbash --rcfile ~/.bashrc -ic 'complete -p phema'"
    assert "-F _phema_completion phema" in ask("bash", code, place).splitlines()[-1]


def typed(shell, keys, place):
    """The line that an interactive shell makes of keys."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    bare = {"bash": ["--norc"], "zsh": ["-f"]}[shell]
    master, slave = pty.openpty()
    with subprocess.Popen(
        [shell, *bare, "-i"],
        cwd=place,
        env=environment(place) | {"TERM": "dumb"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        os.write(master, f"{script(shell)}; echo rea''dy\n".encode())
        read(master, "ready\r\n")
        # Back to the beginning of the line, which is shown instead of run.
        os.write(master, f"{keys}\x01echo line: \nexit\n".encode())
        shown = read(master, None)
        process.kill()
    os.close(master)
    return re.findall(r"^line: (.*)\r$", shown, re.MULTILINE)


def read(terminal, until):
    """What a terminal shows until a text, or until its end; at most for a minute."""
    shown, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline and not (until and until in shown):
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 4096).decode()
            except OSError:  # the other end is closed
                break
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("phema insp\tck\t", "phema inspect ckpts"),
        ("phema synthesize runs/\t--meth\tb\t", "phema synthesize runs/first/tries/ --method blue"),
        ("phema inspect with\t", "phema inspect with blank"),
    ],
)
def test_keys_complete_a_line(shell, keys, line, place):
    """In an interactive shell the key completes what is unique; names with blanks get quoted."""
    # Zsh takes a slash at the end away again when something else than a name follows.
    assert [text.strip(" /") for text in typed(shell, keys, place)] == [line]


@pytest.mark.slow
def test_completion_is_without_torch(place):
    """No candidates of any kind need torch."""
    code = (
        "import sys; from phema_cli.cli import completing as c\n"
        "assert c.paths('')\n"
        "for f in (c.methods, c.formats, c.dtypes, c.profiles, c.averages):\n"
        "    assert f()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=place, check=True)


def test_profiles_that_are_offered_are_profiles():
    """Each kind of profile and each decay law is offered, and what is offered is understood."""
    kinds = {text.partition(":")[0] for text in completing.PROFILES}
    assert kinds == {*PROFILES, "checkpoints", "csv"}
    offered = completing.averages()
    assert {text.partition(":")[0] for text in offered} == {*LAWS, *OWN}
    for text in offered:
        parse_law(text)


def test_snapshots_come_first(place, monkeypatch):
    """Directories that hold snapshots come before checkpoints, and these before other ones."""
    monkeypatch.chdir(place)
    assert completing.paths("") == [
        ("ckpts/", "snapshots"),
        ("run/", "snapshots"),
        ("sharded/", "snapshots"),
        ("top.ckpt", "checkpoint"),
        ("docs/", "directory"),
        ("runs/", "directory"),
    ]


def test_huge_and_forbidden_directories_are_no_trouble(place, monkeypatch):
    """What can't be listed or named has no candidates."""
    monkeypatch.chdir(place)
    assert completing.paths("ckpts/none/") == []
    assert completing.paths("s3://bucket/") == []
    assert completing.paths("~nobody-of-this-name/") == []
    assert completing.paths("with") == []
