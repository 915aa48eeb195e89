"""From a series, its law and its time to a tagged snapshot."""

from collections.abc import Sequence
from dataclasses import replace

from phema_cli.errors import InputError, UsageError
from phema_cli.formats.base import Checkpoint, Extent
from phema_cli.profiles import Law
from phema_cli.request import Config
from phema_cli.snapshots.base import (
    PART_FIELD,
    UNKNOWN,
    Finding,
    LeftOutError,
    Needs,
    Snapshot,
    Tag,
    left_out,
)
from phema_cli.snapshots.reading import Draft, read_checkpoint
from phema_cli.trainers import generic
from phema_cli.trainers.base import Clock, Series
from phema_cli.trainers.clocks import is_numbered

#: buffers that modules register; lists of parameters do not have them.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "position_ids", "inv_freq")
_SAVE = "torch.save(model.state_dict(), 'names.pt')"


def make_snapshot(
    draft: Draft, config: Config, *, counters: bool = False, needs: Needs = "laws"
) -> Snapshot:
    """The snapshot that a series is.

    Args:
        draft: the series with its law, its file with its time.
        config: the user's options.
        counters: whether weak words in names may count files or epochs.
        needs: what has to be known of it.

    Raises:
        PhemaError: why it is none.
    """
    file, series, clock, law = draft.file, draft.series, draft.file.time, draft.law
    if isinstance(file.time_error, LeftOutError):
        raise file.time_error
    fault = draft.error or file.time_error
    if fault is not None:
        raise fault
    if law is None or clock is None:
        raise AssertionError("a series without an error has a law and a time")
    if needs == "laws":
        _check_unit(law, clock, counted=counters and clock.weak)
    try:
        profile = law.profile(clock.value)
    except UsageError as error:
        raise InputError(error.what, remedy=error.remedy) from error
    _check_whole(series)
    checkpoint = replace(
        file.stored.checkpoint(series),
        home=generic.home_of(file.stored, series, file.reading.series),
    )
    if series.unnamed:
        checkpoint = _with_names(checkpoint, _names_from(draft, config))
    partial = checkpoint.metadata.get(PART_FIELD) == "true"
    if series.role == "average" and not partial:
        # Lists are of parameters, and lack the buffers of a model.
        raw = (s.tensors.keys() for s in file.reading.series if s.role == "raw")
        lacks = any(not names <= checkpoint.tensors.keys() for names in raw)
        partial = series.part or series.unnamed or lacks
    tag = Tag(
        profile,
        clock.value,
        law.gamma,
        draft.origin,
        file.time_origin,
        clock.unit,
        UNKNOWN if draft.law_unknown else law.text,
        draft.overrules,
    )
    trainers = file.reading.trainers
    name, folder = file.candidate.name, file.candidate.folder
    return Snapshot(name, checkpoint, tag, trainers, series.key, series.index, partial, folder)


def _check_unit(law: Law, clock: Clock, *, counted: bool) -> None:
    """Refuse a decay per step where time counts something else, or may (``counted``)."""
    with_images = clock.unit == "images" and "batch" in dict(law.values)
    plain = clock.unit == "steps" and not counted
    if plain or with_images or law.name in {"power", "raw", "uniform"}:
        return
    if counted:
        raise InputError(
            f"its average, {law.text}, counts steps, but {clock.field} {clock.value:.10g} in its "
            "name counts epochs or files",
            remedy="pass --steps-per-epoch if it counts epochs, or --pattern with a group step",
            option="--steps-per-epoch N",
        )
    epochs = clock.unit == "epochs"
    raise InputError(
        f"its average, {law.text}, counts steps, but its time is in {clock.unit}",
        remedy="pass --steps-per-epoch" if epochs else "pass --pattern with a group step",
        option="--steps-per-epoch N" if epochs else None,
    )


def _check_whole(series: Series) -> None:
    """Refuse weights that are split: tensors have no elements then, or one has many."""
    for name, tensor in series.tensors.items():
        # DeepSpeed and FSDP leave this shape; a model may have tensors of shape (0, 3).
        if tensor.dtype.kind == "float" and tensor.shape == (0,):
            raise InputError(
                f"tensor {name:.200} has no elements: the weights are split among other files",
                remedy="gather them with the tool of the trainer that wrote the file",
            )
        if name.endswith("flat_param"):
            raise InputError(
                f"tensor {name:.200} is a flat parameter of FSDP, which holds a part of the model",
                remedy="save the model with FSDP's StateDictType.FULL_STATE_DICT",
            )


def _names_from(draft: Draft, config: Config) -> Checkpoint | None:
    """The state dict that names a list: the user's, else the raw weights in the same file."""
    if config.names_from is not None:
        return read_checkpoint(config.names_from)
    raw = next((s for s in draft.file.reading.series if s.role == "raw"), None)
    if raw is None or raw.unnamed:
        return None
    return draft.file.stored.contents.checkpoint(raw.tensors)


def _with_names(checkpoint: Checkpoint, state: Checkpoint | None) -> Checkpoint:
    """A list of parameters with the names of a state dict, which must fit one by one.

    Raises:
        InputError: there is no state dict, its order is lost, or it does not fit.
    """
    if state is None:
        raise InputError(
            f"holds {len(checkpoint.tensors)} tensors without names",
            where=checkpoint.path,
            remedy=f"pass --names-from FILE, made by {_SAVE}",
        )
    if state.format != "torch" or state.unnamed:
        raise InputError(
            "does not list tensors in the model's order",
            where=state.path,
            remedy=f"make the file for --names-from by {_SAVE}",
        )
    # Tied tensors count once, buffers only if the number of tensors needs them.
    ties, count = state.ties, len(checkpoint.tensors)
    names = [n for n, e in state.tensors.items() if n not in ties and e.dtype.kind == "float"]
    if len(names) != count:
        names = [n for n in names if not n.endswith(_BUFFERS)]
    if len(names) != count:
        raise InputError(
            f"holds {count} tensors, but {state.path.name} has names for {len(names)}",
            where=checkpoint.path,
            remedy="pass --names-from with a state dict of the same model's parameters alone",
        )
    tensors: dict[str, Extent] = {}
    for name, (number, extent) in zip(names, checkpoint.tensors.items(), strict=True):
        shape = state.tensors[name].shape
        if shape != extent.shape:
            raise InputError(
                f"tensor {number} has shape {list(extent.shape)}, but {name} in "
                f"{state.path.name} has {list(shape)}",
                where=checkpoint.path,
                remedy="pass --names-from with a state dict of the same model",
            )
        tensors[name] = replace(extent, name=name)
    return replace(checkpoint, tensors=tensors, unnamed=False)


def without_doubles(
    snapshots: Sequence[Snapshot], drafts: Sequence[Draft]
) -> tuple[list[Snapshot], list[Finding]]:
    """Leave out files without a number, as ``last``, that are of the same time as one with it."""
    numbered = {d.file.candidate.name: is_numbered(d.file.stored.name) for d in drafts}
    names = {(s.series, s.tag.label, s.tag.step): s.name for s in snapshots if numbered[s.name]}
    kept: list[Snapshot] = []
    findings: list[Finding] = []
    for snapshot in snapshots:
        other = names.get((snapshot.series, snapshot.tag.label, snapshot.tag.step))
        if numbered[snapshot.name] or other is None:
            kept.append(snapshot)
        else:
            findings.append(left_out(f"of the same time as {other}", snapshot.name))
    return kept, findings
