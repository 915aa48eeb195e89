"""Decay laws: each is what its library computes, and what the user writes."""

import math
import pickle
import re
import tracemalloc

import numpy as np
import pytest

from phema_cli.errors import UsageError
from phema_cli.profiles import LAWS, PowerProfile, parse_law
from phema_cli.profiles.schedules import ScheduleProfile
from phema_cli.trainers.registry import LAWS as TRAINERS
from tests import libraries as lib
from tests.pages import ROOT
from tests.updates import schedule_of, updates_of

EVERYTHING = {**LAWS, **TRAINERS}
STEPS = 400
TEXTS = [text for text, _, _ in lib.REPLAYS]
TIMES = (1, 2, 3, 9, 10, 11, 19, 20, 21, 99, 100, 101, 102, 111, 250, 399, 400)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def law(text):
    """The law of a text, the trainers' ones too."""
    return parse_law(text, TRAINERS)


@pytest.fixture(scope="module")
def path():
    """A trajectory with drift and noise: row 0 before training, then one row a step."""
    random = np.random.default_rng(1)
    noise = random.standard_normal((STEPS + 1, 20)).cumsum(axis=0)
    return 0.1 * noise + np.linspace(0, 3, STEPS + 1)[:, None]


@pytest.mark.parametrize(("text", "library", "settings"), lib.REPLAYS, ids=TEXTS)
def test_laws_are_what_the_libraries_compute(text, library, settings, path):
    """The sum of the weights over a law's updates is the library's average, after any step."""
    made, stored = law(text), library(path, **settings)
    schedule = schedule_of(made)
    unit = 1 if schedule is None else schedule.unit
    for step in TIMES:
        times, weights = updates_of(made, step * unit)
        assert weights.sum() == pytest.approx(1)
        average = weights @ path[(times / unit).astype(int)]
        np.testing.assert_allclose(average, stored[step], atol=1e-6)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("step", [1, 20, 103, 400])
def test_profiles_weigh_each_update_as_the_law_does(text, step):
    """At whole steps F is exactly the sum of the weights so far; of sparse updates, in between."""
    made = law(text)
    schedule = schedule_of(made)
    assert schedule is not None
    profile = ScheduleProfile(schedule, step * schedule.unit, "")
    times, weights = updates_of(made, step * schedule.unit)
    half = (schedule.every - 1) / 2
    marks = (
        times + half * schedule.unit
        if schedule.wide
        else np.where(times > schedule.copied * schedule.unit, times + half * schedule.unit, times)
    )
    np.testing.assert_allclose(profile.cdf(marks), weights.cumsum(), atol=1e-12)
    assert profile.end == max(marks[-1], half * schedule.unit)
    if schedule.copied and len(times) > 1:
        copies = schedule.every if schedule.wide else 1
        before = max(marks[0] - copies * schedule.unit, 0)
        assert profile.cdf(np.array([-1.0, before, profile.end + 1])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("step", [3, 24, 400])
def test_density_is_the_derivative_of_the_cdf(text, step):
    """F rises to 1 at the end, and the density between breaks integrates to the difference."""
    unit = schedule_of(law(text)).unit
    profile = law(text).profile(step * unit)
    assert profile.breaks[-1] == profile.end
    assert (np.diff(profile.breaks) > 0).all()
    t = np.unique(np.concatenate([np.linspace(0, profile.end, 16 * step + 1), profile.breaks]))
    f, middles = profile.cdf(t), (t[1:] + t[:-1]) / 2
    assert f[-1] == pytest.approx(1)
    assert (np.diff(f) >= -1e-15).all()
    np.testing.assert_allclose(
        f[0] + (profile.density(middles) * np.diff(t)).cumsum(), f[1:], atol=0.02
    )
    assert profile.density(np.array([-1.0, profile.end * 1.01])).tolist() == [0, 0]
    assert profile.label
    assert profile.square_integrable


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("power:gamma=5", 1e-12),
        ("power:halflife=0.05", 0.25 / STEPS),
        ("power:halflife=0.34", 0.25 / STEPS),
        ("power:gamma=16,every=10", 0.01),
        ("ema-pytorch:gamma=6.94,every=1", 1e-12),
        ("ema-pytorch:gamma=16.97,every=3", 2e-3),
        ("ema-pytorch:sigma_rel=0.05,every=10", 0.02),
        ("exponential:beta=0.98", 1e-12),
    ],
)
def test_closed_profiles_are_near_the_updates(text, bound):
    """A closed form misses the weight up to an update by no more than docs/laws.md says."""
    made = law(text)
    schedule = schedule_of(made)
    profile = made.profile(STEPS)
    times, weights = updates_of(made, STEPS)
    clock = 1 if text.startswith("ema-pytorch") else 0
    marks = np.where(times > 0, times + (schedule.every - 1) / 2 + clock, 0)
    assert np.abs(profile.cdf(marks) - weights.cumsum())[1:].max() < bound
    assert profile.end == pytest.approx(marks[-1])


@pytest.mark.parametrize("text", [t for t in TEXTS if re.search(r"every=(3|10)|h:beta=0.9999$", t)])
def test_smoothed_profiles_run_between_the_steps_of_sparse_updates(text):
    """Where the exact cumulative weight jumps at an update, F is at half the height there."""
    made = law(text)
    times, weights = updates_of(made, STEPS)
    assert schedule_of(made).every > 1
    n = np.arange(STEPS + 1.0)
    exact = weights.cumsum()[np.searchsorted(times, n, "right") - 1] * (n >= times[0])
    smooth = ScheduleProfile(schedule_of(made), STEPS, "").cdf(n)
    assert np.abs(smooth - exact).max() < 0.5 * weights.max()


@pytest.mark.parametrize(
    "text",
    [
        "ema-pytorch:beta=0.999999,every=1,update_after=1000",
        "diffusers:beta=0.9999999,warmup=1,power=0.5",
        "diffusers:beta=0.9999999",
        "diffusers:beta=0.99999,warmup=1,inv_gamma=100,power=0.9",
        "k-diffusion:power=0.3,min=0.5,start=200000",
        "rampup:halflife=2e5",
        "power:gamma=5,start=1000",
        "warmup:beta=0.99995",
    ],
)
def test_long_runs_are_exact(text):
    """Beyond the table of single updates sums are still those of every decay, to 1e-9."""
    steps = 3_000_000
    rates = schedule_of(law(text)).rates
    exact = rates(np.arange(1.0, steps + 1)).cumsum(dtype=np.longdouble)
    at = np.unique(np.geomspace(1, steps, 3000).round())
    found = rates.sums(at)
    wanted = exact[at.astype(int) - 1].astype(float)
    np.testing.assert_allclose(found - found[-1], wanted - wanted[-1], atol=1e-9, rtol=1e-12)


def test_runs_of_any_length_take_little_memory():
    """24 laws at step 4 million, and one at 10^11, stay below 100 MiB together."""
    tracemalloc.start()
    try:
        for number in range(24):
            made = law(f"diffusers:beta=0.9999999,warmup=1,power={0.5 + number / 100}")
            profile = made.profile(4e6)
            assert profile.cdf(np.linspace(0, 4e6, 2000))[-1] == 1
        assert law("warmup:beta=0.9999").profile(1e11).cdf(np.array([1e11 - 6931]))[
            0
        ] == pytest.approx(0.5, abs=1e-4)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100 << 20


def test_distance_is_the_largest_difference_of_what_has_come_together():
    """Alike in effect is 0 however it is written; what differs shows how much."""
    assert law("power:gamma=16.97").distance(law("power:gamma=16.97"), 1000) == 0
    alike = law("exponential:beta=0.999").distance(
        law(f"exponential:halflife={math.log(2) / -math.log(0.999)!r}"), 5000
    )
    assert alike < 1e-9
    # max of u^6 - u^11 is at u^5 = 6/11.
    u = (6 / 11) ** 0.2
    assert law("power:gamma=5").distance(law("power:gamma=10"), 777) == pytest.approx(
        u**6 - u**11, abs=1e-5
    )
    assert law("raw").distance(law("power:gamma=5"), 100) == pytest.approx(1, abs=1e-9)
    warm, cold = law("warmup:beta=0.9999"), law("exponential:beta=0.9999")
    assert warm.distance(cold, 1000) == cold.distance(warm, 1000) > 0.9
    assert warm.distance(cold, 1e6) < 1e-9


@pytest.mark.parametrize("form", EVERYTHING.values(), ids=lambda f: f.name)
def test_laws_are_read_from_their_own_text(form):
    """The example makes sense, and its text means the same law, here and in another process."""
    made = law(form.example)
    assert law(made.text) == made == pickle.loads(pickle.dumps(made))
    assert hash(law(made.text)) == hash(made)
    assert made.form is form
    assert made.label in {made.text, f"gamma {made.gamma or 0:g}"}
    assert made.profile(1000.0).label == made.label
    numbers = made.parameters
    assert form.law(**numbers) == made
    assert all(key.range.holds(numbers[key.name]) for key in form.keys if key.name in numbers)
    assert form.usage.startswith(form.name)


@pytest.mark.parametrize(
    ("text", "canonical", "label", "gamma"),
    [
        ("power: gamma = 5.0, every=1", "power:gamma=5", "gamma 5", 5),
        ("power:every=3,gamma=6.94", "power:gamma=6.94,every=3", "gamma 6.94", 6.94),
        ("power:start=9,gamma=6", "power:gamma=6,start=9", None, 6),
        ("power:halflife=5e-2", "power:halflife=0.05", None, math.log(2) / 0.05 - 1),
        ("exponential:halflife=2e3", "exponential:halflife=2000", None, None),
        ("ema-pytorch:every=10,gamma=16", "ema-pytorch:gamma=16", "gamma 16", 16),
        ("k-diffusion:power=0.6666666666666666", "k-diffusion:power=2/3", None, None),
        ("timm:beta=.9998,gamma=2", "timm:beta=0.9998,gamma=2", None, None),
        ("diffusers:warmup=1,beta=.9999,power=2/3", "diffusers:beta=0.9999,warmup=1", None, None),
        ("raw", "raw", None, None),
    ],
)
def test_texts_are_canonical(text, canonical, label, gamma):
    """However it is written, a law has one text, and power functions are called by their gamma."""
    made = law(text)
    assert (made.text, made.label) == (canonical, label or canonical)
    assert made.gamma == (pytest.approx(gamma) if gamma is not None else None)


def test_numbers_of_a_law_are_replaced():
    """Others stay; a number that says the same in another way makes room."""
    made = law("power:gamma=16")
    assert made.replace(every=10).text == "power:gamma=16,every=10"
    assert made.replace(every=10).profile(95) == PowerProfile(0.7, 94.5)
    assert made.replace(sigma_rel=0.1).text == "power:sigma_rel=0.1"
    assert made.replace(every=10).replace(every=1) == made
    with pytest.raises(UsageError, match=r"is gamma -0\.575 in effect"):
        made.replace(every=40)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "expo:beta=0.9",
            r"no average 'expo'; write power:gamma=5, exponential:beta=0\.999, .* or",
        ),
        ("", "no average ''; write power"),
        ("power", "needs gamma or sigma_rel or halflife; write power:gamma="),
        ("power:gamma=5,sigma_rel=0.1", "gamma and sigma_rel exclude each other"),
        ("power:gamma=-0.5", "gamma must be above -0.5 and at most 10000, not -0.5"),
        ("power:sigma_rel=0.29", r"sigma_rel must be between 0.0001 and 12\^-1/2 = 0.2887"),
        ("power:halflife=2", "give a smaller halflife"),
        ("power:gamma=5,every=12", "is gamma -0.5 in effect, not above -0.5"),
        ("power:gamma=5,every=0", "every must be a whole number from 1 on, not 0"),
        ("exponential:beta=1", "beta must be between 0 and 1, not 1; write exponential:beta="),
        ("exponential:beta=nan", "beta must be between 0 and 1, not nan"),
        ("exponential:beta=0.9,beta=0.9", "beta is given twice"),
        ("exponential:beta", "'beta' is not key=number; write exponential:beta=|halflife="),
        ("exponential:beta=1/0", "'beta=1/0' is not key=number"),
        ("exponential:rate=1", "has no key 'rate'"),
        ("power:self=3", "has no key 'self'; write power:gamma="),
        ("exponential:beta=0.9,start=0.5", "start must be a whole number from 0 on"),
        ("uniform:last=inf", r"last must be from 1e-9 to 2\^53"),
        ("raw:step=3", "raw: has no key 'step'; write raw"),
        ("diffusers:beta=0.9,warmup=2", "warmup must be 0 or 1"),
        ("ema-pytorch:gamma=4", r"gamma 4 averaged at every 10th step is gamma -0\.5 in effect"),
        ("ema-pytorch:gamma=16,power=0.5,min=0.1", "an average of one gamma has no min, power"),
        ("k-diffusion:beta=1.1", "beta must be above 0 and at most 1"),
    ],
)
def test_what_is_no_law_is_refused(text, message):
    """Each refusal says what is wrong, and how it is written."""
    with pytest.raises(UsageError, match=message.replace("|halflife", r"\|halflife")):
        law(text)


@pytest.mark.parametrize("step", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize("text", ["power:gamma=5", "warmup:beta=0.9", "raw", "diffusers:beta=0.9"])
def test_times_that_are_none_are_refused(text, step):
    """A profile needs a time above 0."""
    with pytest.raises(UsageError):
        law(text).profile(step)


def test_before_the_first_update_the_average_is_what_it_was_made_of():
    """The initial weights until the first of sparse updates, copies until averaging begins."""
    early = law("warmup:beta=0.9,every=10").profile(5)
    assert early.end == 4.5
    assert early.cdf(np.array([0.0, 4.5])).tolist() == [1, 1]
    assert early.exponent == 0
    times, weights = updates_of(law("exponential:beta=0.9,start=20"), 7)
    assert (times.tolist(), weights.tolist()) == ([7], [1])
    copied = law("exponential:beta=0.9,start=20").profile(7)
    assert copied.cdf(np.array([6.0, 6.5, 7.0])).tolist() == [0, 0.5, 1]
    assert copied.exponent == 7
    assert updates_of(law("ema-pytorch:beta=0.9"), 57)[0].tolist() == [51]
    assert updates_of(law("diffusers:beta=0.9,every=10"), 7)[0].tolist() == [0]
    # Less than a step.
    assert law("warmup:beta=0.9").profile(0.25).end == 0.25


def rows(forms):
    """The tables of docs/laws.md: a law's formula, source and example, and its keys."""
    found = []
    for form in forms.values():
        found.append(f"| `{form.name}` | {form.formula} | {form.source} | `{form.example}` |")
        found += [
            f"| `{form.name}` | `{key.name}` | {key.meaning}; {key.range.words} | "
            + (
                f"{form.usage.partition(key.name + '=')[2].partition(',')[0]} |"
                if key.default is not None
                else "|"
            )
            for key in form.keys
        ]
    return found


def test_the_page_lists_every_law_with_its_keys():
    """docs/laws.md says of each law what the registry does, and of no other."""
    page = (ROOT / "docs" / "laws.md").read_text()
    listed = [line for line in page.splitlines() if re.match(r"\| `[\w-]+` \|", line)]
    assert sorted(listed) == sorted(rows(EVERYTHING))


if __name__ == "__main__":
    print("\n".join(rows(EVERYTHING)))  # noqa: T201 - for the page
