"""How a global batch is made of micro-batch, accumulation and ranks."""

from pipeline.core.errors import ConfigError
from training.config import TrainingConfig, divisors


def split_of(config: TrainingConfig, world_size: int) -> tuple[int, int]:
    """(micro-batch size, accumulation steps) that make the global batch on this many ranks: any product of the three, with groups left whole.

    Where the global batch is one group it has to be one pass over all ranks.
    Raises ConfigError when no split exists, naming the numbers of ranks, or the micro-batch sizes, that fit.
    """
    if config.negatives == "global":
        return _in_one_pass(config, world_size), 1
    per_rank, left = divmod(config.global_batch_size, world_size)
    if left or per_rank % config.group_size:
        raise ConfigError(
            f"training.global_batch_size {config.global_batch_size} cannot be split over {world_size} ranks in groups of {config.group_size}; "
            f"ranks that fit: {divisors(config.global_batch_size // config.group_size)}"
        )
    micro_batch_size = config.micro_batch_size or per_rank
    if per_rank % micro_batch_size or micro_batch_size % config.group_size:
        raise ConfigError(
            f"training.micro_batch_size {micro_batch_size} must divide the {per_rank} pairs a rank has per step and be a multiple of "
            f"group_size {config.group_size}; sizes that fit: {[config.group_size * groups for groups in divisors(per_rank // config.group_size)]}"
        )
    return micro_batch_size, per_rank // micro_batch_size


def _in_one_pass(config: TrainingConfig, world_size: int) -> int:
    """The micro-batch size."""
    per_rank, left = divmod(config.global_batch_size, world_size)
    if left:
        raise ConfigError(
            f"training.global_batch_size {config.global_batch_size} cannot be split over {world_size} ranks; "
            f"ranks that fit: {divisors(config.global_batch_size)}"
        )
    if config.micro_batch_size not in (None, per_rank):
        raise ConfigError(
            f"training.micro_batch_size {config.micro_batch_size} would accumulate, but training.negatives global needs the global batch of "
            f"{config.global_batch_size} in one pass; on {world_size} ranks set it to {per_rank} or null"
        )
    return per_rank
