"""Every command as a user calls it; in a process of its own where the process is the point."""

import json
import math
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from phema_cli import __version__
from phema_cli.cli import parsing, render
from phema_cli.errors import InputError
from phema_cli.snapshots import Finding
from tests import warm
from tests.builders import PHEMA, phema, write_run


def test_synthesize_prints_one_path_and_nothing_else(ckpts, tmp_path):
    """The path is all of stdout, so that OUT=$(phema synthesize ...) works."""
    run = phema("synthesize", "--gamma", 7, ckpts, cwd=tmp_path)
    assert (run.code, run.out) == (0, "phema-step0000100-gamma7.safetensors\n")
    assert "verdict" in run.err
    assert "w" in load_file(tmp_path / run.out.strip())


def test_quiet_says_nothing_on_stderr(ckpts, tmp_path):
    """With -q a good run leaves stderr empty."""
    run = phema("synthesize", "--gamma", 7, ckpts, "-q", cwd=tmp_path)
    assert (run.code, run.out, run.err) == (0, "phema-step0000100-gamma7.safetensors\n", "")


def test_many_targets_in_one_call(ckpts, tmp_path):
    """Lists and repeated options give one path each, in order, gammas first."""
    run = phema(
        "synthesize",
        ckpts,
        "-g",
        "4,5,...,7",
        "-s",
        "0.1",
        "-g",
        9,
        "-o",
        "out",
        "-q",
        cwd=tmp_path,
    )
    gammas = ["4", "5", "6", "7", "9", "6.9372"]
    assert run.out.split() == [f"out/phema-step0000100-gamma{g}.safetensors" for g in gammas]
    assert len(list((tmp_path / "out").iterdir())) == len(gammas)


def test_tracked_gamma_gives_the_snapshot_back(ckpts, tmp_path):
    """Synthesizing a tracked gamma at a stored step gives that snapshot, bit for bit."""
    run = phema("synthesize", "-g", 10, "--step", 75, ckpts, "-q", cwd=tmp_path)
    stored = load_file(ckpts / "ema-step0000075-gamma10.safetensors")
    written = load_file(tmp_path / run.out.strip())
    assert all(torch.equal(written[n], stored[n]) for n in stored)


def test_synthesize_json_is_one_document(ckpts, tmp_path):
    """--json prints the outputs, figures, sources and bytes, and nothing else on stdout."""
    run = phema("synthesize", "-g", 7, ckpts, "--json", "-q", cwd=tmp_path)
    document = run.json
    assert document["schema"] == "phema/synthesize/1"
    assert document["outputs"] == ["phema-step0000100-gamma7.safetensors"]
    assert document["targets"][0]["verdict"] in {"good", "fair", "poor"}
    assert sum(s["weights"][0] for s in document["sources"]) == pytest.approx(1)
    assert document["read_bytes"] == 8 * (12 + 7) * 4 + 8


def test_dry_run_writes_nothing(ckpts, tmp_path):
    """--dry-run shows the plan on stdout and leaves the directory as it is."""
    run = phema("synthesize", "-g", 7, ckpts, "--dry-run", "--max-shard-size", 60, cwd=tmp_path)
    assert run.code == 0
    assert "would write phema-step0000100-gamma7 (" in run.out
    assert "in 2 shards" in run.out
    assert "1 of them copied" in run.out
    document = phema("synthesize", "-g", 7, ckpts, "--dry-run", "--json", cwd=tmp_path).json
    assert document["dry_run"] is True
    assert [p.name for p in tmp_path.iterdir()] == ["ckpts"]


def test_max_error_stops_before_writing(ckpts, tmp_path):
    """A target that would be worse than --max-error exits with 1 and leaves no file."""
    run = phema("synthesize", "-g", 40, ckpts, "--max-error", 1e-6, cwd=tmp_path)
    assert run.code == 1
    assert "expected_error" in run.err
    assert run.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["ckpts"]
    assert phema("synthesize", "-g", 10, ckpts, "--max-error", 1e-6, "-q", cwd=tmp_path).code == 0


def test_skip_existing_prints_the_path_all_the_same(ckpts, tmp_path):
    """A skipped output is still one of the outputs, and a notice names it."""
    first = phema("synthesize", "-g", 7, ckpts, "-q", cwd=tmp_path)
    mine = tmp_path / first.out.strip()
    save_file({"w": torch.ones(3)}, mine)
    before = mine.read_bytes()
    given = ("synthesize", ckpts, "--skip-existing")
    again = phema(*given, "-g", "7,8", cwd=tmp_path, verified=False)
    assert again.out.split()[0] == mine.name
    assert f"notice: {mine.name}: exists already, and is left as it is\n" in again.err
    assert mine.read_bytes() == before
    document = phema(*given, "-g", "7", "--json", cwd=tmp_path, verified=False).json
    assert document["targets"] == []


@pytest.mark.parametrize("ending", ["safetensors", "pt", "dcp", "shards"])
def test_what_is_skipped_is_what_would_be_written(ckpts, tmp_path, ending):
    """A file that is no checkpoint is refused, and one that says itself that it is another."""
    shape = {"dcp": ("--format", "dcp"), "shards": ("--max-shard-size", "50B")}.get(ending, ())
    out = tmp_path / ("o" if shape else f"o.{ending}")
    asked = ("synthesize", ckpts, "-o", out, *shape, "--trust-tags")
    assert phema(*asked, "-g", 7).code == 0
    skipped = phema(*asked, "-g", 7, "--skip-existing")
    assert skipped.code == 0
    assert "is left as it is" in skipped.err
    profile = tmp_path / "w.csv"
    profile.write_text("ema-step0000100-gamma5.safetensors,1")
    for other, message in [
        (("-g", 8), "is gamma 7 at step 100, not gamma 8 at step 100"),
        (("-g", 7, "--step", 50), "is gamma 7 at step 100, not gamma 7 at step 50"),
        (("-g", 7, "--exclude", "*0025-gamma5*"), "is gamma 7 at step 100 of other snapshots"),
        (("--weights", profile), "is gamma 7 at step 100, not weights:w at step 100"),
    ]:
        refused = phema(*asked, *other, "--skip-existing")
        assert refused.code == 2
        assert message in refused.err
        assert refused.err.endswith("pass --overwrite in place of --skip-existing, or another -o\n")
    assert phema(*asked, "--weights", profile, "--overwrite").code == 0
    assert phema(*asked, "--weights", profile, "--skip-existing").code == 0
    profile.write_text("ema-step0000100-gamma5.safetensors,0.5")
    assert phema(*asked, "--weights", profile, "--skip-existing").code == 2
    files = list(out.iterdir()) if out.is_dir() else [out]
    file = next(p for p in files if p == out or p.name.endswith((".index.json", ".metadata")))
    file.write_bytes(b"hello")
    refused = phema(*asked, "-g", 7, "--skip-existing")
    assert refused.code == 2
    assert "exists already, and can't be read: " in refused.err
    both = phema(*asked, "-g", 7, "--skip-existing", "--overwrite")
    assert both.code == 2
    assert "overwrite and skip_existing exclude each other; keep one of them" in both.err


def test_same_bytes_for_any_jobs(ckpts, tmp_path):
    """Runs with other --jobs, and a second run, give identical files."""
    contents = set()
    for jobs in (1, 1, 2, 5):
        run = phema("synthesize", "-g", 7, ckpts, "-q", "-j", jobs, "--overwrite", cwd=tmp_path)
        contents.add((tmp_path / run.out.strip()).read_bytes())
    assert len(contents) == 1


def test_options_read_the_environment(ckpts, tmp_path):
    """Every option can be given as PHEMA_<OPTION>."""
    run = phema(
        "synthesize",
        ckpts,
        cwd=tmp_path,
        PHEMA_GAMMA="7",
        PHEMA_QUIET="1",
        PHEMA_OUTPUT="a.safetensors",
    )
    assert (run.out, run.err) == ("a.safetensors\n", "")


def test_dtype_and_copy(ckpts, tmp_path):
    """--dtype converts what is averaged, --copy takes a tensor as it is."""
    run = phema(
        "synthesize", "-g", 7, ckpts, "-q", "--dtype", "bf16", "--copy", "tw*", cwd=tmp_path
    )
    written = load_file(tmp_path / run.out.strip())
    assert {n: t.dtype for n, t in written.items()} == {
        "w": torch.bfloat16,
        "twin": torch.float32,
        "count": torch.int64,
    }


def test_output_lying_among_the_snapshots_is_left_out(ckpts):
    """Phema's own outputs in the directory are not taken for snapshots, with a notice."""
    phema("synthesize", "-g", 7, ckpts, "-q", "-o", ckpts)
    run = phema("synthesize", "-g", 8, ckpts, "-o", ckpts)
    assert run.code == 0
    assert "left out: it was synthesized by phema" in run.err
    assert "8 snapshots of 2 gammas" in phema("inspect", ckpts).out


def test_inspect_shows_snapshots_and_reach(ckpts):
    """Summary, table, drawn range, and no colour codes in a pipe."""
    run = phema("inspect", ckpts)
    assert (run.code, run.err) == (0, "")
    assert "8 snapshots of 2 gammas" in run.out
    assert "ema-step0000025-gamma5.safetensors" in run.out
    assert "sigma_rel  0.01" in run.out
    assert "good" in run.out
    assert "\x1b" not in run.out


def test_inspect_groups_many_snapshots(tmp_path):
    """More than a screenful is shown a gamma a line; -v lists them all."""
    write_run(tmp_path / "c", steps=tuple(range(10, 201, 10)))
    write_run(tmp_path / "c", gammas=(7.0,), steps=(50,))
    run = phema("inspect", tmp_path / "c")
    assert "10 … 200, every 10" in run.out
    assert re.search(r"^ +7 .* 1   50 +content +$", run.out, re.MULTILINE)
    assert "ema-step0000010-gamma5" not in run.out
    assert "ema-step0000010-gamma5" in phema("inspect", "-v", tmp_path / "c").out


def test_inspect_json(ckpts):
    """The document has every snapshot with its tag's origin, and the grid of targets."""
    document = phema("inspect", ckpts, "--json").json
    assert document["schema"] == "phema/inspect/1"
    first = document["snapshots"][0]
    assert first == {
        "name": "ema-step0000025-gamma5.safetensors",
        "layout": "phema",
        "trainers": ["phema"],
        "series": ".",
        "law": "power:gamma=5",
        "overrules": None,
        "step": 25,
        "step_origin": "content",
        "unit": "steps",
        "average": "gamma 5",
        "gamma": 5,
        "gamma_origin": "content",
        "effective_gamma": 5,
        "time": 25,
        "key": None,
        "sigma_rel": pytest.approx(0.12371, abs=1e-5),
        "format": "safetensors",
        "files": 1,
        "tensors": 3,
        "parameters": 19,
        "dtype": "float32",
        "size_bytes": 84,
        "packing": None,
    }
    assert [t["sigma_rel"] for t in document["targets"]][:2] == [0.01, 0.015]
    assert all(t["expected_error"] >= 0 for t in document["targets"])


def test_inspect_draws_for_narrow_and_wide_terminals(ckpts):
    """In 80 columns no line is longer than the terminal."""
    for columns in ("80", "200"):
        run = phema("inspect", ckpts, COLUMNS=columns)
        assert max(len(line) for line in run.out.splitlines() if "warning" not in line) <= int(
            columns
        )


def test_weights_that_look_like_zero_are_counted_not_listed(tmp_path):
    """A target that is a snapshot lists that one; -v lists all, with the digits of the others."""
    write_run(tmp_path, steps=(20, 40))
    run = phema("weights", tmp_path, "-g", 5)
    assert re.findall(r"^ema-.*", run.out, re.MULTILINE) == [
        "ema-step0000040-gamma5.safetensors    40      5  +1.000000"
    ]
    assert run.out.endswith("and 3 snapshots with weights of 0 to six digits\n")
    # Names are folded to some width, numbers never.
    narrow = phema("weights", tmp_path, "-g", 5, COLUMNS="30").out
    assert re.search(r"^ema-step\S{8} +40 +5 +\+1\.000000$", narrow, re.MULTILINE)
    run = phema("weights", tmp_path, "-g", 5, "-v")
    assert len(re.findall(r"^ema-.*[+-]0\.000000$", run.out, re.MULTILINE)) == 3


def test_weights_table_and_json(ckpts):
    """Weights solves without writing; the JSON weights sum to one."""
    run = phema("weights", ckpts, "-g", 7)
    assert run.code == 0
    assert "ema-step0000100-gamma10.safetensors" in run.out
    document = phema("weights", ckpts, "-g", "7", "--method", "projection", "--json").json
    (target,) = document["targets"]
    assert document["schema"] == "phema/weights/1"
    assert sum(s["weight"] for s in target["sources"]) == pytest.approx(target["weight_sum"])


def test_diff_exit_codes_and_output(ckpts):
    """0 for equal checkpoints, 1 above the tolerance, and the tensors named."""
    a, b = (ckpts / f"ema-step0000100-gamma{g}.safetensors" for g in (5, 10))
    assert phema("diff", a, a).code == 0
    run = phema("diff", a, b)
    assert run.code == 1
    assert "w " in run.out
    assert phema("diff", a, b, "--tolerance", 0.5).code == 0
    assert phema("diff", a, b, "-q").out == ""
    document = phema("diff", a, b, "--json").json
    assert document["schema"] == "phema/diff/1"
    assert document["passed"] is False
    assert {t["name"] for t in document["tensors"]} == {"w", "twin", "count"}


def test_diff_of_other_names_and_shapes(tmp_path):
    """What only one side has is shown, and infinities become null in JSON."""
    save_file({"a": torch.ones(1), "s": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file({"b": torch.ones(1), "s": torch.ones(2)}, tmp_path / "b.safetensors")
    run = phema("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-v")
    assert run.code == 1
    assert all(text in run.out for text in ("only in A a", "only in B b", "other shape s"))
    document = phema("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--json").json
    assert document["worst"] is None


@pytest.mark.slow
def test_demo_leaves_snapshots_and_truth(tmp_path):
    """The synthesis of the demo's snapshots is the tracked EMA, within bounds."""
    run = phema("demo", tmp_path / "d", "--steps", 200)
    assert run.code == 0
    left = [tmp_path / "d" / name for name in ("ckpts", "truth", "validate.py")]
    assert run.out.split() == [str(path) for path in left]
    assert all(path.exists() for path in left)
    assert len(list((tmp_path / "d" / "ckpts").iterdir())) == 40
    out = phema(
        "synthesize", "-g", 7, tmp_path / "d" / "ckpts", "-q", "-o", tmp_path / "g7.safetensors"
    )
    truth = tmp_path / "d" / "truth" / "demo-step0000200-gamma7.safetensors"
    document = phema("diff", truth, out.out.strip(), "--tolerance", 1e-2, "--json").json
    assert document["passed"]
    assert 0 < document["relative"] < 1e-3
    assert phema("demo", tmp_path / "d", "--steps", 20).code == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "validate.py").write_text("mine\n")
    refused = phema("demo", tmp_path / "mine", "--steps", 20, "--force")
    assert (
        refused.code,
        "is not a demo's, and would be replaced; pass another DIR" in refused.err,
    ) == (2, True)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["validate.py"]
    assert (tmp_path / "mine" / "validate.py").read_text() == "mine\n"
    assert phema("demo", tmp_path / "d", "--steps", 20, "--force", "-q").err == ""


@pytest.mark.slow
def test_help_version_and_module():
    """--version, --help and python -m phema_cli work; no argument shows help, code 2."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    version = f"phema-cli {__version__} (Python {python}, {platform.system()})\n"
    assert phema("--version", process=True).out == version
    for command in ("inspect", "weights", "synthesize", "sweep", "diff", "demo"):
        run = phema(command, "--help")
        assert run.code == 0
        assert f"phema {command}" in run.out
        assert "Example" in run.out
    run = phema()
    assert run.code == 2
    assert "synthesize" in run.out + run.err
    module = subprocess.run(
        [sys.executable, "-m", "phema_cli", "--version"], capture_output=True, check=True
    )
    assert module.stdout.decode() == version


IMPORTS = """
import sys
sys.argv = ["phema", *sys.argv[1:]]
from phema_cli.cli.app import main
try:
    main()
finally:
    print("torch" in sys.modules, "numpy" in sys.modules, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["--help"], "False False"),
        (["synthesize", "--help"], "False False"),
        (["inspect", "{ckpts}"], "False True"),
        (["weights", "{ckpts}", "--gamma", "7"], "False True"),
        (["plan", "--steps", "100", "--schedule", "walk"], "False True"),
        (["synthesize", "{ckpts}", "--gamma", "7", "--dry-run"], "False True"),
    ],
)
def test_torch_is_imported_only_where_tensors_are_touched(tmp_path, arguments, loaded):
    """--help needs neither torch nor numpy; inspect of 100 snapshots and weights need no torch."""
    write_run(tmp_path / "c", steps=tuple(range(1, 51)))
    filled = [a.format(ckpts=tmp_path / "c") for a in arguments]
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS, *filled], capture_output=True, text=True, check=False
    )
    assert run.stderr.splitlines()[-1] == loaded


def test_debug_shows_a_traceback_and_nothing_else_does(tmp_path):
    """Errors are one line, unless --debug is given."""
    plain = phema("inspect", tmp_path / "none")
    assert (plain.code, plain.err.count("\n")) == (3, 1)
    for said, way in ((("--debug",), {}), ((), {"PHEMA_DEBUG": "1"})):
        shown = phema("inspect", tmp_path / "none", *said, **way)
        assert "Traceback" in shown.err
        assert (shown.code, shown.err.splitlines()[-1]) == (3, plain.err.rstrip("\n"))
    assert "Traceback" in phema("--debug", "inspect", tmp_path / "none").err
    for off in ("0", "false", "no", ""):
        assert phema("inspect", tmp_path / "none", PHEMA_DEBUG=off) == plain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")],
)
def test_signals_leave_no_output(tmp_path, sent, code, message):
    """SIGINT and SIGTERM end a synthesis with 130 and 143; what work stays is told."""
    count = 1 << 29
    entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
    header = json.dumps({"w": entry}).encode()
    for step in (1, 2):
        with (tmp_path / f"e-step{step}-gamma5.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4 * count)
    command = [str(PHEMA), "synthesize", ".", "-g", "7", "--dtype", "fp8_e5m2", "-o", "out"]
    # Zeros everywhere are no average that was ever updated.
    command += ["--trust-tags"]
    # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
    before = signal.signal(sent, signal.SIG_DFL)
    process = warm.popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    signal.signal(sent, before)
    with process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/*.partial")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert message in err
    assert "Traceback" not in err
    left = [p.suffix for p in (tmp_path / "out").glob("*")]
    assert left == [".partial"] * ("the same command resumes" in err)


@pytest.mark.slow
def test_a_full_stdout_is_a_storage_error(ckpts):
    """Where stdout can't be written the exit code is 5, in one line."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        run = subprocess.run(
            [str(PHEMA), "inspect", str(ckpts)], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert run.returncode == 5
    assert run.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_tables_are_whole_in_a_pipe(ckpts):
    """Any number of targets has all its digits where stdout is no terminal."""
    gammas = ",".join(str(g / 4) for g in range(2, 60))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    run = warm.run([PHEMA, "weights", ckpts, "-g", gammas], env=environment, check=True)
    assert "…" not in run.stdout
    assert "ema-step0000100-gamma10.safetensors" in run.stdout


def test_dry_run_says_what_would_be_refused_or_skipped(ckpts, tmp_path):
    """An existing output is refused by --dry-run too, and named when it would be skipped."""
    phema("synthesize", "-g", 7, ckpts, "-q", cwd=tmp_path)
    assert phema("synthesize", "-g", 7, ckpts, "--dry-run", cwd=tmp_path).code == 2
    run = phema("synthesize", "-g", 7, ckpts, "--dry-run", "--skip-existing", cwd=tmp_path)
    assert run.out == "would skip phema-step0000100-gamma7.safetensors: it exists\n"


@pytest.mark.slow
def test_colours_only_where_they_are_wanted(ckpts, monkeypatch):
    """On a terminal there is colour, with NO_COLOR there is none."""
    assert b"\x1b[32m" in on_terminal("inspect", ckpts, stream="stdout")
    monkeypatch.setenv("NO_COLOR", "1")
    assert b"\x1b[32m" not in on_terminal("inspect", ckpts, stream="stdout")


def on_terminal(*command, stream, cwd=None):
    """Bytes that a command writes to a terminal as its stdout or stderr."""
    parent, child = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm"}
    warm.run([PHEMA, *command], cwd=cwd, env=environment, check=True, **{stream: child})
    os.close(child)
    data = b""
    try:
        while chunk := os.read(parent, 65536):
            data += chunk
    except OSError:
        pass
    os.close(parent)
    return data


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_only(ckpts, tmp_path):
    """A bar appears where stderr is a terminal, unless -q is given."""
    command = ("synthesize", "-g", "7", ckpts, "-o", tmp_path / "a.safetensors", "--overwrite")
    assert b"synthesizing" in on_terminal(*command, stream="stderr")
    assert b"synthesizing" not in on_terminal(*command, "-q", stream="stderr")
    assert "synthesizing" not in phema(*command).err


def test_names_are_never_taken_for_markup(tmp_path):
    """Brackets in names of files and tensors come out as they are, with or without colour."""
    name = "[red]x[bold]-step1-gamma5.safetensors"
    for other in (name, name.replace("gamma5", "gamma8")):
        save_file({"[bold]w[/bold]": torch.randn(2)}, tmp_path / other)
    assert name in phema("inspect", tmp_path).out
    assert name in phema("weights", tmp_path, "-g", 6).out
    run = phema("synthesize", tmp_path, "-g", 6, "--dry-run", "-o", "[blue]{gamma}.safetensors")
    assert name in run.out
    assert "[blue]6.safetensors" in run.out
    pair = sorted(tmp_path.iterdir())
    assert "[bold]w[/bold]" in phema("diff", *pair).out
    (tmp_path / "[red]broken.pt").write_text("")
    assert "[red]broken.pt" in phema("synthesize", tmp_path, "-g", 6).err


def test_sigma_of_all_figures_is_finite(ckpts):
    """No figure of the grid is missing or not a number."""
    for target in phema("inspect", ckpts, "--json").json["targets"]:
        values = [v for k, v in target.items() if k != "verdict"]
        assert all(v is not None and math.isfinite(v) for v in values)


def test_profiles_are_targets_of_every_command(ckpts, tmp_path):
    """Other weightings get names of their own, and records that say what they are."""
    table = tmp_path / "bump.csv"
    table.write_text("time,weight\n0,0\n1,1\n2,0\n")
    given = ["--profile", "uniform:last=0.5", "--profile", f"csv:{table}"]
    run = phema("synthesize", ckpts, *given, "--json", cwd=tmp_path)
    assert run.code == 0, run.err
    targets = run.json["targets"]
    assert [t["profile"] for t in targets] == ["uniform:last=0.5", "csv:bump"]
    assert [t["gamma"] for t in targets] == [None, None]
    names = [
        "phema-step0000100-uniform-last0.5.safetensors",
        "phema-step0000100-csv-bump.safetensors",
    ]
    assert run.json["outputs"] == names
    assert all((tmp_path / n).exists() for n in names)
    named = phema(
        "synthesize", ckpts, *given, "-o", "{profile}-{step}.safetensors", "-q", cwd=tmp_path
    )
    assert named.out.split() == ["uniform-last0.5-100.safetensors", "csv-bump-100.safetensors"]
    shown = phema("weights", ckpts, *given, "-g", 7).out
    assert "uniform:last=0.5" in shown
    assert "csv:bump" in shown


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 3, "no such file"),
        ("a,b\n", 3, "two at least"),
        ("0,1\n1\n", 3, "not lines of time,weight"),
        ("0,1\n0,1\n", 3, "times must ascend"),
        ("0,1\n1,x\n", 3, "not lines of time,weight"),
        ("\xff", 3, "two at least"),
    ],
)
def test_tables_that_are_none_are_refused(ckpts, tmp_path, text, code, message):
    """Each refusal is one line that names the file."""
    table = tmp_path / "t.csv"
    if text is not None:
        table.write_text(text)
    run = phema("weights", ckpts, "--profile", f"csv:{table}")
    assert run.code == code
    assert message in run.err
    assert "t.csv" in run.err
    assert len(run.err.splitlines()) == 1


def test_a_target_given_twice_is_refused(ckpts):
    """Under whatever name, and a profile has no place in a name of gamma."""
    run = phema("weights", ckpts, "--profile", "raw", "--profile", "raw")
    assert run.code == 2
    assert "given twice" in run.err
    run = phema("synthesize", ckpts, "--profile", "raw", "-o", "{gamma}.safetensors")
    assert run.code == 2
    assert (
        "unknown placeholder or format for raw: {gamma}; use {profile}, {step}, without" in run.err
    )


def test_a_name_rounds_a_gamma(ckpts, tmp_path):
    """As a format says, or to six digits."""
    for template, name in (("{gamma:06.2f}.pt", "007.12.pt"), ("{gamma}-{step:07}.pt", "7.12346-")):
        out = tmp_path / template
        run = phema("synthesize", ckpts, "-g", "7.123456", "-o", out, "--dry-run", "--json")
        assert name in run.json["outputs"][0]


def test_a_table_is_stretched_to_the_target(tmp_path):
    """Only ratios of a table's times matter: its last one is the target's step."""
    table = tmp_path / "t.csv"
    table.write_text("0,1\n3,2\n12,0\n")
    (spec,) = parsing.profiles([f"csv:{table}"])
    assert spec.ending_at(400.0).times == (0.0, 100.0, 400.0)
    assert spec.label == "csv:t"


@pytest.mark.linux("threads, counted in /proc")
@pytest.mark.slow
def test_numpy_has_one_thread_and_programs_know_nothing_of_it():
    """What phema starts sees the environment as it was; a number that was set holds."""
    code = (
        "import os\n"
        "from phema_cli.cli.process import load_numpy\n"
        "load_numpy()\n"
        "import numpy\n"
        "numpy.ones((500, 500)) @ numpy.ones((500, 500))\n"
        "print(os.environ.get('OPENBLAS_NUM_THREADS'), len(os.listdir('/proc/self/task')))\n"
    )
    for told, threads in ((None, 1), ("2", 2)):
        # The tests' own process has told OpenBLAS by either name.
        kept = os.environ.keys() - {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"}
        environment = {name: os.environ[name] for name in kept}
        environment |= {"OPENBLAS_NUM_THREADS": told} if told else {}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [str(told), str(threads)]


@pytest.mark.parametrize(
    ("typed", "option", "proposed"),
    [
        ("inspect d --average A --key ema", "--gammas 4", "inspect d --key ema --gammas 4"),
        ("inspect d --raw --no-sample", "--average B", "inspect d --no-sample --average B"),
        ("inspect --gammas=5,10 d", "--gammas 10,5", "inspect d --gammas 10,5"),
        ("inspect d --gammas 5", "--update-every 10", "inspect d --gammas 5 --update-every 10"),
    ],
)
def test_an_option_that_is_proposed_replaces_what_said_the_same(typed, option, proposed, capsys):
    """The line can be typed as it stands."""
    error = InputError("wrong", option=option)
    render.suggestion(typed.split(), [Finding("error", error)])
    assert capsys.readouterr().out == f"try: phema {proposed}\n"


def test_wrong_steps_between_updates_are_told_from_right_ones(tmp_path):
    """Both have the same gammas: what they look like is not said in the words of what was told."""
    write_run(tmp_path, steps=tuple(range(50, 1001, 50)), shape=(20, 20))
    done = phema("inspect", tmp_path, "--update-every", 10)
    assert done.code == 3
    assert "better as gamma 5 and gamma 10, updated at every step" in done.out.replace("\n", " ")
