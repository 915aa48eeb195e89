"""``--profile decay``: what a decayed learning rate would have given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from phema_cli.errors import UsageError
from phema_cli.profiles import DecayProfile, PowerProfile, RawProfile, WindowProfile, parse_profile
from phema_cli.solver import Sample, calibrate, solve
from phema_cli.solver.movement import Movement, Rounding, nominal
from phema_cli.solver.system import evaluate
from tests.builders import phema, run
from tests.trajectories import SHAPES, STEPS, WINDOW, decayed_sum, trajectories


def target(shape, last=f"{WINDOW}steps", end=STEPS):
    """The profile of a decay over the last steps."""
    return parse_profile(f"decay:last={last},shape={shape}").ending_at(float(end))


def steady(end):
    """Movement of one and the same intensity all the time, without rounding."""
    one = np.ones(1)
    times, drift = np.array([1e-3, end]), np.ones(2)
    exact = Rounding.independent(0.0)
    return Movement(times, drift, np.array([end]), one, 0 * one, exact, 1.0, measured=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_with_every_step_stored_the_sum_is_exact(shape):
    """Each update counts by what the schedule leaves of it, to rounding."""
    path = trajectories()["walk"][-601:]
    sources = [RawProfile(float(t)) for t in range(1, 601)]
    solution = solve(sources, [target(shape, "150steps", 600)], movement=steady(600.0))
    truth = decayed_sum(path, shape, 150)
    moved = np.abs(path[-1] - truth).max()
    np.testing.assert_allclose(solution.weights[:, 0] @ path[1:], truth, atol=1e-9 * moved)


def published(shape, count):
    """The weights of checkpoint merging: what the schedule loses from one file to the next."""
    at = np.arange(count + 1) / count
    lost = {"linear": at, "cosine": (1 - np.cos(np.pi * at)) / 2, "sqrt": np.sqrt(at)}[shape]
    return np.diff(lost)


def test_published_weights_are_those_that_are_published():
    """Minus-sqrt over five files, oldest first, as checkpoint merging prints it."""
    assert published("sqrt", 5).round(3).tolist() == [0.447, 0.185, 0.142, 0.120, 0.106]
    made = np.diff(target("sqrt").cdf(STEPS - WINDOW + WINDOW * np.arange(6) / 5))
    np.testing.assert_allclose(made, published("sqrt", 5))


def ratios(count, first):
    """Errors of the estimate over those of published weights: by trajectory and shape.

    Args:
        count: files in the window, evenly spaced.
        first: the step of the first file that the estimate has.
    """
    gap = WINDOW // count
    inside = STEPS - WINDOW + gap * np.arange(1, count + 1)
    at = np.arange(first if first else gap, STEPS + 1, gap)
    sources = [RawProfile(float(t)) for t in at]
    found = {}
    for name, path in trajectories().items():
        stored = path[at].astype(np.float32)
        units = np.spacing(np.abs(stored[-1])).astype(float)
        movement = calibrate(sources, Sample(stored, units))
        solution = solve(sources, [target(shape) for shape in SHAPES], movement=movement)
        for shape, made in zip(SHAPES, solution.weights.T @ stored, strict=True):
            truth = decayed_sum(path, shape, WINDOW)
            merged = published(shape, count) @ path[inside]
            found[name, shape] = np.linalg.norm(made - truth) / np.linalg.norm(merged - truth)
    return found


@pytest.mark.parametrize("count", [5, 10, 20])
def test_few_checkpoints_come_closer_than_published_weights(count):
    """On every trajectory, with all files of the run or from the beginning of the window on."""
    for first in (0, STEPS - WINDOW):
        found = ratios(count, first)
        assert np.exp(np.mean(np.log([*found.values()]))) < 0.35
        assert max(found.values()) < 0.95


@pytest.mark.parametrize("count", [5, 10, 20])
def test_the_same_files_come_closer_than_published_weights(count):
    """Without the file where the window begins, both take all up to the first file whole.

    Where weights are pulled back, later updates undo a part of that. The published weights count
    more of these, each piece by what the schedule leaves at its beginning and not by the mean, so
    they come out a little ahead where the first piece is the worst one: with ``sqrt``.
    """
    found = ratios(count, STEPS - WINDOW + WINDOW // count)
    assert np.exp(np.mean(np.log([*found.values()]))) < 0.62
    lost = {key for key, ratio in found.items() if ratio > 1.05}
    assert lost <= {("jitter", "sqrt"), ("pulled back", "sqrt")}
    assert max(found.values()) < 1.12


@pytest.mark.parametrize("shape", SHAPES)
def test_two_averages_come_closer_still(shape):
    """Ten snapshots each of gamma 5 and 10 give the sum within a twentieth of what it moves."""
    path = trajectories()["walk"]
    sources = [PowerProfile(g, float(t)) for g in (5.0, 10.0) for t in range(200, STEPS + 1, 200)]
    at = np.arange(0.0, STEPS + 1)
    stored = np.array([np.diff(s.cdf(at), prepend=0.0) @ path for s in sources])
    solution = solve(sources, [target(shape)])
    truth = decayed_sum(path, shape, WINDOW)
    error = np.linalg.norm(solution.weights[:, 0] @ stored - truth)
    assert error < 0.11 * np.linalg.norm(path[-1] - truth)


@pytest.mark.parametrize(
    "text", ["decay:last=0.2", "decay:shape=linear,last=0.2", "cooldown:last=0.2"]
)
def test_a_linear_decay_is_the_uniform_average(text):
    """Its weights are the same, bit for bit."""
    sources = [PowerProfile(g, float(t)) for g in (5.0, 10.0) for t in range(100, 1001, 100)]
    pair = [parse_profile(t).ending_at(1000.0) for t in ("uniform:last=0.2", text)]
    one, other = (solve(sources, [p]).weights for p in pair)
    assert (one == other).all()
    assert pair[1].label == text


def test_a_stored_window_is_that_window_by_any_name():
    """A stored uniform average is the linear decay over its window: weight 1."""
    stored = [WindowProfile(t - 200.0, float(t), "uniform:last=200") for t in (600, 800, 1000)]
    weights = solve(stored, [target("linear", "200steps", 1000)]).weights
    assert weights[:, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["uniform", "cooldown", "decay"])
def test_a_window_may_be_given_in_steps(name):
    """With the unit or without, at most the whole run; one step is not all of it."""

    def start(last):
        return parse_profile(f"{name}:last={last}").ending_at(3000.0).start

    assert [start(last) for last in ("600steps", "600", "0.2")] == [2400] * 3
    assert start("1steps") == 2999
    assert start("1") == start("5000steps") == start("5000") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decay", "needs last"),
        ("decay:shape=sqrt", "needs last"),
        ("decay:last=steps", "'last=steps' is not a parameter"),
        ("decay:last=-5steps", "needs last"),
        ("decay:last=nan", "needs last"),
        (
            "decay:last=0.2,shape=quadratic",
            "one of linear, cosine, sqrt, not 'quadratic'",
        ),
        ("decay:last=0.2,shape", "'shape' is not a parameter"),
        ("decay:last=0.2,beta=1", "needs last"),
        ("decay:last=0.2,last=0.3", "last is given twice"),
        ("cooldown:last=0.2,shape=sqrt", "needs last"),
        ("exponential:beta=0.9steps", "'beta=0.9steps' is not a parameter"),
    ],
)
def test_what_is_no_decay_is_refused(text, message):
    """Each refusal quotes what was written and shows how it is written."""
    with pytest.raises(UsageError, match=message) as error:
        parse_profile(text)
    assert "decay:last=0.2,shape=linear" in str(error.value)


@pytest.mark.parametrize("start", [-1.0, 500.0])
def test_windows_that_do_not_exist_are_refused(start):
    """A window begins at 0 or later and before its end; a curve is one of two."""
    with pytest.raises(UsageError, match="are not a window"):
        DecayProfile(start, 500.0, "sqrt")
    with pytest.raises(UsageError, match="no curve 'linear'"):
        DecayProfile(0.0, 500.0, "linear")


@pytest.mark.parametrize("shape", ["cosine", "sqrt"])
@pytest.mark.parametrize("start", [0.0, 2400.0])
def test_the_density_is_the_slope_of_the_cdf(shape, start):
    """It integrates to F; over the first step of sqrt it is the mean, so there they meet after."""
    profile = DecayProfile(start, start + 600.0, shape)
    after = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 2001), np.linspace(1, 600, 400_001)[1:]])
    t = start + after
    rise = np.concatenate([[0.0], (profile.density((t[1:] + t[:-1]) / 2) * np.diff(t)).cumsum()])
    np.testing.assert_allclose(rise[2001:], profile.cdf(t)[2001:], atol=1e-5)
    assert profile.cdf(np.array([start - 1, start + 700])).tolist() == [0, 1]
    assert profile.density(np.array([start - 1, start + 700])).tolist() == [0, 0]
    assert profile.breaks[-1] == profile.end
    assert (np.diff(profile.breaks) > 0).all()


def fine_square(sources, weights, profile):
    """The integral of the square of what the sources miss, by far more nodes, close to each break.

    The substitution t = low + (high - low) v^2 takes the root at the start of a cell away.
    """
    v, w = np.polynomial.legendre.leggauss(100)
    v, w = (v + 1) / 2, w / 2
    edges = [0.0, profile.start, profile.end, *(s.end for s in sources)]
    edges = np.unique([*edges, *np.linspace(0, profile.end, 301)])
    low, width = edges[:-1, None], np.diff(edges)[:, None]
    t = (low + width * v**2).ravel()
    missed = 1 - profile.cdf(t)
    for weight, source in zip(weights, sources, strict=True):
        missed -= weight * (1 - source.cdf(t))
    return float((2 * width * v * w).ravel() @ missed**2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [3, 600, 200_000])
@pytest.mark.parametrize("kind", ["raw", "power"])
@pytest.mark.parametrize("count", [2, 5, 20])
def test_nodes_resolve_where_the_slope_is_infinite(shape, window, kind, count):
    """The integral of J is right to a part in ten million, where the start is inside of a cell too.

    Nodes that know nothing of the root are off by up to 0.8 %.
    """
    end = 5.0 * window + 90
    ends = end * np.arange(1, count + 1) / count
    sources = [RawProfile(t) for t in ends] if kind == "raw" else []
    sources = sources or [PowerProfile(g, t) for t in ends for g in (5.0, 10.0)]
    profile = target(shape, f"{window}steps", end)
    weights = solve(sources, [profile]).weights[:, 0]
    system = evaluate(sources, [profile])
    missed = (1 - system.target_cdf[:, 0]) - (1 - system.source_cdf) @ weights
    found = system.unit * system.weights @ missed**2
    assert found == pytest.approx(fine_square(sources, weights, profile), rel=1e-7)


@pytest.mark.parametrize("window", [5, 400, 100_000])
def test_noise_of_single_updates_counts_by_the_squares_of_their_weights(window):
    """The square of the density of sqrt has no integral; that of whole steps is their sum."""
    end = 2.0 * window
    system = evaluate([RawProfile(end)], [target("sqrt", f"{window}steps", end)])
    squares = np.diff(np.sqrt(np.arange(window + 1) / window)) ** 2
    found = system.weights @ system.target_density[:, 0] ** 2 / system.unit
    assert found == pytest.approx(squares.sum(), rel=0.01)
    # It is a curve, and no point at its end as the raw weights there are.
    assert system.points.tolist() == [True, False]


def test_jitter_is_averaged_by_sqrt_too():
    """Where raw weights jitter, files share the weight more evenly, the last one too."""
    sources = [RawProfile(float(t)) for t in range(50, 1001, 50)]
    profile = target("sqrt", "400steps", 1000)
    still = nominal(evaluate(sources, [profile]), 0.0)
    noisy = replace(still, jitter=np.full_like(still.jitter, 50.0))
    one, other = (solve(sources, [profile], movement=m) for m in (still, noisy))
    assert other.figures[0].noise_gain < 0.9 * one.figures[0].noise_gain
    assert other.weights.max() < 0.2
    assert other.weights[-1, 0] < other.weights[-2, 0]


@pytest.mark.parametrize("method", ["projection", "normalized"])
def test_methods_of_densities_refuse_sqrt_alone(method):
    """Its density has no square integral, so there is no profile_error; cosine has both."""
    sources = [PowerProfile(g, float(t)) for g in (5.0, 10.0) for t in range(100, 1001, 100)]
    with pytest.raises(
        UsageError, match=r"can't use decay:.*no square integral; pass --method blue"
    ):
        solve(sources, [target("sqrt", "0.2", 1000)], method=method)
    (figures,) = solve(sources, [target("cosine", "0.2", 1000)], method=method).figures
    assert figures.profile_error is not None
    (figures,) = solve(sources, [target("sqrt", "0.2", 1000)]).figures
    assert figures.profile_error is None
    assert 0 < figures.expected_error < 0.3


@pytest.fixture
def checkpoints(tmp_path):
    """Raw checkpoints of every 20th step of a walk of 1,000; and the walk."""
    path = trajectories()["momentum"][-1001:]
    (tmp_path / "ckpts").mkdir()
    for step in range(20, 1001, 20):
        tensors = {"w": torch.from_numpy(path[step]).float()}
        save_file(tensors, tmp_path / "ckpts" / f"model-step{step:07d}.safetensors")
    return tmp_path, path


@pytest.mark.parametrize("shape", SHAPES)
def test_the_command_makes_the_sum(checkpoints, shape):
    """From raw files, within what it expects; a --max-error holds for every shape."""
    place, path = checkpoints
    asked = ["--profile", f"decay:last=200steps,shape={shape}", "--raw", "ckpts"]
    done = run("synthesize", *asked, "-o", "made.safetensors", "--max-error", 0.2, cwd=place)
    made = load_file(place / "made.safetensors")["w"].double().numpy()
    truth = decayed_sum(path, shape, 200)
    error = np.linalg.norm(made - truth) / np.linalg.norm(path[-1] - truth)
    assert error < 0.06
    found = run("weights", *asked, "--json", cwd=place).json["targets"][0]
    assert error < found["expected_error"] < 0.1
    assert found["profile"] == asked[1]
    assert found["weight_sum"] == pytest.approx(1)
    assert phema("synthesize", *asked, "--max-error", 1e-3, cwd=place).code == 1
    assert "made.safetensors" in done.out


def test_names_of_outputs_tell_decays_apart(checkpoints):
    """One call makes all shapes, each in a file that names it; a decay and its twin are two."""
    place, _ = checkpoints
    texts = [f"decay:last=0.2,shape={shape}" for shape in SHAPES] + ["uniform:last=0.2"]
    asked = [part for text in texts for part in ("--profile", text)]
    made = run("synthesize", *asked, "--raw", "ckpts", "-q", cwd=place).out.split()
    assert len({*made}) == 4
    assert "phema-step0001000-decay-last0.2-shapesqrt.safetensors" in made
    first, *_, last = (load_file(place / name)["w"] for name in made)
    assert torch.equal(first, last)
    again = phema("synthesize", *asked[:2], *asked[:2], "--raw", "ckpts", cwd=place)
    assert again.code == 2
    assert "given twice" in again.err


def test_pictures_and_sweeps_take_decays(checkpoints):
    """The curves of sqrt are cumulative; a sweep evaluates it."""
    place, _ = checkpoints
    asked = ["--profile", "decay:last=0.2,shape=sqrt", "--raw", "ckpts"]
    drawn = run("plot", *asked, "--json", cwd=place).json["targets"][0]["curves"]
    assert drawn["quantity"] == "cumulative"
    assert drawn["target"][-1] == pytest.approx(1)
    swept = run("sweep", *asked, "--eval", "echo {path} loss 1", "--json", cwd=place).json
    assert "decay:last=0.2,shape=sqrt" in str(swept)
