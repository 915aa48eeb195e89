"""What a sweep says on stderr while it goes on: each result, how many are left, and how long."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from phema_cli.cli import render, sweep_words
from phema_cli.cli.sweep_report import Page
from phema_cli.sweep.outcome import Outcome
from phema_cli.sweep.results import Record
from phema_cli.sweep.targets import Planner
from phema_cli.synthesis.recipe import Recipe
from phema_cli.system.pools import Progress

#: seconds between two changes of the line on a terminal.
_EVERY = 0.5
#: clears a line of a terminal, and goes to its beginning.
_CLEAR = "\r\x1b[K"


class Shown:
    """Tells of a sweep on stderr, and on its page.

    Args:
        quiet: nothing on stderr.
        page: what is written after each evaluation; None for none.

    Attributes:
        planner: what plans the sweep, once it has begun.
    """

    def __init__(self, *, quiet: bool, page: Page | None) -> None:
        self.planner: Planner | None = None
        self._quiet = quiet
        self._page = page
        self._live = not quiet and sys.stderr.isatty()
        self._began = self._drawn = time.monotonic()
        self._done = 0

    def begun(self, planner: Planner, outcome: Outcome, left: int) -> None:
        """Say whether tags are in doubt, and what an earlier run has left to do."""
        render.findings(planner.findings, stderr=True, quiet=self._quiet)
        self.planner = planner
        self._began = time.monotonic()
        self.write_page(outcome, left)
        if outcome.records and not self._quiet:
            done = render.counted(len(outcome.records), "target")
            more = f"at most {render.counted(left, 'evaluation')} left"
            render.console(stderr=True).print(
                f"{done} of an earlier run; {more if left else 'nothing is left to evaluate'}"
            )

    def synthesizing(self, recipe: Recipe) -> AbstractContextManager[Progress | None]:
        """A bar."""
        total = recipe.read_bytes + recipe.write_bytes
        return render.progress("synthesizing", total, quiet=self._quiet)

    def waiting(self, running: Sequence[str], left: int) -> None:
        """On a terminal, a line that changes."""
        now = time.monotonic()
        if not self._live or now - self._drawn < _EVERY:
            return
        self._drawn = now
        first = self._done + 1
        last = first + len(running) - 1
        counts = f"{first}" if last == first else f"{first} to {last}"
        text = f"{counts} of {self._done + left}: {', '.join(running)}; {self._times(left)}"
        width = render.console(stderr=True).width
        sys.stderr.write(_CLEAR + render.printable(text)[: width - 1])
        sys.stderr.flush()

    def evaluated(self, record: Record, metric: float | None, outcome: Outcome, left: int) -> None:
        """A line."""
        self._done += 1
        self.write_page(outcome, left)
        if self._quiet:
            return
        if self._live:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
        failure = f"[red]{render.plain(record.failure)}[/]"
        said = failure if metric is None else f"{metric:.7g}"
        render.console(stderr=True).print(
            f"{self._done} of {self._done + left}: {render.plain(sweep_words.named(record))}: "
            f"{said}  [dim]{self._times(left)}[/]",
            soft_wrap=True,
        )

    def write_page(self, outcome: Outcome, left: int) -> None:
        """The page, where there is one."""
        if self._page is not None and self.planner is not None:
            self._page.write(self.planner, outcome, left)

    def _times(self, left: int) -> str:
        """How long it has taken, and may still take."""
        elapsed = time.monotonic() - self._began
        text = render.duration(elapsed)
        if self._done and left:
            text += f", {render.duration(elapsed / self._done * left)} left"
        return text
