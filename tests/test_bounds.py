"""Bounds on what a phema.toml, a name, a template, a config or a count can ask for.

What would take for ever has to end within a limit of the processor's time that is far above what a
run takes; it is never measured how long one did take.
"""

import json
import random
import struct
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import pytest
import torch
from safetensors.torch import load_file, save_file

import phema_cli
from phema_cli.errors import InputError, UsageError
from phema_cli.globs import Globs
from phema_cli.profiles import PowerProfile
from phema_cli.snapshots import Config, pattern, scan
from phema_cli.synthesis.names import output_paths
from tests.builders import phema, write_run
from tests.limits import private_memory, stopped
from tests.requests import SETTINGS, diffusers

#: of the processor's time and memory, for a run that takes 3 s and 0.3 GiB.
SECONDS, BYTES = 30, 2 << 30


def limited(*arguments, cwd=None):
    """Exit code, stdout and stderr of a run that is ended at the limits."""
    with stopped(SECONDS), private_memory(BYTES):
        done = phema(*arguments, cwd=cwd, verified=False)
    return done.code, done.out, done.err


def refused(ended, code, *words):
    """Whether a run ended with the exit code and one line that has the words."""
    assert (ended[0], ended[1], ended[2].count("\n")) == (code, "", 1), ended
    assert ended[2].startswith("phema: ")
    assert all(word in ended[2] for word in words), ended[2]


@pytest.fixture
def ckpts(tmp_path):
    """A run of eight snapshots."""
    write_run(tmp_path / "run")
    return tmp_path / "run"


# --- patterns and globs ---------------------------------------------------------------------------


def test_a_pattern_that_takes_long_to_compile(ckpts):
    """A phema.toml of 224 KB whose pattern takes a minute and more to compile is refused."""
    classes = r"[\x00-\U0010ffff]" * 13_000
    (ckpts / "phema.toml").write_text(f"pattern = '(?i)(?P<step>{classes})'")
    refused(limited("synthesize", ckpts, "-g", "7", "-q"), 3, "phema.toml", "characters")


def test_compiling_a_pattern_is_ended(monkeypatch):
    """A short pattern may take long too: the processor's time is bounded as well."""
    monkeypatch.setattr(pattern, "_MOST_SECONDS", 0.01)
    pattern.compile_pattern.cache_clear()
    slow = r"(?i)(?P<step>" + r"[\x00-\U0010ffff]" * 57 + ")"
    with pytest.raises(UsageError, match="too long to compile"):
        pattern.compile_pattern(slow)


def test_a_pattern_that_is_slow_on_many_paths():
    """Paths share what time there is: of many slow ones the sum is bounded, not each alone."""

    def all_paths(search):
        for number in range(100_000):
            search(PurePosixPath("a" * 17 + str(number)))

    with (
        pattern.searching(r"(?P<step>(a|a)*)#") as search,
        pytest.raises(InputError, match="too long"),
    ):
        all_paths(search)


def base36(number):
    """A number in three characters."""
    return "".join("0123456789abcdefghijklmnopqrstuvwxyz"[number // 36**n % 36] for n in range(3))


def write_wide(folder, text):
    """Two snapshots of 1,000 tensors, and a phema.toml."""
    folder.mkdir()
    tensors = {f"layer.{n:04d}.weight": torch.ones(1) for n in range(1000)}
    for step in (50, 100):
        save_file(tensors, folder / f"step{step}-gamma5.safetensors", {"gamma": "5", "step": "9"})
        path = folder / f"step{step}-gamma5.safetensors"
        save_file(tensors, path, {"gamma": "5", "step": str(step)})
    (folder / "phema.toml").write_text(text)
    return folder


def test_many_globs(tmp_path):
    """33,500 globs with wildcards are refused; any number of names is not, nor the worst 8 KB."""
    globs = json.dumps(["*" + base36(n) for n in range(33_500)], separators=(",", ":"))
    run = write_wide(tmp_path / "run", f"copy = {globs}")
    refused(limited("synthesize", run, "-g", "7", "-q"), 3, "phema.toml", "8192")
    names = json.dumps([f"layer.{n:04d}.x" for n in range(14_000)], separators=(",", ":"))
    (run / "phema.toml").write_text(f"copy = {names}")
    assert limited("inspect", run, "-q", "--no-sample")[0] == 0
    worst = json.dumps(["*e*e*e*e*e*e*e*e*e*e*e*e*e*e*#" + f"{n:03d}" for n in range(240)])
    (run / "phema.toml").write_text(f"copy = {worst}\nexclude = {worst}\ndrop = {worst}")
    assert limited("inspect", run, "-q", "--no-sample")[0] == 0


def test_globs_are_those_of_fnmatch():
    """Whatever globs and names are made of, together they match what each does for itself."""
    draw = random.Random(0)  # noqa: S311 - globs, not secrets
    for _ in range(20_000):
        globs = ["".join(draw.choices("ab*?[]!-\n*", k=draw.randrange(8))) for _ in range(3)]
        name = "".join(draw.choices("ab]!-[\n*", k=draw.randrange(7)))
        matched = [fnmatchcase(name, g) for g in globs]
        made = Globs(globs)
        assert made(name) == any(matched), (globs, name)
        assert made.unused([name]) == {g for g, m in zip(globs, matched, strict=True) if not m}


def test_globs_have_bounds():
    """A glob is no longer than a path, and wildcards have their limit; names have none."""
    assert Globs(["a"] * 100_000 + ["b" * 4096])("a")
    for globs in (["a" * 4097], ["*" * 4097], ["*" * 1000 + str(n) for n in range(9)]):
        with pytest.raises(UsageError, match=r"4096|8192"):
            Globs(globs)


def test_what_a_toml_lists_is_bounded(ckpts):
    """A thousand gammas, laws or keys: 60,000 took seconds, each for itself."""
    for name, value in (("sigma_rels", "0.1"), ("average", "'raw'"), ("key", "'a'")):
        (ckpts / "phema.toml").write_text(f"{name} = [{f'{value},' * 20_000}]")
        with pytest.raises(InputError, match="1000"):
            scan([ckpts])


# --- templates and counts -------------------------------------------------------------------------

TEMPLATES = [
    *(
        "{gamma:>1000000000}",
        "{step:0999}",
        "{gamma:.1000}",
        "{step[0]}",
        "{step.real}",
        "{step!r}",
    ),
    *("{gamma.__class__}", "{gamma:{step}}", "{}", "{0}", "{gamma", "}", "{step:,}"),
    *("{step:c}", "{unknown}", "{step:x}", "{gamma:/>9}"),
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_are_plain(template):
    """A placeholder is a name, padded or rounded a little; all else is a usage error."""
    with pytest.raises(UsageError, match="placeholder or format"):
        output_paths(f"{{gamma}}{template}", [PowerProfile(5.0, 100.0)], 100.0, folder=False)


def test_plain_templates():
    """What was a format of a name before is one now."""
    target = PowerProfile(5.0, 100.0)
    for template, name in (
        ("{step:07d}", "0000100"),
        ("{gamma:_>3}", "__5"),
        ("{gamma:_>3s}", "__5"),
        ("{gamma:06.2f}", "005.00"),
        ("{sigma_rel:.2}", "0.12"),
        ("{{a}}{step}", "{a}100"),
    ):
        assert [p.name for p in output_paths(template, [target], 100.0, folder=False)] == [name]


@pytest.mark.parametrize(
    "options",
    [
        ("-o", "{gamma:>1000000000}"),
        ("-o", "{step[0]}"),
        ("-j", "100000"),
        ("-j", "1" + "0" * 400),
        ("--update-every", "1" + "0" * 400),
        ("--steps-per-epoch", "9" * 30),
        ("--step", "1e400"),
        ("--step", "nan"),
        ("--max-memory", "9" * 400),
    ],
)
def test_options_have_bounds(ckpts, tmp_path, options):
    """One line and exit code 2, before anything is made."""
    ended = limited("synthesize", ckpts, "-g", "7", "-q", *options, cwd=tmp_path)
    refused(ended, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_python_has_the_same_bounds(ckpts):
    """Workers and targets of the function are bounded as those of the command."""
    for given in ({"jobs": 100_000}, {"jobs": 0}, {"gamma": [n / 10 for n in range(2000)]}):
        with pytest.raises(UsageError, match=r"256|1000"):
            phema_cli.synthesize(ckpts, **{"gamma": 7, **given})


@pytest.mark.parametrize("value", ["0", "-1", "two", "9" * 30, ""])
def test_launchers_say_a_number_of_ranks(ckpts, tmp_path, value):
    """What a launcher's variable holds is checked as an option is."""
    said = {"LOCAL_WORLD_SIZE": value, "PHEMA_JOBS": ""}
    done = phema("synthesize", ckpts, "-g", "7", "-q", cwd=tmp_path, **said)
    refused((done.code, done.out, done.err), 2, "LOCAL_WORLD_SIZE")


# --- numbers of configs, names and provenance -----------------------------------------------------


@pytest.mark.parametrize("value", ["Infinity", "1e400", "-1e400", "NaN", "1" + "0" * 400, "[1]"])
@pytest.mark.parametrize("entry", ["update_after_step", "optimization_step", "decay", "power"])
def test_settings_of_diffusers(tmp_path, entry, value):
    """A number that can be none ends in one line and exit code 3."""
    read = diffusers(tmp_path / "run")
    text = json.dumps(SETTINGS | {entry: "?"}).replace('"?"', value)
    if (entry, value) != ("optimization_step", "[1]"):
        with pytest.raises(InputError, match=r"must be|is not a|not a number|above the limit"):
            read(text.encode())


def test_settings_of_diffusers_through_the_command(tmp_path):
    """The same through the command."""
    diffusers(tmp_path / "run")
    path = tmp_path / "run/checkpoint-100/unet_ema/config.json"
    for value in ("Infinity", "1" + "0" * 400):
        path.write_text(json.dumps(SETTINGS | {"update_after_step": "?"}).replace('"?"', value))
        refused(limited("synthesize", tmp_path / "run", "-g", "7"), 3, "update_after")


@pytest.mark.parametrize("name", ["warmup_steps", "decay"])
def test_settings_of_simple_tuner(tmp_path, name):
    """Its own way of starting late goes by the same numbers."""
    read = diffusers(tmp_path / "run")
    settings = SETTINGS | {"warmup_steps": 10, name: 10**400}
    with pytest.raises(InputError):
        read(json.dumps(settings).encode())


@pytest.mark.parametrize("name", ["kimg", "step", "epoch"])
def test_times_of_patterns(tmp_path, name):
    """A number in a name that is beyond all floats, or all steps, is an error of that file."""
    save_file({"w": torch.ones(1)}, tmp_path / f"a{'9' * 200}.safetensors")
    found = scan([tmp_path], Config(pattern=rf"a(?P<{name}>\d+)", raw=True))
    assert [f.level for f in found.findings] == ["error"]
    assert f"its {name} is" in str(found.findings[0].error)


FORGED = {
    "weight": lambda record: record["sources"][0].update(weight=10**400),
    "an infinite weight": lambda record: record["sources"][0].update(weight=float("inf")),
    "step": lambda record: record["target"].update(step=10**400),
    "no step": lambda record: record["target"].update(step=-1),
    "size": lambda record: record["sources"][0].update(size_bytes=10**400),
    "a source twice": lambda record: record["sources"].append(record["sources"][0]),
    "globs": lambda record: record.update(copy=["*" * 5000]),
    "a name": lambda record: record["sources"][0].update(name=["a"]),
    "options": lambda record: record.update(options=["raw"]),
    "an option": lambda record: record.update(options={"names_from": "/etc/passwd"}),
}


@pytest.mark.parametrize("forged", FORGED)
def test_forged_provenance(ckpts, tmp_path, forged):
    """Numbers that can't be, with a checksum that fits, end as every provenance that is wrong."""
    from phema_cli.synthesis.provenance import _digest

    (out,) = phema_cli.synthesize(ckpts, gamma=7, output=tmp_path / "o.safetensors")
    raw = out.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    record = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["phema"])
    FORGED[forged](record)
    record["digest"] = _digest({k: v for k, v in record.items() if k != "digest"})
    save_file(load_file(out), out, {"format": "pt", "phema": json.dumps(record)})
    refused(limited("verify", out, ckpts), 1, "o.safetensors")
