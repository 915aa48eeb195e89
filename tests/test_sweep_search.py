"""What a sweep searches: other lengths than sigma_rel, beyond its grid, past noise, on workers."""

import json
import math
import re
import signal
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from phema_cli.errors import UsageError
from phema_cli.sweep.families import Family, find, parse
from phema_cli.sweep.results import NAME
from tests import warm
from tests.builders import PHEMA, phema, write_run
from tests.injection import wait_for
from tests.sweeps import Listener, curve, ended, killed, lines, outputs, swept
from tests.warm import popen

STEPS = tuple(range(4, 101, 4))


@pytest.fixture
def dense(tmp_path):
    """A directory with 25 snapshots of gamma 16, which short windows can be made of."""
    write_run(tmp_path / "ckpts", gammas=(16.0,), steps=STEPS)
    return tmp_path / "ckpts"


def of_target(optimum):
    """A command that prints the square of the log of a target's length over that of the optimum."""
    return (
        'awk -v t={target} \'BEGIN {{sub(/,.*/, "", t); sub(/.*=/, "", t); '
        f'u = log(t / {optimum}); printf "%.15g", u * u}}}}\''
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "optimum"),
    [
        ("uniform:last", 0.3),
        ("decay:last,shape=cosine", 0.6),
        ("exponential:halflife", 15),
        ("checkpoints:last", 7),
    ],
)
def test_the_best_length_of_any_family_is_found(dense, tmp_path, family, optimum):
    """From phema's own grid, within 5 % or a checkpoint, in at most 14 evaluations."""
    given = ("--search", family, "--eval", of_target(optimum), "--no-sample", "--no-baselines")
    run = phema("sweep", dense, *given, "--json", cwd=tmp_path)
    assert run.code == 0, run.err
    found = run.json
    assert len(found["evaluations"]) <= 14
    assert found["best"]["family"] == found["optimum"]["family"] == family
    assert abs(found["best"]["scale"] / optimum - 1) <= 0.05
    assert found["best"]["gamma"] is None
    assert found["position"] == "inside"
    assert found["limits"]["low"] < found["best"]["scale"] < found["limits"]["high"]
    assert [p.name for p in (tmp_path / "sweep").glob("*.safetensors")] == [found["best"]["file"]]


@pytest.mark.slow
def test_a_search_goes_beyond_the_targets_given(dense, tmp_path):
    """Three windows in steps, of which the longest is best: others are tried, in steps."""
    windows = [f"--profile=uniform:last={n}steps" for n in (20, 25, 30)]
    given = (*windows, "--refine", 8, "--eval", "echo {target}", "--no-sample", "--no-baselines")
    command = of_target(60).replace("t={target}", "t=$(echo {target} | sed s/steps//)")
    run = phema("sweep", dense, *given[:-4], "--eval", command, *given[-2:], "--json", cwd=tmp_path)
    assert run.code == 0, run.err
    assert abs(run.json["best"]["scale"] / 60 - 1) <= 0.05
    assert run.json["best"]["profile"].endswith("steps")
    assert run.json["best"]["refined"]


@pytest.mark.slow
@pytest.mark.parametrize(("end", "sign"), [("shortest", ""), ("longest", "-")])
def test_where_the_snapshots_end_the_plan_for_more_is_named(ckpts, tmp_path, end, sign):
    """The search goes up to what they allow, and says what would allow more; that command works."""
    given = ("--no-sample", "--no-baselines", "--refine", 8, "--json")
    command = f"awk 'BEGIN {{{{print {sign}{{sigma_rel}}}}}}'"
    run = phema("sweep", ckpts, "-s", "0.1,0.13,0.2", "--eval", command, *given, cwd=tmp_path)
    assert run.code == 0, run.err
    best, limits = run.json["best"]["sigma_rel"], run.json["limits"]
    if end == "longest":
        # No average by a power function is longer.
        assert best > 0.28
        assert "longest" not in run.err
        return
    assert best == pytest.approx(limits["low"], rel=0.01)
    assert best < 0.06
    assert f"is the {end} that these snapshots allow" in run.err
    # It is beyond what is reached fairly, which is said as well.
    assert run.json["best"]["verdict"] == "poor"
    assert re.search(r"the best is poor: .* off by about \d\d %; phema plan", run.err)
    plan = re.search(r"phema (plan --steps 100 --like /\S+/ckpts --range [\d.,]+)", run.err)[1]
    low = float(plan.rsplit(" ", 1)[1].split(",")[0])
    assert low < best
    assert phema(*plan.split(), "--parameters", 1000).code == 0


def test_where_the_search_ends_early_more_of_it_is_named(ckpts, tmp_path):
    """The best is at an end that the snapshots would allow to pass."""
    given = ("-s", "0.15,0.2", "--no-sample", "--no-baselines", "--eval", "echo {sigma_rel}")
    run = phema("sweep", ckpts, *given, cwd=tmp_path)
    assert "the optimum may lie below; the same command with --refine 4 goes on" in run.err


@pytest.mark.parametrize(
    ("text", "name", "scale", "again"),
    [
        ("uniform:last=0.2", "uniform:last", 0.2, "uniform:last=0.4"),
        ("uniform:last=50steps", "uniform:last", 50, "uniform:last=100steps"),
        ("uniform:last=50", "uniform:last", 50, "uniform:last=100steps"),
        ("cooldown:last=0.2", "uniform:last", 0.2, "uniform:last=0.4"),
        ("decay:last=0.2,shape=sqrt", "decay:last,shape=sqrt", 0.2, "decay:last=0.4,shape=sqrt"),
        ("decay:shape=linear,last=0.2", "decay:last", 0.2, "decay:last=0.4"),
        ("exponential:halflife=40", "exponential:halflife", 40, "exponential:halflife=80"),
        ("exponential:beta=0.5", "exponential:halflife", 1, "exponential:halflife=2"),
        ("checkpoints:last=3", "checkpoints:last", 3, "checkpoints:last=6"),
    ],
)
def test_how_families_are_read_and_written(text, name, scale, again):
    """A profile has a family and a length, and another length of it is written the same way."""
    family, found = parse(text, 100.0)
    assert (family.name, found) == (name, pytest.approx(scale))
    assert family.text(2 * found) == again
    assert find(name, 100.0).name == name


@pytest.mark.parametrize("text", ["raw", "csv:x", "checkpoints:first=3", "checkpoints:from=1"])
def test_profiles_without_a_length_have_no_family(text):
    """They are evaluated, and no others are made up."""
    assert parse(text, 100.0) is None


@pytest.mark.parametrize("text", ["gamma", "uniform", "uniform:last,shape=cosine,", "decay:shape"])
def test_an_unknown_family_is_refused(text):
    """With what there is instead."""
    with pytest.raises(UsageError, match="no family of one length; one of sigma_rel, uniform"):
        find(text, 100.0)


def test_how_long_a_length_is():
    """As the sigma_rel of about that length, for plans."""
    assert Family("uniform:last", 100.0).width(0.6) == pytest.approx(0.6 / math.sqrt(12))
    assert Family("uniform:last", 100.0, steps=True).width(60) == pytest.approx(0.6 / math.sqrt(12))
    assert Family("exponential:halflife", 100.0).width(10) == pytest.approx(0.1 / math.log(2))
    assert Family("checkpoints:last", 100.0).width(5, 10) == pytest.approx(0.5 / math.sqrt(12))


def test_stored_averages_are_baselines(ckpts, tmp_path):
    """Bit for bit, with words for what they are; one that is a target too is evaluated once."""
    given = ("-g", "7,10", "--no-sample", "--keep", "all", "--json", "--eval", "echo {gamma}")
    run = phema("sweep", ckpts, *given, cwd=tmp_path)
    assert run.code == 0, run.err
    assert {e["profile"]: e["baseline"] for e in run.json["evaluations"]} == {
        "gamma 5": "stored average",
        "gamma 7": None,
        "gamma 10": "stored average",
    }
    for gamma in (5, 10):
        stored = load_file(ckpts / f"ema-step0000100-gamma{gamma}.safetensors")
        made = load_file(tmp_path / "sweep" / f"phema-step0000100-gamma{gamma}.safetensors")
        assert all(torch.equal(stored[name], made[name]) for name in stored)


def test_the_last_raw_weights_are_a_baseline(tmp_path):
    """Bit for bit; where they are best they are what the sweep recommends."""
    (tmp_path / "raw").mkdir()
    random = np.random.default_rng(0)
    for step in range(10, 101, 10):
        tensors = {"w": torch.from_numpy(random.standard_normal(12).astype(np.float32))}
        save_file(tensors, tmp_path / "raw" / f"model-step{step}.safetensors")
    given = ("--raw", "-s", "0.1,0.2", "--no-sample", "--json", "--metric", r"(\S+)$")
    command = "case {target} in raw) echo 1;; *) echo 2;; esac # {path}"
    run = phema("sweep", tmp_path / "raw", *given, "--eval", command, cwd=tmp_path)
    assert run.code == 0, run.err
    best = run.json["best"]
    assert (best["profile"], best["baseline"], best["verdict"]) == ("raw", "last weights", "exact")
    assert "raw (last weights): 1" in run.err
    made = load_file(
        run.json["path"] if run.json["path"][0] == "/" else tmp_path / run.json["path"]
    )
    assert torch.equal(made["w"], load_file(tmp_path / "raw" / "model-step100.safetensors")["w"])


def test_repetitions_are_told_apart_from_lengths(ckpts, tmp_path):
    """Each target is evaluated N times; the mean counts, and what noise hides is as good."""
    values = {"0.1": "0.9 1.1 1.0", "0.13": "1.0 1.2 0.95", "0.2": "5 5.1 4.9"}
    cases = " ".join(f"{s}) set -- {v};;" for s, v in values.items())
    command = f"case {{sigma_rel}} in {cases} esac; shift {{repeat}}; echo $1"
    more = {"request": {"sigma_rel": tuple(map(float, values))}, "repeat": 3}
    outcome = swept(ckpts, tmp_path / "o", command, **more)
    means = {r.sigma_rel: r.metric for r in outcome.records}
    assert means == {0.1: pytest.approx(1.0), 0.13: pytest.approx(1.05), 0.2: pytest.approx(5.0)}
    assert sorted(outcome.records[0].metrics) == [0.9, 1.0, 1.1]
    assert outcome.best.sigma_rel == 0.1
    good = [r.sigma_rel for r in outcome.records if r.target in outcome.as_good]
    assert good in ([0.1], [0.1, 0.13])
    assert 0.05 < outcome.noise < 0.2
    run = phema(
        *("sweep", ckpts, "-s", ",".join(values), "--repeat", 3, "--no-sample", "--no-baselines"),
        *("--eval", command, "-o", tmp_path / "o"),
        cwd=tmp_path,
    )
    assert run.code == 0, run.err
    assert re.search(r"gamma 6.9372 +0.1 +1 +0.058 ", run.err)


def test_a_baseline_may_be_as_good_as_the_best(ckpts, tmp_path):
    """Where noise hides the difference; another that is clearly worse is not."""
    command = (
        "case {target} in 'gamma 5') b=1.01;; 'gamma 10') b=1.5;; *) b=1;; esac; "
        "awk -v b=$b -v k={repeat} 'BEGIN {{print b + (k - 1) / 20}}'"
    )
    request = {"sigma_rel": (), "profile": ("uniform:last=0.5", "uniform:last=0.6")}
    outcome = swept(ckpts, tmp_path / "o", command, request=request, repeat=3, baselines=True)
    good = {r.profile for r in outcome.records if r.target in outcome.as_good}
    assert {"gamma 5", "uniform:last=0.5"} <= good
    assert "gamma 10" not in good


def test_more_repetitions_go_on_from_fewer(ckpts, tmp_path):
    """Only those that are missing run; a failure of one is a failure of the target."""
    command = f"echo {{repeat}} >> {tmp_path}/calls; test {{repeat}} -lt 3 && echo {{sigma_rel}}"
    for repeat, calls in ((1, 4), (3, 12), (3, 12), (4, 16), (4, 16)):
        outcome = swept(ckpts, tmp_path / "o", command, repeat=repeat)
        assert len(lines(tmp_path / "calls")) == calls
    assert [r.failure for r in outcome.records] == ["exit code 1"] * 4
    assert outcome.best is None
    assert all(len(r.metrics) == 3 for r in outcome.records)


def test_results_of_before_repetitions_are_taken(ckpts, tmp_path):
    """Lines of an earlier version have one metric, which is that of the first repetition."""
    swept(ckpts, tmp_path / "o", curve("u*u", 0.1))
    file = tmp_path / "o" / NAME
    new = ("metrics", "repeats", "baseline", "finished")
    entries = [json.loads(line) for line in lines(file)]
    old = [{k: v for k, v in entry.items() if k not in new} for entry in entries]
    file.write_text("".join(f"{json.dumps(entry)}\n" for entry in old))
    listener = Listener()
    outcome = swept(ckpts, tmp_path / "o", curve("u*u", 0.1), repeat=2, listener=listener)
    assert len(listener.evaluated_names) == 4
    assert all(len(r.metrics) == 2 for r in outcome.records)


def test_workers_run_at_the_same_time_with_numbers_of_their_own(ckpts, tmp_path):
    """Each evaluation waits until there is another one: none would end by itself."""
    command = (
        f"cd {tmp_path}; echo {{worker}} >> $(basename {{path}}).by; touch {{worker}}.$$; "
        "until test -e meeting; do set -- [01].*; test $# -gt 1 && touch meeting; sleep 0.01; "
        "done; echo {sigma_rel}"
    )
    listener = Listener()
    outcome = swept(
        *(ckpts, tmp_path / "o", command), listener=listener, parallel=2, timeout=60, refine=3
    )
    assert [r.failure for r in outcome.records] == [None] * 7
    workers = {line for path in tmp_path.glob("*.by") for line in lines(path)}
    assert workers == {"0", "1"}
    assert listener.most == 2
    # The search makes two outputs in one pass.
    assert listener.passes == [4, 2, 1]
    assert listener.lefts[0] == 7
    assert listener.lefts == sorted(listener.lefts, reverse=True)
    assert listener.lefts[-1] == 0


def test_of_one_worker_nothing_runs_beside_another(ckpts, tmp_path):
    """By default an evaluation has the machine for itself."""
    command = f"mkdir {tmp_path}/busy && sleep 0.05 && rmdir {tmp_path}/busy && echo 1 {{path}}"
    outcome = swept(ckpts, tmp_path / "o", command)
    assert [r.failure for r in outcome.records] == [None] * 4


@pytest.mark.slow
def test_kills_of_many_workers_lose_no_finished_evaluation(ckpts, tmp_path):
    """After kill -9 at several moments nothing finished runs again, with repetitions too."""
    command = "echo {gamma} {repeat} >> calls; sleep 0.05; " + curve("u*u + {repeat}/1000", 0.1)
    sweep = [str(PHEMA), "sweep", str(ckpts), "--eval", command, "--no-sample", "-q"]
    sweep += ["-s", "0.05,0.08,0.13,0.2", "--refine", "2", "--repeat", "2", "--parallel", "3"]
    sweep += ["--no-baselines"]
    done = {}
    for calls, finished in killed(sweep, tmp_path, (5, 11, 17)):
        assert all(calls.count(call) == times for call, times in done.items())
        last = {f"{entry['gamma']:.12g}": entry["repeats"] for entry in finished}
        done = {
            f"{gamma} {k}": calls.count(f"{gamma} {k}") for gamma, ks in last.items() for k in ks
        }
    run = warm.run([*sweep, "--json"], cwd=tmp_path, check=True)
    found = json.loads(run.stdout)
    assert len(found["evaluations"]) == 6
    assert all(sorted(e["repeats"]) == [0, 1] for e in found["evaluations"])
    calls = lines(tmp_path / "calls")
    assert all(calls.count(call) == times for call, times in done.items())
    assert len(set(calls)) == 12
    assert len(done) >= 4
    assert outputs(tmp_path / "sweep") == [found["best"]["file"]]


@pytest.mark.slow
def test_a_signal_ends_the_evaluations_of_all_workers(ckpts, tmp_path):
    """Nothing that one of them has started goes on."""
    command = "sleep 60 & echo $! $$ > {worker}.new; mv {worker}.new {worker}.pids; wait # {path}"
    process = popen(
        [
            *(PHEMA, "sweep", ckpts, "--eval", command, "--no-sample", "-s", "0.1,0.2"),
            *("--no-baselines", "--parallel", "2"),
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: len(list(tmp_path.glob("*.pids"))) == 2, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "finished evaluations stay in sweep; the same command goes on" in err
    pids = [int(pid) for path in tmp_path.glob("*.pids") for pid in path.read_text().split()]
    assert len(pids) == 4
    assert all(ended(pid) for pid in pids)


def test_what_is_said_while_it_goes_on(ckpts, tmp_path):
    """Counts, the metric as it comes, how long it takes; nothing of it with -q."""
    given = ("sweep", ckpts, "-s", "0.1,0.2", "--refine", 1, "--no-sample", "--no-baselines")
    run = phema(*given, "--eval", "echo {sigma_rel}", cwd=tmp_path)
    number = r"\d+\.\d s"
    assert re.search(
        rf"^1 of at most 3: sigma_rel 0.1, gamma 6.9372: 0.1  {number}, {number} left$",
        run.err,
        re.MULTILINE,
    )
    assert re.search(rf"^3 of 3: sigma_rel .*  {number}$", run.err, re.MULTILINE)
    assert "\r" not in run.err
    again = phema(*given, "--eval", "echo {sigma_rel}", "--refine", 2, cwd=tmp_path)
    assert "3 targets of an earlier run; at most 1 evaluation left" in again.err
    quiet = phema(*given, "--eval", "echo {sigma_rel}", "-q", "-o", "other", cwd=tmp_path)
    assert quiet.err == ""


def test_the_step_and_the_worker_alone_are_no_target(ckpts, tmp_path):
    """A command without what differs from target to target would evaluate the same each time."""
    for command in ("run {step}", "CUDA_VISIBLE_DEVICES={worker} run", "run {repeat}"):
        with pytest.raises(UsageError, match="would run the same for every target"):
            swept(ckpts, tmp_path / "o", command)
