"""What all callbacks share: the averages of a training, and when their snapshots are stored."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phema_cli.errors import UsageError
from phema_cli.formats.packing import KEYFRAME_EVERY
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.tracker import PowerEMA
from phema_cli.tracker.packed import check

if TYPE_CHECKING:
    import torch

_DEFAULT_GAMMAS = (5.0, 10.0)
_DEFAULT_SNAPSHOTS = 20


class Recorder:
    """Makes a PowerEMA when training starts, and stores it at even intervals and at the end.

    Args:
        directory: where the snapshots go; made if need be.
        gammas: exponents of the averages; 5 and 10 by default.
        sigma_rels: the averages by their relative widths, instead of ``gammas``.
        every: store snapshots each time after so many updates.
        snapshots: store so many of each gamma over the whole training, whose length must be known;
            20 by default.
        dtype: floating-point type in which averages are stored; float32 by default.
        packing: bits of a packed element, as ``PowerEMA.save`` has it; None for whole averages.
        keyframe_every: files from one keyframe to the next.
        name: what the snapshots' names begin with.
        device: where the averages live; by default beside the parameters.
        fresh: start new averages if training resumes from a checkpoint without averages.

    Attributes:
        ema: the averages, once training has started.

    Raises:
        UsageError: gammas, a dtype or a packing that PowerEMA refuses, or two arguments that
            exclude each other.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        gammas: Sequence[float] | None = None,
        sigma_rels: Sequence[float] | None = None,
        every: int | None = None,
        snapshots: int | None = None,
        dtype: torch.dtype | None = None,
        packing: int | None = None,
        keyframe_every: int = KEYFRAME_EVERY,
        name: str = "ema",
        device: torch.device | str | None = None,
        fresh: bool = False,
    ) -> None:
        if gammas is not None and sigma_rels is not None:
            raise UsageError("gammas and sigma_rels mean the same", remedy="pass one of them")
        if every is not None and snapshots is not None:
            raise UsageError("every and snapshots exclude each other", remedy="pass one of them")
        if any(count is not None and count < 1 for count in (every, snapshots)):
            raise UsageError("every and snapshots must be at least 1")
        if sigma_rels is not None:
            gammas = [gamma_from_sigma_rel(s) for s in sigma_rels]
        self.gammas = tuple(_DEFAULT_GAMMAS if gammas is None else gammas)
        for gamma in self.gammas:
            PowerProfile(gamma, 1.0)
        check(packing, keyframe_every, dtype)
        self.directory = Path(directory)
        self.every = every
        self.snapshots = snapshots or _DEFAULT_SNAPSHOTS
        self.dtype = dtype
        self.packing = packing
        self.keyframe_every = keyframe_every
        self.name = name
        self.device = device
        self.fresh = fresh
        self.ema: PowerEMA | None = None
        self._model: torch.nn.Module | None = None
        self._total: float = 0
        self._stored_at = 0

    def _begin(
        self,
        model: torch.nn.Module,
        total: float,
        resumed_at: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        """Make the averages, or resume those of a checkpoint or of the training just before.

        Args:
            model: the model on its devices.
            total: optimizer steps of the whole training; infinite or negative if unknown.
            resumed_at: optimizer steps that the model was trained for already.
            state: the averages' state in the checkpoint from which training resumes.
        """
        if self.every is None and not 0 < total < float("inf"):
            raise UsageError("the length of the training is unknown", remedy="pass every=N")
        self._total = total
        if resumed_at and state is None:
            if self.ema is not None and self._model is model:
                return
            if not self.fresh:
                raise UsageError(
                    f"training resumes at step {resumed_at} from a checkpoint without averages",
                    remedy="pass fresh=True to start them there",
                )
        self.ema, self._model = PowerEMA(model, self.gammas, device=self.device), model
        self._stored_at = 0
        if state is not None:
            self.ema.load_state_dict(state)

    def _update(self) -> None:
        """Average an optimizer step in, and store snapshots if they are due."""
        if self.ema is None:
            return
        self.ema.update()
        step = self.ema.step
        if self.every is not None:
            due = step % self.every == 0
        else:
            before, now = ((s * self.snapshots) // self._total for s in (step - 1, step))
            due = now > before
        if due:
            self._store(self.ema)

    def _end(self) -> None:
        """Store the last snapshots, unless they are stored already."""
        if self.ema is not None and self.ema.step > self._stored_at:
            self._store(self.ema)

    def _store(self, ema: PowerEMA) -> None:
        ema.save(
            self.directory,
            name=self.name,
            dtype=self.dtype,
            packing=self.packing,
            keyframe_every=self.keyframe_every,
        )
        self._stored_at = ema.step
