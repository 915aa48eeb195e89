"""Options are declared once: the command line and Python have the same, with the same meaning."""

import inspect
from dataclasses import fields

import pytest

import phema_cli
from phema_cli.cli.app import app, command_line
from phema_cli.errors import UsageError
from phema_cli.request import Config, Request
from phema_cli.synthesis.layout import is_complete
from tests.builders import write_run

#: what only a command line needs.
_PRINTED = {"paths", "json", "quiet"}
#: of Config: how it came about, and what only a phema.toml says.
_OURS = {"typed", "typed_files", "snapshots", "insists", "origin"}


def parameters(name):
    """The parameters of a command, by name."""
    command = command_line(app).commands[name]
    return {p.name: p for p in command.params}


def test_python_takes_the_options_of_the_command():
    """Each option is a keyword of ``phema_cli.synthesize`` or a field of its ``config``."""
    keywords = inspect.signature(phema_cli.synthesize).parameters.keys() - {"paths", "config"}
    config = {f.name for f in fields(Config)} - _OURS
    assert parameters("synthesize").keys() - _PRINTED == keywords | config


@pytest.mark.parametrize("name", ["inspect", "weights", "plot", "synthesize", "sweep", "verify"])
def test_an_option_is_the_same_wherever_it_is(name):
    """Help, default and variable are those of ``synthesize``, but for where outputs go."""
    whole = parameters("synthesize")
    for option, parameter in parameters(name).items():
        if option in whole.keys() - {"paths", "output", "overwrite"}:
            ours, theirs = whole[option], parameter
            assert (ours.help, ours.default, ours.envvar) == (
                theirs.help,
                theirs.default,
                theirs.envvar,
            )


def test_python_calls_do_as_the_command_does(tmp_path):
    """Options that only the command had: a dry run writes nothing, what exists is skipped."""
    write_run(tmp_path / "in")
    out = tmp_path / "o.safetensors"
    assert phema_cli.synthesize(tmp_path / "in", gamma=7, output=out, dry_run=True) == [out]
    assert not out.exists()
    phema_cli.synthesize(tmp_path / "in", gamma=7, output=out, max_memory=1 << 20, jobs=2)
    assert is_complete(out)
    before = out.stat().st_mtime_ns
    assert phema_cli.synthesize(tmp_path / "in", gamma=7, output=out, skip_existing=True) == [out]
    assert out.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="exists already"):
        phema_cli.synthesize(tmp_path / "in", gamma=7, output=out)


def test_a_request_that_makes_no_sense_is_refused():
    """More workers than 256, or none."""
    for jobs in (0, 257):
        with pytest.raises(UsageError, match="jobs are not from 1 to 256"):
            Request(gamma=7, jobs=jobs)


def test_a_variable_has_one_kind_of_value():
    """Whatever commands read it; what -o may be each command says itself."""
    kinds = {}
    for name in command_line(app).commands:
        for option, parameter in parameters(name).items():
            if option != "output" and parameter.envvar:
                kinds.setdefault(str(parameter.envvar), set()).add(parameter.metavar)
    assert {v: k for v, k in kinds.items() if len(k) > 1} == {}
    assert {"PHEMA_KEEP", "PHEMA_PLAN_KEEP", "PHEMA_STEPS", "PHEMA_DEMO_STEPS"} <= kinds.keys()
