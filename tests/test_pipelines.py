"""The examples for pipelines do what their text says."""

import re
import subprocess

import pytest
import yaml

from tests.pages import ROOT, blocks, environment, shell

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "pipelines.md"


def act(action, inputs, place):
    """Run a composite action's steps as a runner of GitHub does; the exit code, and its outputs."""
    values = {f"inputs.{k}": v["default"] for k, v in action["inputs"].items() if "default" in v}
    values |= {f"inputs.{name}": value for name, value in inputs.items()}

    def filled(text):
        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda match: values[match[1]], text)

    for number, step in enumerate(action["runs"]["steps"]):
        assert step["shell"] == "bash"
        output = place / f"output{number}"
        files = {"GITHUB_OUTPUT": output, "GITHUB_STEP_SUMMARY": place / "summary.md"}
        script = place / f"step{number}.sh"
        script.write_text(step["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
            cwd=place,
            env=environment(place)
            | {name: str(path) for name, path in files.items()}
            # phema is installed already, and pip is to find that without a network.
            | {"RUNNER_TEMP": str(place), "PIP_NO_INDEX": "1"}
            | {name: filled(text) for name, text in step.get("env", {}).items()},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return done.returncode, done.stderr
        lines = output.read_text().splitlines() if output.exists() else []
        said = dict(line.split("=", 1) for line in lines)
        values |= {f"steps.{step.get('id')}.outputs.{name}": value for name, value in said.items()}
    return 0, {name: filled(output["value"]) for name, output in action["outputs"].items()}


def test_the_action_does_what_it_says(workplace):
    """Called as the workflow calls it the action writes, verifies and names the EMA, or fails."""
    action, workflow = (yaml.safe_load(block.text) for block in blocks(PAGE, "yaml"))
    steps = workflow["jobs"]["ema"]["steps"]
    (call,) = (step for step in steps if step.get("id") == "ema")
    needed = {name for name, entry in action["inputs"].items() if entry.get("required")}
    assert needed <= set(call["with"]) <= set(action["inputs"])
    assert steps[-1]["with"]["path"] == "${{ steps.ema.outputs.path }}"
    code, outputs = act(action, call["with"], workplace)
    assert code == 0, outputs
    path = "emas/phema-step0001000-gamma6.9372.safetensors"
    assert outputs == {"path": path, "verdict": "good"}
    assert (workplace / path).exists()
    assert path in (workplace / "summary.md").read_text()

    code, said = act(action, call["with"] | {"max-error": "1e-9"}, workplace)
    assert code == 1
    assert "expected_error" in said


def test_make_follows_the_snapshots(workplace):
    """A newer snapshot has all averages made again; without one nothing is done."""
    (makefile,) = blocks(PAGE, "make")
    (workplace / makefile.file).write_text(makefile.text)
    made = [workplace / "emas" / f"gamma{gamma}.safetensors" for gamma in (5, 7, 9)]

    def make():
        shell("make", workplace)
        return [path.stat().st_mtime_ns for path in made]

    first = make()
    assert make() == first
    min((workplace / "ckpts").iterdir()).touch()
    assert all(new > old for new, old in zip(make(), first, strict=True))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("none", "0.01"), 3, "these snapshots can't be used"),
        (("ckpts", "nonsense"), 2, "a mistake in this script"),
    ],
)
def test_the_script_tells_exit_codes_apart(arguments, code, said, workplace):
    """The script ends with phema's exit code, and has a word for each."""
    (script, _) = blocks(PAGE, "sh")
    (workplace / script.file).write_text(script.text)
    done = subprocess.run(
        ["bash", script.file, *arguments],
        cwd=workplace,
        env=environment(workplace),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stdout
