"""Do the data bear the tags out: right ones are never doubted, wrong ones are seen and mended."""

import itertools
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.training import Run, train
from phema_cli.estimate.evidence import check_tags
from phema_cli.estimate.sample import sample
from phema_cli.profiles import (
    ExponentialProfile,
    PowerProfile,
    RawProfile,
    TableProfile,
    WindowProfile,
)
from phema_cli.request import Config
from phema_cli.snapshots import scan
from phema_cli.solver import Sample
from phema_cli.solver.evidence import (
    Law,
    alternatives,
    limits_of,
    propose,
    series_of,
    verdict,
    weigh,
)
from phema_cli.solver.evidence.laws import RATIO, GrowthProfile, Hypothesis, Warmup, as_tagged
from phema_cli.solver.evidence.reduction import (
    alternating_parts,
    reduce,
    select_snapshots,
    thin,
)
from phema_cli.solver.evidence.scoring import rank, score
from phema_cli.trainers.registry import parse_law
from tests.builders import phema
from tests.runs import base
from tests.simulated import ELEMENTS, STEPS, glide, profile, rounded, snapshots, tags, times_of

pytestmark = pytest.mark.slow

RIGHT = (
    ("5", "10"),
    ("6.937196", "16.972163"),
    ("5", "raw"),
    ("c0.98", "c0.96"),
    ("c0.98", "raw"),
    ("w0.99", "raw"),
    ("5", "10", "raw"),
)
#: what is stored, what it is told to be, the labels of what it should be found to be.
WRONG = {
    "exchanged": (("5", "10"), ("10", "5"), ["gamma 5", "gamma 10"]),
    "one too short": (("5", "10"), ("5", "20"), ["gamma 5", "gamma 10"]),
    "presets": (("5", "10"), ("6.937196", "16.972163"), ["gamma 5", "gamma 10"]),
    "raw told as an average": (("raw", "10"), ("5", "10"), ["raw", "gamma 10"]),
    "constant told as power": (("c0.98", "c0.96"), ("5", "10"), ["decay 0.98", "decay 0.96"]),
    "rates doubled": (("c0.98", "c0.96"), ("c0.96", "c0.92"), ["decay 0.98", "decay 0.96"]),
    "beside raw": (("5", "raw"), ("10", "raw"), ["gamma 5", "raw"]),
    "a warm-up told as constant": (("w0.9999", "raw"), ("c0.9999", "raw"), None),
    "two of three exchanged": (
        ("5", "10", "raw"),
        ("10", "5", "raw"),
        ["gamma 5", "gamma 10", "raw"],
    ),
}


@pytest.fixture(scope="module")
def run():
    """A simulated run."""
    return glide()


def labels(alternative):
    """The laws of an alternative in words."""
    return [law.label for law in alternative.laws]


@pytest.mark.parametrize(
    ("count", "stored"),
    [(4, "float32"), (4, "bfloat16"), (8, "bfloat16"), (16, "float32"), (16, "bfloat16")],
)
@pytest.mark.parametrize("names", RIGHT, ids="+".join)
def test_right_tags_are_never_doubted(run, names, count, stored):
    """Whatever was stored, no alarm and no warning if the tags are right; 16 times confirm them."""
    found = weigh(tags(names, count), snapshots(run, names, count, stored))
    assert found.state in ("confirmed", "plausible")
    assert found.gain < limits_of(found.times).doubt
    if count == 16 and stored == "float32":
        assert found.state == "confirmed"
        assert found.tag_error <= 0.1


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tags_are_contradicted_and_mended(run, case):
    """16 times of float32 see each mistake, and the best alternative is what is true."""
    stored, told, true = WRONG[case]
    found = weigh(tags(told, 16), snapshots(run, stored, 16))
    assert found.state == "contradicted"
    assert found.harm > 0.1
    best = found.alternatives[0]
    assert best.fits
    assert best.times_better > 1.05
    assert best.gain == pytest.approx(2 * 16 * len(stored) * math.log(best.times_better))
    if true:
        assert labels(best) == true


@pytest.mark.parametrize("count", [4, 8])
def test_few_times_still_see_an_exchange(run, count):
    """Gammas exchanged are contradicted from 4 times on."""
    found = weigh(tags(("10", "5"), count), snapshots(run, ("5", "10"), count))
    assert found.state == "contradicted"


@pytest.mark.parametrize(("told", "state"), [("6", {"plausible", "doubtful"}), ("9", {"doubtful"})])
def test_what_four_times_can_not_tell_is_said(run, told, state):
    """Tags that are off a little at 4 times are never confirmed: the looseness is a figure."""
    found = weigh(tags((told, "raw"), 4), snapshots(run, ("5", "raw"), 4))
    assert found.state in state | {"contradicted"}
    assert found.alternatives
    if found.state == "plausible":
        assert found.tag_error > 0.1


def test_updates_every_tenth_step_are_named(run):
    """An average that is updated every 10th step is found as one: N is a whole number."""
    stored = snapshots(run, ("10", "20"), 16, every=10)
    found = weigh(tags(("10", "20"), 16), stored)
    assert found.state == "contradicted"
    assert found.alternatives[0].every == 10


def test_a_counter_that_began_late_is_found(run):
    """Averages whose steps were counted from mid-run on: an offset of all times explains them."""
    ends = np.arange(512, STEPS + 1, 32)
    sample = rounded(np.concatenate([run.average(name)[ends - 1] for name in ("5", "10")]))
    found = weigh([PowerProfile(g, float(t - 480)) for g in (5, 10) for t in ends], sample)
    assert found.state == "contradicted"
    assert found.alternatives[0].offset == pytest.approx(480, rel=0.03)
    assert labels(found.alternatives[0]) == ["gamma 5", "gamma 10"]


def test_one_series_is_unchecked(run):
    """A single average can't be tested, whatever it is told to be; no figure is made up."""
    sample = snapshots(run, ("5",), 16)
    for name in ("5", "10"):
        found = weigh(tags((name,), 16), sample)
        assert found.state == "unchecked"
        assert found.gain is None
        assert found.tag_error is None
        assert found.jitter is not None


def test_one_series_that_alternates_is_contradicted(run):
    """Every other file raw, told as one average: what the fit can't bridge is jitter."""
    mixed = np.where(
        np.arange(16)[:, None] % 2, run.average("5")[times_of(16) - 1], run.path[times_of(16) - 1]
    )
    assert weigh(tags(("5",), 16), rounded(mixed)).state == "contradicted"


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_times_are_unchecked(run, count):
    """Two times have nothing to compare."""
    found = weigh(tags(("10", "5"), count), snapshots(run, ("5", "10"), count))
    assert (found.state, found.times) == ("unchecked", count)


def test_a_second_series_of_two_snapshots_tells_nothing(run):
    """Two raw files beside sixteen averages leave the tags unchecked, right and wrong ones."""
    sample = snapshots(run, ("5", "raw"), 16)
    kept = [*range(16), 30, 31]
    for name in ("5", "6"):
        profiles = [tags((name, "raw"), 16)[i] for i in kept]
        found = weigh(profiles, Sample(sample.values[kept], sample.units))
        assert found.state == "unchecked"


@pytest.mark.parametrize("count", [3, 4, 8])
def test_few_raw_files_beside_many_averages_raise_no_alarm(run, count):
    """What alternatives explain of the averages alone is held against no right tags."""
    sample = snapshots(run, ("5", "raw"), 16)
    kept = [*range(16), *range(32 - count, 32)]
    profiles = [tags(("5", "raw"), 16)[i] for i in kept]
    found = weigh(profiles, Sample(sample.values[kept], sample.units))
    assert found.state in ("confirmed", "plausible")


@pytest.mark.parametrize("rows", [(9,), (9, 25), (3, 12), (2, 9, 20)])
def test_files_of_another_run_are_named(run, rows):
    """Foreign snapshots contradict the tags, and are named instead of other laws."""
    sample = snapshots(run, ("5", "10"), 16)
    other = snapshots(glide(seed=1), ("5", "10"), 16)
    sample.values[list(rows)] = other.values[list(rows)]
    found = weigh(tags(("5", "10"), 16), sample)
    assert found.state == "contradicted"
    assert found.suspects[0][0] in rows
    assert found.foreign == rows
    assert not found.alternatives


@pytest.mark.parametrize("names", [("5", "10"), ("5", "raw"), ("5", "10", "raw")])
@pytest.mark.parametrize("size", [30.0, 300.0])
def test_a_fast_start_is_no_foreign_file(run, names, size):
    """Weights that move far at first, and little later: what came first is far off all others."""
    random = np.random.default_rng(1)
    fast = np.exp(-np.arange(1, STEPS + 1)[:, None] / 30) * random.standard_normal(ELEMENTS)
    moved = replace(run, start=run.start + size * fast[0], path=run.path + size * fast)
    found = weigh(tags(names, 8), snapshots(moved, names, 8))
    assert not found.foreign
    assert found.state != "contradicted"


def test_no_right_file_is_blamed_for_many_foreign_ones(run):
    """Where foreign files agree with each other, leaving out right ones would explain as much."""
    rows = [0, 13, 14, 15, 29]
    sample = snapshots(run, ("5", "10"), 16)
    sample.values[rows] = snapshots(glide(seed=1), ("5", "10"), 16).values[rows]
    found = weigh(tags(("5", "10"), 16), sample)
    assert found.state == "contradicted"
    assert not found.foreign


@pytest.mark.parametrize(("names", "rows"), [(("5", "10"), (7, 68, 102)), (("5",), (40, 54))])
def test_files_that_the_search_does_not_look_at_are_named(run, names, rows):
    """Of 64 times 16 are searched through; a foreign file among the others is named too."""
    sample, profiles = snapshots(run, names, 64), tags(names, 64)
    seen = {row for s in select_snapshots(series_of(profiles)) for row in s.rows}
    assert seen.isdisjoint(rows)
    assert not weigh(profiles, sample).foreign
    sample.values[list(rows)] = snapshots(glide(seed=1), names, 64).values[list(rows)]
    found = weigh(profiles, sample)
    assert found.state == "contradicted"
    assert found.foreign == rows


def test_laws_are_of_the_series_that_were_compared(run):
    """Raw weights between the times of two averages are not looked at, and get no law."""
    ends = np.arange(25, STEPS + 1, 25)
    raw = [RawProfile(float(t - 12)) for t in ends]
    told = [PowerProfile(gamma, float(t)) for gamma in (10.0, 5.0) for t in ends]
    kept = [run.path[ends - 13], *(run.average(name)[ends - 1] for name in ("5", "10"))]
    found = weigh([*raw, *told], rounded(np.concatenate(kept)))
    assert found.state == "contradicted"
    assert [s.law.label for s in found.series] == ["raw", "gamma 10", "gamma 5"]
    assert [s.law.label for s in found.compared] == ["gamma 10", "gamma 5"]
    assert labels(found.alternatives[0]) == ["gamma 5", "gamma 10"]


def test_every_snapshot_is_in_one_part():
    """Few times in each, of all series, whatever their number."""
    for count in (1, 2, 5, 20):
        profiles = [PowerProfile(g, float(t)) for g in range(count) for t in range(1, 101)]
        parts = alternating_parts(series_of(profiles))
        rows = [row for part in parts for s in part for row in s.rows]
        assert len(parts) > 1
        assert sorted(rows) == list(range(100 * count))
        assert all(4 <= len({t for s in part for t in s.times}) <= 16 for part in parts)


def test_few_files_are_not_left_out_to_the_last(run):
    """Of three raw files beside many averages none is left out: two could not be compared."""
    sample = snapshots(run, ("5", "raw"), 16)
    kept = [*range(16), 20, 25, 31]
    sample.values[kept[16:18]] = snapshots(glide(seed=1), ("raw",), 16).values[[4, 9]]
    profiles = [tags(("5", "raw"), 16)[i] for i in kept]
    found = weigh(profiles, Sample(sample.values[kept], sample.units))
    assert found.state == "contradicted"
    assert len(found.foreign) <= 1


def test_averages_of_two_runs_are_contradicted(run):
    """One average of each of two runs: nothing fits, by factors beyond any float."""
    sample = snapshots(run, ("5", "10"), 16)
    other = snapshots(glide(seed=1), ("5", "10"), 16)
    sample.values[16:] = other.values[16:] + 1e6
    found = weigh(tags(("5", "10"), 16), sample)
    assert found.state == "contradicted"
    assert all(math.isfinite(a.times_better) for a in found.alternatives)


def test_no_file_is_blamed_for_wrong_tags(run):
    """Gammas exchanged are not the fault of one file."""
    found = weigh(tags(("10", "5"), 16), snapshots(run, ("5", "10"), 16))
    assert not found.foreign


def test_an_average_that_never_moved_is_told(run):
    """A series that holds the same values in every snapshot is no average."""
    sample = snapshots(run, ("5", "10"), 8)
    sample.values[8:] = sample.values[8]
    found = weigh(tags(("5", "10"), 8), sample)
    assert found.state == "contradicted"
    assert found.findings.still == (1,)
    assert found.findings.alike == ()


def test_nothing_that_moves_is_told(run):
    """So is one that is alone."""
    values = np.tile(run.start, (16, 1))
    found = weigh(tags(("5",), 16), rounded(values))
    assert found.state == "contradicted"
    assert found.findings.still == (0,)


def test_an_average_that_equals_the_raw_weights_is_told(run):
    """An average that holds what the raw weights hold at each time is a copy of them."""
    sample = snapshots(run, ("raw", "raw"), 8)
    found = weigh(tags(("5", "raw"), 8), sample)
    assert found.state == "contradicted"
    assert found.findings.copies == ((0, 1),)


def test_a_first_average_may_equal_the_raw_weights(run):
    """One that was just begun does: that is no finding against it."""
    sample = snapshots(run, ("5", "raw"), 16)
    sample.values[0] = sample.values[16]
    found = weigh(tags(("5", "raw"), 16), sample)
    assert not found.findings.contradict
    assert found.findings.alike == ((0, 16),)


def test_a_file_stored_twice_is_told(run):
    """Two snapshots that are the same to the last bit are named, of one series or of two."""
    sample = snapshots(run, ("5", "10"), 8)
    sample.values[3] = sample.values[6]
    assert weigh(tags(("5", "10"), 8), sample).findings.alike == ((3, 6),)


#: score, J and C of the hypotheses below, by the study's own code from the same sample.
STUDY = {
    (4, "float32"): (
        (-9.36094234, 0.0, 1.2661463),
        (-5.46160117, 0.761461575, 2.39406078),
        (-5.16213821, 0.0349735724, 2.25961831),
        (-5.14203327, 0.600802863, 1.72375185),
    ),
    (16, "float32"): (
        (-13.6541528, 0.0, 1.94390806),
        (-6.59985041, 4.0, 12.2407248),
        (-1.54532243, 0.965081505, 38.4542881),
        (-6.64547671, 4.0, 3.10236443),
    ),
    (8, "bfloat16"): (
        (-9.40614906, 0.0, 1.00831596),
        (-5.90705721, 1.96477124, 4.22000261),
        (-5.42143652, 0.600802863, 2.08192454),
        (-5.52304792, 1.55022948, 1.48431971),
    ),
}


@pytest.mark.parametrize(("count", "stored"), [(4, "float32"), (16, "float32"), (8, "bfloat16")])
def test_scores_agree_with_the_study(run, count, stored):
    """The score is the study's, for right and for wrong tags."""
    series = series_of(tags(("5", "10"), count))
    reduced = reduce(snapshots(run, ("5", "10"), count, stored), range(2 * count))
    laws = (
        (Law("power", 6.0), Law("power", 11.0)),
        (Law("power", 11.0), Law("power", 6.0)),
        (Law("raw"), Law("power", 11.0)),
        (Law("exponential", 0.02), Law("exponential", 0.01)),
    )
    for pair, expected in zip(laws, STUDY[count, stored], strict=True):
        found = score(Hypothesis(pair), series, reduced)
        assert (found.score, found.jitter, found.worst) == pytest.approx(expected, rel=1e-6)


def test_a_reduced_sample_keeps_every_contrast(run):
    """Combinations that sum to zero have their mean square, also where it is read in pieces."""
    values = np.tile(snapshots(run, ("5", "10"), 4).values, (1, 40))
    reduced = reduce(Sample(values, np.zeros(values.shape[1])), range(8))
    assert reduced.root.shape == (8, 8)
    contrasts = np.random.default_rng(0).standard_normal((5, 8))
    contrasts -= contrasts.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        ((contrasts @ reduced.root) ** 2).mean(axis=1),
        ((contrasts @ values) ** 2).mean(axis=1),
        rtol=1e-9,
    )


@pytest.mark.parametrize("count", [*range(1, 60), 250])
def test_thinned_times_have_odd_gaps(count):
    """The newest is kept, gaps are odd, and the kept ones are spread over all."""
    kept = thin(range(count), 16)
    assert kept[-1] == count - 1
    assert len(kept) <= 16
    gaps = np.diff(kept)
    if count > 16:
        assert (gaps % 2 == 1).all()
        assert len(kept) >= 12
        assert kept[0] <= 1 + gaps.max()
        assert gaps.max() - gaps.min() <= 2
    else:
        assert kept == list(range(count))


def test_times_that_series_share_come_first():
    """Few raw snapshots among many averages are all looked at."""
    raw = [RawProfile(float(t)) for t in range(100, 1001, 100)]
    averages = [PowerProfile(5.0, float(t)) for t in range(10, 1001, 10)]
    average, weights = select_snapshots(series_of([*averages, *raw]))
    assert len(weights.rows) == 10
    assert len(average.rows) == 16


def test_the_newest_time_is_looked_at():
    """Also where only one series has it, and shared times fill the room."""
    raw = [RawProfile(float(t)) for t in range(10, 991, 10)]
    averages = [PowerProfile(5.0, float(t)) for t in range(10, 1001, 10)]
    chosen = select_snapshots(series_of([*averages, *raw]))
    assert max(t for s in chosen for t in s.times) == 1000
    assert len({t for s in chosen for t in s.times}) <= 16


@pytest.mark.parametrize(
    ("text", "warmup"),
    [
        ("diffusers:beta=0.99", Warmup("ratio")),
        ("diffusers:beta=0.999999", Warmup("ratio")),
        ("diffusers:beta=0.5", Warmup("ratio")),
        ("timm:beta=0.9999,warmup=1,power=0.75", Warmup("power", power=0.75)),
        ("timm:beta=0.999,warmup=1,update_after=50", Warmup("power", start=50)),
        ("k-diffusion:power=0.75,beta=1", Warmup("power", power=0.75)),
    ],
)
def test_a_warm_up_in_closed_form_is_the_exact_one(text, warmup):
    """Cumulative weights agree at whole steps, with and without the cap."""
    law = parse_law(text)
    for end in (60.0, 3000.0):
        exact = law.profile(end)
        closed = GrowthProfile(warmup, -math.log(law.parameters["beta"]), end)
        t = np.arange(0.0, end + 1)
        np.testing.assert_allclose(closed.cdf(t), exact.cdf(t), rtol=2e-3, atol=1e-9)
        assert closed.exponent == pytest.approx(exact.exponent, rel=1e-3)
        late = t[t > 0.5 * end]
        np.testing.assert_allclose(closed.density(late), exact.density(late), rtol=0.02)


def test_a_warm_up_every_tenth_step_is_one_of_a_tenth_of_the_time():
    """Updates count, not steps."""
    slow = GrowthProfile(RATIO, 1e-3, 1000.0, every=10.0)
    fast = GrowthProfile(RATIO, 1e-3, 100.0)
    t = np.linspace(0, 100, 50)
    np.testing.assert_allclose(slow.cdf(10 * t), fast.cdf(t))
    np.testing.assert_allclose(10 * slow.density(10 * t), fast.density(t))


def test_laws_read_as_people_write_them():
    """Labels have the digits that tell laws apart."""
    assert [law.label for law in (Law("power", 6.0), Law("raw"))] == ["gamma 5", "raw"]
    rates = [-math.log(beta) for beta in (0.9, 0.999, 0.99995)]
    assert [Law("exponential", r).label for r in rates] == [
        "decay 0.9",
        "decay 0.999",
        "decay 0.99995",
    ]
    assert Law("warmup", rates[1], RATIO, 10).label == "decay 0.999, warm-up, every 10 steps"


def test_windows_and_tables_are_left_as_tagged(run):
    """Averages without a number to change are compared, not searched through."""
    ends = times_of(16)
    windows = [run.path[t - 32 : t].mean(axis=0) for t in ends]
    sample = rounded(np.concatenate([windows, run.average("5")[ends - 1]]))
    profiles = [
        *(WindowProfile(t - 32.0, float(t)) for t in ends),
        *(PowerProfile(5.0, float(t)) for t in ends),
    ]
    groups = ["window"] * 16 + ["ema"] * 16
    found = weigh(profiles, sample, groups)
    assert found.series[0].law.kind == "other"
    assert found.state in ("confirmed", "plausible")
    wrong = [*profiles[:16], *(PowerProfile(10.0, float(t)) for t in ends)]
    assert weigh(wrong, sample, groups).state == "contradicted"
    table = TableProfile((0.0, 1024.0), (1.0, 2.0))
    assert series_of([table])[0].law.kind == "other"


def test_numbers_are_proposed_where_they_can_be_known(run):
    """Two averages without tags, or one beside raw weights, give back their gammas at 16 times."""
    names, ends = ("10", "5"), list(map(float, times_of(16)))
    groups = ["a"] * 16 + ["b"] * 16
    found = propose(ends * 2, groups, {}, snapshots(run, names, 16))
    assert {g: law.label for g, law in found.items()} == {"a": "gamma 10", "b": "gamma 5"}
    raw = {"b": Law("raw")}
    found = propose(ends * 2, groups, raw, snapshots(run, ("5", "raw"), 16))
    assert {g: law.label for g, law in found.items()} == {"a": "gamma 5"}


def test_nothing_is_proposed_where_it_can_not_be_known(run):
    """One series, few times, bfloat16 for two, three at once: no guess."""
    ends = list(map(float, times_of(16)))
    groups = ["a"] * 16 + ["b"] * 16
    assert propose(ends, groups[:16], {}, snapshots(run, ("5",), 16)) is None
    coarse = snapshots(run, ("5", "10"), 16, "bfloat16")
    assert propose(ends * 2, groups, {}, coarse) is None
    few = list(map(float, times_of(8)))
    assert propose(few * 2, ["a"] * 8 + ["b"] * 8, {}, snapshots(run, ("5", "10"), 8)) is None
    three = snapshots(run, ("5", "10", "20"), 16)
    assert propose(ends * 3, [*groups, *["c"] * 16], {}, three) is None


def test_memory_is_linear_and_small(monkeypatch):
    """500 snapshots of 33,000 elements need less than 50 MiB beside the sample itself."""
    # Counting allocations takes its time: a few alternatives are enough.
    right = Hypothesis((Law("power", 6.0), Law("power", 11.0)))
    few = itertools.islice(alternatives.mistakes(right, float(STEPS)), 8)
    monkeypatch.setattr(alternatives, "mistakes", lambda *_: list(few))
    random = np.random.default_rng(0)
    values = random.standard_normal((500, 33_000), dtype=np.float32)
    sample = Sample(values, np.full(33_000, 1e-7))
    profiles = [PowerProfile(g, float(t)) for g in (5, 10) for t in range(1, 251)]
    tracemalloc.start()
    weigh(profiles, sample)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


@pytest.fixture(scope="module", params=["mlp adamw cosine", "flow sgd constant"])
def trained(request):
    """A model that was really trained."""
    torch.set_num_threads(1)
    return train(Run(*request.param.split()), [], seed=7, steps=768, snapshots=64)


@pytest.mark.parametrize("count", [4, 8, 16])
def test_trained_models_bear_their_tags_out(trained, count):
    """Right tags of real runs are not doubted; exchanged ones are contradicted."""
    at = np.arange(64 // count - 1, 64, 64 // count)
    ends = trained.steps[at].astype(float)
    for pair in ((5.0, 10.0), (6.937196, 16.972163)):
        values = np.concatenate([trained.snapshots[g][at] for g in pair]).astype(np.float32)
        sample = Sample(values, np.spacing(np.abs(values[-1])).astype(np.float64))
        right = weigh([PowerProfile(g, t) for g in pair for t in ends], sample)
        assert right.state in ("confirmed", "plausible")
        wrong = weigh([PowerProfile(g, t) for g in pair[::-1] for t in ends], sample)
        assert wrong.state == "contradicted"
    values = np.concatenate([trained.snapshots[5.0][at], trained.raw[at]]).astype(np.float32)
    sample = Sample(values, np.spacing(np.abs(values[-1])).astype(np.float64))
    raw = [RawProfile(t) for t in ends]
    right = weigh([*(PowerProfile(5.0, t) for t in ends), *raw], sample)
    assert right.state in ("confirmed", "plausible")
    far = [*(ExponentialProfile(40 / ends[-1], t) for t in ends), *raw]
    if count == 16:
        assert weigh(far, sample).state == "contradicted"


def test_few_ways_of_moving_raise_the_limits(run, monkeypatch):
    """What is an alarm if many elements move on their own is none if all move in four ways."""
    profiles, sample = tags(("5.6", "11.1"), 16), snapshots(run, ("5", "10"), 16, "bfloat16")
    assert weigh(profiles, sample).state == "contradicted"
    monkeypatch.setattr(verdict, "rank", lambda *_: 4.0)
    assert weigh(profiles, sample).state == "doubtful"


def test_few_ways_of_moving_are_counted(run):
    """Elements that are mixtures of three have a rank of about three; of many, a large one."""
    profiles = tags(("5", "10"), 16)
    series = series_of(profiles)
    exact = snapshots(run, ("5", "10"), 16).values
    mixed = exact[:, :3] @ np.random.default_rng(0).standard_normal((3, 600))
    ways = []
    for values in (exact, mixed):
        reduced = reduce(rounded(values), range(32))
        found = score(as_tagged(series), series, reduced)
        ways.append(rank(found, series, reduced))
    assert ways[0] > 16
    assert 1.5 < ways[1] < 6
    assert weigh(profiles, rounded(mixed)).state in ("confirmed", "plausible")


@pytest.mark.parametrize("names", [("c0.98", "raw"), ("5", "raw"), ("5", "10")], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_first_updates_are_no_evidence(names, seed):
    """Snapshots at steps 1, 2, 4, ...: a smooth curve does not describe the first of them."""
    run, at = glide(seed), np.unique(np.round(2 ** np.arange(0, 10.5, 0.5)).astype(int))
    sample = rounded(np.concatenate([run.average(name)[at - 1] for name in names]))
    profiles = [profile(name, float(t)) for name in names for t in at]
    assert weigh(profiles, sample).state in ("confirmed", "plausible")


@pytest.mark.slow
def test_copies_among_averages_are_told(tmp_path):
    """Diffusion Policy's average has the parameters of batch norms as they are."""
    ema, copied = base.walk().constant(), ("norm.weight", "norm.bias")
    for step in base.STORED:
        own = base.raw(step)
        average = {**base.state(ema[step], step), **{n: own[n] for n in copied}}
        content = {"model": own, "ema": average, "step": step}
        base.save(content, tmp_path / "run" / f"{step}.pt")
    law = ("--average", f"exponential:beta={base.BETA}")
    told = phema("inspect", tmp_path / "run", *law)
    assert "warning: norm.weight, norm.bias: copies of the raw weights" in told.out
    remedy = "--copy norm.weight --copy norm.bias"
    assert f"pass {remedy}" in told.out
    quiet = phema("inspect", tmp_path / "run", *law, *remedy.split())
    assert "copies of the raw weights" not in quiet.out


@pytest.mark.parametrize("mean", [True, False])
def test_averages_updated_now_and_then_bear_their_tags_out(tmp_path, mean):
    """Beside raw weights they end a little later, which is no time between snapshots."""
    random, period = np.random.default_rng(0), 20
    weights = average = random.standard_normal(1600)
    for step in range(1, 4001):
        weights = weights + random.standard_normal(1600) / (100 + step / 20)
        if step % period == 0:
            average = average + (period / step if mean else 0.02) * (weights - average)
        if step % 400 == 0:
            content = {"model": {"w": torch.from_numpy(weights).float().reshape(40, 40)}}
            own = {"w": torch.from_numpy(average).reshape(40, 40)}
            if mean:
                content |= {"model_avg": own, "average_period": period, "batch_idx_train": step}
            else:
                content |= {"ema": own, "step": step}
            torch.save(content, tmp_path / f"checkpoint-{step}.pt")
    law = None if mean else "exponential:beta=0.98,every=20"
    found = scan([tmp_path], Config(average=law))
    told = check_tags(found.require(), sample(found.snapshots))
    assert (told.state, told.findings) == ("confirmed", ())
    assert told.evidence.jitter < 0.4
