"""The notebook: its cells run in a process of their own, and what they print.

``python -m tests.notebook`` writes that into docs/python.ipynb.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.pages import ROOT, environment
from tests.warm import python

NOTEBOOK = ROOT / "docs" / "python.ipynb"

#: runs the cells that stdin has, as a notebook does: the last expression of a cell is shown.
_DRIVER = """
import ast, contextlib, io, json, sys

space, shown = {"__name__": "__main__"}, []
for code in json.load(sys.stdin):
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "<cell>", "exec"), space)
        result = last and eval(compile(ast.Expression(last.value), "<cell>", "eval"), space)
    hidden = result is None or code.rstrip().endswith(";")
    shown.append([printed.getvalue(), None if hidden else repr(result)])
json.dump(shown, sys.stdout)
"""


def cells(notebook: Path = NOTEBOOK) -> list[dict[str, Any]]:
    """Its code cells."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def run(codes: list[str], place: Path) -> list[tuple[str, str | None]]:
    """What each cell prints, and what its last expression shows.

    Args:
        codes: the cells, run one after another in one new Python.
        place: the directory that they run in.
    """
    done = subprocess.run(
        [python(), "-c", _DRIVER],
        cwd=place,
        env=environment(place),
        input=json.dumps(codes),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return [(printed, result) for printed, result in json.loads(done.stdout)]


def outputs(printed: str, result: str | None, number: int) -> list[dict[str, Any]]:
    """A cell's outputs as a notebook has them."""
    made: list[dict[str, Any]] = []
    if printed:
        text = printed.splitlines(keepends=True)
        made.append({"name": "stdout", "output_type": "stream", "text": text})
    if result is not None:
        data = {"text/plain": result.splitlines(keepends=True)}
        shown = {"data": data, "execution_count": number, "metadata": {}}
        made.append(shown | {"output_type": "execute_result"})
    return made


def main() -> None:
    """Run the notebook, and write what its cells show into it."""
    content = json.loads(NOTEBOOK.read_text())
    codes = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    with tempfile.TemporaryDirectory() as place:
        shown = run(["".join(cell["source"]) for cell in codes], Path(place))
    for number, (cell, (printed, result)) in enumerate(zip(codes, shown, strict=True), 1):
        cell["execution_count"] = number
        cell["outputs"] = outputs(printed, result, number)
    NOTEBOOK.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
