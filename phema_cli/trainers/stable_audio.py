"""stable-audio-tools: ema_pytorch's average below ``diffusion_ema.`` and the like."""

from phema_cli.trainers.base import Reading, StoredFile

NAME = "stable-audio-tools"
SOURCE = "Stability-AI/stable-audio-tools, training/diffusion.py, training/autoencoders.py"

_PREFIXES = ("diffusion_ema.", "autoencoder_ema.", "diffae_ema.")


def read(file: StoredFile) -> Reading | None:
    """Its wrappers' settings of ema_pytorch, whose own module reads the average."""
    if not any(n.startswith(_PREFIXES) for n in file.dicts.get("state_dict", {})):
        return None
    return Reading(hint="ema-pytorch:beta=0.9999,power=0.75,every=1,update_after=1")
