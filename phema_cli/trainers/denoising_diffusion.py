"""denoising-diffusion-pytorch: ema_pytorch's average, raw weights twice, milestones in names."""

from phema_cli.trainers.base import Reading, StoredFile

NAME = "denoising-diffusion-pytorch"
SOURCE = "lucidrains/denoising-diffusion-pytorch, denoising_diffusion_pytorch.py"

KEYS = {"step", "model", "opt", "ema", "version"}


def read(file: StoredFile) -> Reading | None:
    """The clock is ``step``; ema_pytorch's own module reads the average."""
    clock = file.clock("step")
    hint = "ema-pytorch:beta=0.995,every=10"
    return None if clock is None else Reading(clock=clock, hint=hint)
