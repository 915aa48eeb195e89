"""Sweeps: the known optimum of a cheap metric, kills, failures, and what is left on the disk."""

import json
import math
import os
import re
import signal
import subprocess
from dataclasses import asdict

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from phema_cli.errors import InputError, SignalError, StorageError, UsageError
from phema_cli.formats.image import PROVENANCE_KEY
from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.sweep.evaluation import Evaluator
from phema_cli.sweep.results import NAME, Record, Results
from tests import warm
from tests.builders import PHEMA, phema, read_index, write_run
from tests.injection import wait_for
from tests.pages import ROOT, blocks
from tests.sweeps import (
    GRID,
    Listener,
    curve,
    ended,
    killed,
    lines,
    outputs,
    swept,
)
from tests.warm import popen

RIGHT = asdict(Record("t", "p", 7.0, 0.1, 0.5, None, 1, False, "f", "good", None, None))


@pytest.mark.parametrize(
    ("optimum", "formula", "options"),
    [
        (0.07, "u*u", ()),
        (0.11, "-(exp(4*u) - 4*u)", ("--maximize",)),
        (0.19, "u < 0 ? -u : 5*u", ("-s", "0.05,0.08,0.13,0.2,0.28", "--refine", 7)),
    ],
)
def test_a_known_optimum_is_found(ckpts, tmp_path, optimum, formula, options):
    """Within 5 % of sigma_rel in at most 14 evaluations; its output alone stays, and is named."""
    command = f"echo {{sigma_rel}} >> calls; {curve(formula, optimum)}"
    given = ("--no-sample", "--no-baselines", *options)
    run = phema("sweep", ckpts, "--eval", command, *given, cwd=tmp_path)
    assert run.code == 0, run.err
    assert len(lines(tmp_path / "calls")) <= 14
    path = tmp_path / run.out.strip()
    assert outputs(tmp_path / "sweep") == [path.name]
    made = json.loads(read_index(path).metadata[PROVENANCE_KEY])["target"]
    assert abs(made["sigma_rel"] / optimum - 1) <= 0.05
    assert f"{made['sigma_rel']:.4g}" in next(x for x in run.err.splitlines() if "best" in x)


@pytest.mark.linux("signals to groups of processes")
@pytest.mark.slow
def test_kills_lose_no_finished_evaluation(ckpts, tmp_path):
    """After kill -9 at several moments nothing finished runs again, and the result is the same."""
    command = f"echo {{gamma}} >> calls; sleep 0.03; {curve('u*u', 0.1)}"
    (tmp_path / "whole").mkdir()
    whole = swept(ckpts, tmp_path / "whole" / "sweep", curve("u*u", 0.1), refine=4)
    sweep_once = [str(PHEMA), "sweep", str(ckpts), "--eval", command, "--no-sample", "-q"]
    sweep_once += ["--no-baselines"]
    sweep_once += ["-s", ",".join(map(str, GRID)), "--refine", "4"]
    done = {}
    for calls, finished in killed(sweep_once, tmp_path, (1, 4, 8)):
        assert all(calls.count(gamma) == times for gamma, times in done.items())
        gammas = [f"{x['gamma']:.12g}" for x in finished]
        done = {gamma: calls.count(gamma) for gamma in gammas}
    run = warm.run([*sweep_once, "--json"], cwd=tmp_path, check=True)
    found = json.loads(run.stdout)
    assert found["best"]["sigma_rel"] == whole.best.sigma_rel
    assert {(e["sigma_rel"], e["metric"]) for e in found["evaluations"]} == {
        (r.sigma_rel, r.metric) for r in whole.records
    }
    calls = lines(tmp_path / "calls")
    assert all(calls.count(gamma) == times for gamma, times in done.items())
    # What a kill has cut short runs again.
    assert len(set(calls)) == 8
    assert 5 <= len(done) < 8
    assert len(calls) <= 8 + 3
    assert outputs(tmp_path / "sweep") == [found["best"]["file"]]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_evaluation_too(ckpts, tmp_path, sent, code):
    """Nothing that the command has started goes on; the message says that the sweep can."""
    command = "sleep 60 & echo $! $$ > pids.new; mv pids.new pids; wait # {path}"
    before = signal.signal(sent, signal.SIG_DFL)
    process = popen(
        [PHEMA, "sweep", ckpts, "--eval", command, "--no-sample", "-s", "0.1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    signal.signal(sent, before)
    wait_for((tmp_path / "pids").exists, process)
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "finished evaluations stay in sweep; the same command goes on" in err
    assert all(ended(int(pid)) for pid in (tmp_path / "pids").read_text().split())


@pytest.mark.usefixtures("_signals_end_it")
def test_a_signal_while_the_evaluation_starts_ends_it(ckpts, tmp_path, monkeypatch):
    """The command runs already, and phema does not yet know its number."""
    started = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self.pid)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("phema_cli.sweep.evaluation.subprocess.Popen", Interrupted)
    with pytest.raises(SignalError):
        swept(ckpts, tmp_path / "o", "sleep 60 # {path}")
    assert all(ended(pid) for pid in started)
    assert started


def test_a_killed_batch_goes_on(ckpts, tmp_path, monkeypatch):
    """Of four outputs two had their names when the kill came: the others get theirs, unmade."""
    from phema_cli.synthesis import staging

    names = []
    publish = staging.publish

    def fail(output):
        if len(names) == 2:
            raise KeyboardInterrupt
        names.append(output.path.name)
        publish(output)

    monkeypatch.setattr(staging, "publish", fail)
    with pytest.raises(KeyboardInterrupt):
        swept(ckpts, tmp_path / "o", curve("u*u", 0.1))
    monkeypatch.undo()
    # The free disk may have changed since; the batch has not.
    monkeypatch.setattr("phema_cli.sweep.run._FREE_PART", 1e-12)
    listener = Listener()
    swept(ckpts, tmp_path / "o", curve("u*u", 0.1), listener=listener, keep="all")
    assert listener.passes == [4]
    assert len(outputs(tmp_path / "o")) == 4
    assert not list((tmp_path / "o").glob("*.partial"))


def test_a_rerun_evaluates_what_is_new(ckpts, tmp_path):
    """Finished points are skipped; more of them, or a finer search, go on from there."""
    command = curve("u*u", 0.1)
    for options, expected in (
        ({}, 4),
        ({}, 0),
        ({"refine": 2}, 2),
        ({"refine": 2}, 0),
        ({"refine": 2, "request": {"sigma_rel": (*GRID, 0.25)}}, 1),
    ):
        listener = Listener()
        outcome = swept(ckpts, tmp_path / "o", command, listener=listener, **options)
        assert len(listener.evaluated_names) == expected
    assert len(outcome.records) == 7
    assert outputs(tmp_path / "o") == [outcome.best.file]


def test_what_a_kill_left_on_the_disk_is_used_and_tidied(ckpts, tmp_path):
    """Outputs that wait are evaluated without another pass; those that are beaten go."""
    command = curve("u*u", 0.1)
    whole = swept(ckpts, tmp_path / "o", command, keep="all")
    file = tmp_path / "o" / NAME
    file.write_text("\n".join(lines(file)[:-2]) + "\n")
    listener = Listener()
    more = {"sigma_rel": (0.25, *GRID)}
    outcome = swept(ckpts, tmp_path / "o", command, listener=listener, request=more)
    assert listener.passes == [1]
    assert len(listener.evaluated_names) == 3
    assert outcome.best.file == whole.best.file
    assert outputs(tmp_path / "o") == [outcome.best.file]


def test_a_torn_line_counts_for_nothing(ckpts, tmp_path):
    """What a kill has left of a line is cut off, and that evaluation runs again."""
    command = curve("u*u", 0.1)
    swept(ckpts, tmp_path / "o", command)
    file = tmp_path / "o" / NAME
    os.truncate(file, file.stat().st_size - 9)
    listener = Listener()
    swept(ckpts, tmp_path / "o", command, listener=listener)
    assert listener.evaluated_names == ["gamma 1.82621"]
    assert all(json.loads(line) for line in lines(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json\n", "line 2 is not a JSON"),
        ("[1]\n", "line 2 is not a JSON"),
        ('{"target": "gamma 1"}\n', "a line lacks"),
        ('{"batch": ["../ckpts"]}\n', "not the name of an output"),
        (
            json.dumps(RIGHT | {"file": "../ckpts"}) + "\n",
            "not the name of an out",
        ),
        *(
            (json.dumps(RIGHT | {name: value}) + "\n", f"a line has a wrong '{name}'")
            for name, value in [("metrics", 5), ("metric", "x"), ("file", None)]
        ),
    ],
)
def test_a_file_that_is_no_results_is_refused(ckpts, tmp_path, text, message):
    """Nothing is guessed, and no name leads out of the directory."""
    swept(ckpts, tmp_path / "o", curve("u*u", 0.1))
    file = tmp_path / "o" / NAME
    file.write_text(lines(file)[0] + "\n" + text)
    with pytest.raises(InputError, match=message):
        swept(ckpts, tmp_path / "o", curve("u*u", 0.1))


@pytest.mark.parametrize(
    ("change", "named"),
    [("eval", "eval"), ("metric", "metric"), ("sources", "sources"), ("step", "step")],
)
def test_another_sweep_is_refused(ckpts, tmp_path, change, named):
    """Results of another command, or of snapshots that are not the same, are never mixed."""
    swept(ckpts, tmp_path / "o", curve("u*u", 0.1))
    command, request, more = curve("u*u", 0.1), {}, {}
    if change == "eval":
        command = curve("u*u", 0.11)
    elif change == "metric":
        more = {"metric": r"(\S+)"}
    elif change == "step":
        request = {"step": 75}
    else:
        write_run(ckpts, seed=1)
    with pytest.raises(
        UsageError, match=f"not the same {named}; choose another -o, or pass --over"
    ):
        swept(ckpts, tmp_path / "o", command, request=request, **more)
    outcome = swept(ckpts, tmp_path / "o", command, request=request, overwrite=True, **more)
    assert len(outcome.records) == 4
    assert outputs(tmp_path / "o") == [outcome.best.file]


def test_overwrite_removes_what_it_forgets(ckpts, tmp_path):
    """Outputs of the earlier sweep go, whichever they are; other files stay."""
    swept(ckpts, tmp_path / "o", curve("u*u", 0.1), keep="all")
    (tmp_path / "o" / "mine.safetensors").write_bytes(b"mine")
    outcome = swept(
        *(ckpts, tmp_path / "o", curve("u*u", 0.1)),
        request={"sigma_rel": (0.1,)},
        overwrite=True,
    )
    assert outputs(tmp_path / "o") == ["mine.safetensors", outcome.best.file]


def test_a_file_of_somebody_else_is_not_taken_for_an_output(ckpts, tmp_path):
    """It is neither evaluated nor replaced, now or the next time."""
    name = f"phema-step0000100-gamma{gamma_from_sigma_rel(0.1):.6g}.safetensors"
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / name).write_text("mine")
    for _ in range(2):
        with pytest.raises(UsageError, match="exists already"):
            swept(ckpts, tmp_path / "o", "cat {path}", request={"sigma_rel": (0.1,)})
    assert (tmp_path / "o" / name).read_text() == "mine"


def test_two_sweeps_do_not_share_a_directory(ckpts, tmp_path, monkeypatch):
    """The second gives up without evaluating anything."""
    monkeypatch.setattr("phema_cli.system.log.PATIENCE_SECONDS", 0.05)
    held = Results(tmp_path / "o", {})
    try:
        with pytest.raises(StorageError, match="another process is writing"):
            swept(ckpts, tmp_path / "o", curve("u*u", 0.1))
    finally:
        held.close()


def test_failures_are_recorded_and_skipped(ckpts, tmp_path):
    """An exit code, a signal, no number, a number that is none: the sweep goes on past them."""
    command = (
        "case {sigma_rel} in 0.05) exit 3;; 0.08) echo loss nan;; 0.13) echo nothing;; "
        "0.2) kill -9 $$;; *) echo 1;; esac"
    )
    outcome = swept(ckpts, tmp_path / "o", command, request={"sigma_rel": (*GRID, 0.25)})
    assert [r.failure for r in outcome.records] == [
        "exit code 3",
        "its metric is nan",
        "no metric on its stdout",
        "ended by signal 9",
        None,
    ]
    assert outcome.best.metric == 1
    assert outputs(tmp_path / "o") == [outcome.best.file]


def test_a_timeout_ends_all_that_was_started(ckpts, tmp_path):
    """Also what ignores the request to end; it is a failure, and the next one runs."""
    stubborn = f'trap "" TERM; echo $$ >> {tmp_path}/pids; while :; do sleep 0.1; done'
    command = f"sh -c '{stubborn}' | sleep 30 # {{path}}"
    outcome = swept(ckpts, tmp_path / "o", command, timeout=0.2, request={"sigma_rel": (0.1, 0.2)})
    assert [r.failure for r in outcome.records] == ["timed out after 0.2 s"] * 2
    assert outcome.best is None
    pids = [int(pid) for pid in lines(tmp_path / "pids")]
    assert len(pids) == 2
    assert all(ended(pid) for pid in pids)


def test_all_failing_is_a_failed_check(ckpts, tmp_path):
    """Exit code 1 and the remedy; failures run again when asked to, and only then."""
    command = "echo >> calls; test -e mended && echo {sigma_rel}"
    arguments = (
        "sweep",
        ckpts,
        "-s",
        "0.1,0.2",
        "--no-sample",
        "--no-baselines",
        "--eval",
        command,
    )
    run = phema(*arguments, "-q", cwd=tmp_path)
    assert run.code == 1
    assert run.out == ""
    assert "no evaluation gave a metric" in run.err
    assert "exit code 1" in run.err
    assert "--retry-failed" in run.err
    assert outputs(tmp_path / "sweep") == []
    (tmp_path / "mended").touch()
    assert phema(*arguments, "-q", cwd=tmp_path).code == 1
    assert len(lines(tmp_path / "calls")) == 2
    again = phema(*arguments, "--retry-failed", "--json", cwd=tmp_path)
    assert [e["metric"] for e in again.json["evaluations"]] == pytest.approx([0.1, 0.2])
    assert len(lines(tmp_path / "calls")) == 4


def test_what_a_command_printed_is_no_markup(ckpts, tmp_path):
    """Square brackets in a failure are shown as they are."""
    how = ("--eval", "echo 'fid [/x]' # {path}", "--metric", r"fid (\S+)")
    run = phema("sweep", ckpts, "-s", "0.1", "--no-sample", "--no-baselines", *how, cwd=tmp_path)
    assert run.code == 1
    assert "1 of 1: sigma_rel 0.1, gamma 6.9372: its metric is '[/x]', no number" in run.err


def test_tags_in_doubt_are_told(tmp_path):
    """Before anything is evaluated, and where only warnings are asked for: as ``weights`` does."""
    write_run(tmp_path / "in", shape=(40, 30))
    for path in (tmp_path / "in").glob("*gamma5.*"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata() | {"gamma": "8.0"}
        save_file(load_file(path), path.with_name(path.name.replace("gamma5", "gamma8")), metadata)
        path.unlink()
    told = phema("weights", tmp_path / "in", "-g", "7").err
    assert "better than their tags, which changes the result by" in told
    asked = ("sweep", tmp_path / "in", "-g", "7", "--no-baselines", "--eval", "echo 1 # {path}")
    done = phema(*asked, cwd=tmp_path)
    assert (done.code, done.err[: len(told)]) == (0, told)
    assert told.startswith("warning: ")
    assert phema(*asked, "-q", "-o", tmp_path / "quiet", cwd=tmp_path).err == told
    for command in ("weights", "plot"):
        assert phema(command, tmp_path / "in", "-g", "7", "--json").err == told


@pytest.mark.parametrize("maximize", [False, True])
def test_of_equals_the_shortest_is_the_best(ckpts, tmp_path, maximize):
    """Where metrics are rounded, the table, the drawing and the path agree on which is best."""
    formula = "int(sigma_rel < 0.09 or sigma_rel > 0.21)"
    command = f"python3 -c 'sigma_rel = {{sigma_rel}}; print(%s{formula})'" % ("-" * maximize)
    run = phema(
        *(
            "sweep",
            ckpts,
            "--no-sample",
            "--no-baselines",
            "-s",
            "0.25,0.2,0.15,0.1,0.05",
            "--eval",
            command,
        ),
        *("--maximize" if maximize else "--minimize", "--json"),
        cwd=tmp_path,
    )
    assert run.json["best"]["sigma_rel"] == 0.1
    assert run.json["path"].endswith(run.json["best"]["file"])
    assert re.search(r"^gamma 6.9372 .* best *$", run.err, re.MULTILINE)
    assert "best: 0 at sigma_rel 0.1\n" in run.err


def test_a_high_flank_leaves_the_picture(ckpts, tmp_path):
    """What towers over the valley is counted in the drawing, and an arrow in the picture."""
    command = "awk 'BEGIN {{print (100 * {sigma_rel} - 4) ^ 2}}'"
    run = phema(
        *("sweep", ckpts, "--no-sample", "-s", "0.02,0.03,0.04,0.06,0.1,0.28", "--eval", command),
        *("--no-baselines", "--plot", "p.svg"),
        cwd=tmp_path,
    )
    assert "best: 0 at sigma_rel 0.04; 2 further points are not shown" in run.err
    drawn = re.findall(r"<!-- [^\n]*?(\d+(?:\.\d+)?)\W* -->", (tmp_path / "p.svg").read_text())
    numbers = {float(number) for number in drawn}
    assert {0.05, 10} <= numbers
    assert not {100, 200, 500} & numbers


@pytest.mark.parametrize(("keep", "left"), [("best", 1), ("all", 6), ("none", 0)])
def test_what_is_kept(ckpts, tmp_path, keep, left):
    """The best, all, or none; the best is made again where it is wanted and gone."""
    outcome = swept(ckpts, tmp_path / "o", curve("u*u", 0.1), keep=keep, refine=2)
    assert len(outputs(tmp_path / "o")) == left
    assert (outcome.path is None) == (keep == "none")
    listener = Listener()
    again = swept(ckpts, tmp_path / "o", curve("u*u", 0.1), refine=2, listener=listener)
    assert again.path.is_file()
    assert listener.passes == [1] * (keep == "none")
    assert listener.evaluated_names == []
    assert outputs(tmp_path / "o") == [again.best.file]


@pytest.mark.parametrize(
    ("keep", "room", "passes"), [("best", 3, [3, 2, 1]), ("none", 2, [2, 2, 2]), ("best", 2, None)]
)
def test_batches_keep_to_max_disk(ckpts, tmp_path, keep, room, passes):
    """At no evaluation is there more on the disk than allowed; each batch is one pass."""
    out = tmp_path / "o"
    (size,) = {
        p.stat().st_size
        for p in swept(ckpts, tmp_path / "one", "echo 1 {path}").path.parent.glob("*.safetensors")
    }
    command = (
        f"du -cb {out}/*.safetensors* | tail -n 1 | cut -f 1 >> {tmp_path}/used; echo {{gamma}}"
    )
    listener = Listener()
    sigma_rels = (0.05, 0.06, 0.08, 0.1, 0.15, 0.2)
    limit = room * (size + 200)
    swept(
        *(ckpts, out, command),
        request={"sigma_rel": sigma_rels},
        max_disk=limit,
        keep=keep,
        listener=listener,
    )
    used = [int(x) for x in lines(tmp_path / "used")]
    assert len(used) == 6
    assert max(used) <= limit
    assert max(used) > limit - size
    assert sum(listener.passes) == 6
    assert listener.passes == (passes or [2, 1, 1, 1, 1])


def test_a_file_system_that_does_not_say_what_is_free_has_room(ckpts, tmp_path, monkeypatch):
    """All outputs are made in one pass, as where there is room for all."""
    monkeypatch.setattr("phema_cli.sweep.run.free_bytes", lambda _: None)
    listener = Listener()
    asked = {"sigma_rel": (0.05, 0.1, 0.2)}
    swept(ckpts, tmp_path / "o", "echo {gamma}", request=asked, listener=listener)
    assert listener.passes == [3]


@pytest.mark.parametrize(("keep", "needed"), [("best", 2), ("none", 1), ("all", 4)])
def test_a_limit_without_room_is_refused(ckpts, tmp_path, keep, needed):
    """Before anything is written; the message says how much is needed."""
    with pytest.raises(UsageError, match=f"no room for {needed} outputs .* --keep {keep}"):
        swept(ckpts, tmp_path / "o", "echo {path}", keep=keep, max_disk=100)
    assert not (tmp_path / "o").exists()


def test_a_single_length_is_evaluated_and_not_searched(ckpts, tmp_path):
    """It says nothing of where others are better, but may be the best."""
    command = "case {target} in uniform*) echo {gamma} {sigma_rel} 0;; *) echo {sigma_rel};; esac"
    request = {"sigma_rel": (0.1, 0.2), "profile": "uniform:last=0.2"}
    outcome = swept(ckpts, tmp_path / "o", command, request=request, refine=1)
    assert outcome.best.profile == "uniform:last=0.2"
    assert outcome.position == "lowest"
    assert [r.refined for r in outcome.records] == [True, False, False, False]
    # Made again from what the command line says of it, or the results do.
    for given in (request, {"sigma_rel": (0.1, 0.2)}):
        outcome.path.unlink()
        again = swept(ckpts, tmp_path / "o", command, request=given, refine=1)
        assert again.path == outcome.path
        assert again.path.is_file()


def test_the_default_grid_is_what_can_be_reached(ckpts, tmp_path):
    """Six points over the range that inspect calls good or fair."""
    inspected = phema("inspect", ckpts, "--json").json["targets"]
    reached = [t["sigma_rel"] for t in inspected if t["verdict"] != "poor"]
    given = ("--eval", "echo {path} 1", "--refine", 0, "--no-baselines", "--json")
    run = phema("sweep", ckpts, *given, cwd=tmp_path)
    found = [e["sigma_rel"] for e in run.json["evaluations"]]
    assert len(found) == 6
    assert (found[0], found[-1]) == pytest.approx((reached[0], reached[-1]))
    assert "all metrics are equal" in run.err


def test_values_are_quoted_for_the_shell(ckpts, tmp_path):
    """A directory's name with blanks and worse is one word, and nothing in it is run."""
    out = tmp_path / "a b'; touch hacked; '$(touch hacked)"
    outcome = swept(
        *(ckpts, out, "test -s {path} && echo '{{\"n\": 1}}'"), request={"sigma_rel": (0.1,)}
    )
    assert outcome.best.metric == 1
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--eval", "run {paht}"), "{paht}"),
        (("--eval", "awk '{print $1}' {path}"), "{{ and }} for braces"),
        (("--eval", "run {path!r}"), "unknown placeholder"),
        (("--eval", "run {path:>9}"), "unknown placeholder"),
        (("--eval", "run {path"), "--eval"),
        (("--eval", "run it"), "put {path}"),
        (("--eval", "run {path}", "--metric", "("), "--metric"),
        (("--eval", "run {path}", "--metric", "x", "--metric-key", "x"), "exclude each other"),
        (("--eval", "run {path}", "--timeout", "5 minutes"), "write 90s"),
        (("--eval", "run {path}", "-o", "{gamma}"), "no directory"),
        (("--eval", "run {path}", "-o", "z.pt"), "-o z.pt is the name of a file, and several are"),
        (("--eval", "run {path}", "-o", __file__), "is a file, and several are written"),
        (("--eval", "run {path}", "--plot", "x.txt"), "x.txt"),
    ],
)
def test_a_command_line_that_makes_no_sense_writes_nothing(ckpts, tmp_path, options, message):
    """Exit code 2 and a remedy, before the first pass."""
    run = phema("sweep", ckpts, "-s", "0.1", "--no-sample", *options, cwd=tmp_path)
    assert run.code == 2
    assert message in run.err
    assert [p.name for p in tmp_path.iterdir()] == ["ckpts"]


@pytest.mark.parametrize(
    ("printed", "pattern", "key", "expected"),
    [
        ("step 5 loss 0.25\n", None, None, 0.25),
        ("loss=-1.5e-3.", None, None, -1.5e-3),
        ("FID: .5\nmodel-v2 done\n", None, None, 0.5),
        ("1e400", None, None, "its metric is inf"),
        ("0.3\nNaN", None, None, "its metric is nan"),
        ("no numbers", None, None, "no metric on its stdout"),
        ("", None, None, "no metric on its stdout"),
        ("fid 3.5 is 2.9\nprec 0.7", r"fid (\S+)", None, 3.5),
        ("fid 3\nfid 4\n7", r"(?<=fid )\d+", None, 4.0),
        ("fid x", r"fid (\S+)", None, "its metric is 'x', no number"),
        ("fid", r"fid( \d)?", None, "its metric is 'None', no number"),
        ('{"a": {"fid": 3.5}, "b": 1}', None, "a.fid", 3.5),
        ('log\n{"fid": 3}\n{"fid": 2}\n{"other": 1}\n', None, "fid", 2.0),
        ('{"fid": NaN}', None, "fid", "its metric is nan"),
        ('{"fid": true}', None, "fid", "no metric on its stdout"),
        ('{"fid": [1]}', None, "fid.0", "no metric on its stdout"),
        ("3.5", None, "fid", "no metric on its stdout"),
        ("[" * 10_000, None, "fid", "no metric on its stdout"),
    ],
)
def test_how_the_metric_is_read(printed, pattern, key, expected):
    """The last number, the last match or a key; what is no finite number is a failure."""
    assert Evaluator("{path}", pattern, key).read(printed) == expected


def test_stderr_passes_through_or_into_a_log(ckpts, tmp_path):
    """What an evaluation complains of is seen; with -q it is in eval.log."""
    arguments = ("sweep", ckpts, "-s", "0.1", "--no-sample", "--no-baselines")
    arguments += ("--eval", "echo hm >&2; echo 1 {path}")
    run = phema(*arguments, "--metric", "1", "--keep", "none", cwd=tmp_path)
    assert "hm\n" in run.err
    assert math.isclose(float(run.out), gamma_from_sigma_rel(0.1))
    run = phema(*arguments, "-q", "-o", "other", cwd=tmp_path)
    assert run.err == ""
    assert (tmp_path / "other" / "eval.log").read_text() == "hm\n"


def test_the_page_shows_the_first_line_of_the_results(ckpts, tmp_path):
    """The line that docs/sweep.md shows has the fields and types of the one that is written."""
    (block,) = blocks(ROOT / "docs" / "sweep.md", "json")
    shown = json.loads(block.text)
    given = ("-g", 7, "--refine", 0, "--no-sample", "--eval", "echo {gamma}")
    assert phema("sweep", ckpts, *given, cwd=tmp_path).code == 0
    with (tmp_path / "sweep" / "sweep.jsonl").open() as lines:
        written = json.loads(next(lines))
    assert {k: type(v) for k, v in written.items()} == {k: type(v) for k, v in shown.items()}
