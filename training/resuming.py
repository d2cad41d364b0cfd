"""Whether a run may go on from the checkpoint in its folder: only where nothing that shapes the result has changed."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core import config as configuration
from pipeline.core import storage
from pipeline.core.errors import ConfigError
from training import checkpoint
from training.checkpoint import place
from training.checkpoint.patience import ask_patiently
from training.config import TrainingConfig
from training.distributed import World
from training.losses import LOSSES

# What may differ between a checkpoint and the run that continues it; anything else would be another experiment.
MAY_CHANGE = {
    "dataset", "manifest", "cache_gib", "cache_folder", "micro_batch_size", "num_workers", "torch_threads", "log_every_steps", "save_every_steps", "keep_last",
    "compile", "evaluate_every_steps", "max_skipped_in_a_row", "quarantine_budget", "zero_stage", "offload", "activation_checkpointing", "init",
    "data_wait_window_steps", "data_wait_warn_share", "keep_every_steps", "checkpoint_folder", "save_patience_s", "validation", "profile", "wandb",
    "live", "roll_back", "roll_back_limit", "compare_ranks_every_steps", "hang_report_s", "hang_exit_s",
}  # fmt: skip
ABSENT = "not there"


def to_go_on_from(run_folder: Path, config: TrainingConfig, world: World) -> checkpoint.Checkpoint | None:
    """The newest whole checkpoint of this run, if there is one; every rank must call, and verifies its share of the files.

    Raises:
        ConfigError: it is of another run, or the run's checkpoints are in another place.
        DataError: nothing can be written there.
        Stopped: the store of the checkpoints did not answer for `save_patience_s`.
    """
    checkpoints = place.place_of(str(run_folder), config.checkpoint_folder)
    saved = checkpoint.newest(checkpoints, world, config.save_patience_s)
    if saved:
        world.together(lambda: refuse_another(config, saved))
    else:
        world.together(lambda: _require_good_place(checkpoints, run_folder, config) if world.rank == 0 else None)
    world.together(lambda: place.remember(run_folder, config.checkpoint_folder) if world.rank == 0 else None)
    return saved


def _require_good_place(checkpoints: str, run_folder: Path, config: TrainingConfig) -> None:
    ask_patiently(partial(place.refuse_to_begin_anew, run_folder, config.checkpoint_folder), checkpoints, config.save_patience_s)
    _require_writable(checkpoints, config.save_patience_s)


def _require_writable(checkpoints: str, patience_s: float) -> None:
    """A place that does not exist is told now, not when the first thousand steps are to be saved."""
    probe = storage.join(checkpoints, ".probe.tmp")
    ask_patiently(partial(storage.write_bytes, probe, b""), checkpoints, patience_s)
    ask_patiently(partial(storage.remove, probe), checkpoints, patience_s)


def refuse_another(config: TrainingConfig, saved: checkpoint.Checkpoint) -> None:
    """Raises ConfigError when there is no run behind the checkpoint, or one whose settings were others."""
    if saved.published:
        raise ConfigError(f"{saved.path} has no run of ours behind it to go on with; start from it with training.init.checkpoint in another run.folder")
    refuse_changed(config, saved)


def refuse_changed(config: TrainingConfig, saved: checkpoint.Checkpoint) -> None:
    """Raises ConfigError when a setting that shapes the result differs from the checkpoint's, or is known no more."""
    before, after = _every_setting(saved.manifest["training"]), _every_setting(config.model_dump(mode="json"))
    if gone := [key for key in before if key not in after and key.split(".")[0] not in {*MAY_CHANGE, "losses"}]:
        raise ConfigError(
            f"training.{gone[0]} does not exist any more, but {saved.path} was trained with it ({before[gone[0]]!r}); "
            "go on with the version of albef that wrote it, or give run.folder a new name to start another run"
        )
    for key in {**after, **before}:
        if key.split(".")[0] not in MAY_CHANGE and before.get(key, ABSENT) != after.get(key, ABSENT):
            raise ConfigError(
                f"training.{key} is {after.get(key, ABSENT)!r}, but {saved.path} was trained with {before.get(key, ABSENT)!r}; "
                "set it back, or give run.folder a new name to start another run"
            )


def _every_setting(training: Mapping[str, Any]) -> dict[str, Any]:
    """Flat, with today's default for what is not said, options of losses too: a setting that came after a checkpoint cannot be set back in it."""
    losses = {name: (vars(LOSSES[name]()) if name in LOSSES else {}) | (options or {}) for name, options in training["losses"].items()}
    defaults = TrainingConfig(dataset="any").model_dump(mode="json", exclude={"losses"})
    return configuration.flatten(defaults) | configuration.flatten({**training, "losses": losses})
