"""Where the checkpoints of a run are: below its own folder, or where `training.checkpoint_folder` put them, which the run's folder remembers."""

from pathlib import Path

from pipeline.core import storage
from pipeline.core.errors import ConfigError
from training.checkpoint.layout import content, latest_of

MEMORY = "checkpoint_folder.txt"


def place_of(run_folder: str, configured: str | None) -> str:
    """The folder of checkpoints that the settings mean."""
    return configured or storage.join(run_folder, "train", "checkpoints")


def remembered(run_folder: str) -> str:
    """The folder of checkpoints that the last start of the run meant."""
    memory = content(storage.join(run_folder, "train", MEMORY))
    return place_of(run_folder, memory.decode().strip() if memory else None)


def remember(run_folder: Path, configured: str | None) -> None:
    """Nothing is written where nothing changes: a run may go on though its disk is full."""
    if remembered(str(run_folder)) == place_of(str(run_folder), configured):
        return
    memory = run_folder / "train" / MEMORY
    if configured:
        storage.write_bytes(str(memory), f"{configured}\n".encode())
    else:
        memory.unlink(missing_ok=True)


def refuse_to_begin_anew(run_folder: Path, configured: str | None) -> None:
    """Raises ConfigError where the place has no checkpoint, but the run's last place has: its steps would be taken, and its figures written, again."""
    before = remembered(str(run_folder))
    if latest := latest_of(before):
        raise ConfigError(
            f"training.checkpoint_folder: {place_of(str(run_folder), configured)} has no checkpoint, but {before} has this run's {latest}; "
            "copy that folder to the new place or set it back, or give run.folder a new name to start another run"
        )
