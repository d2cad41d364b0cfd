"""Learning rate and distillation weight as pure functions of the step, so that a resumed run needs no scheduler state."""

import math

from training.config import STAIR_STEPS, TrainingConfig

WARMUP_STEPS = {"paper": 1000, "original_code": 2000}  # the original's "warmup_epochs: 20" are 20 stairs of 100 iterations
STAIRS_START = 1e-5  # the original's warmup_lr; it is not scaled with the batch, just as its authors left it (issue 39)


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The rate that optimizer step `step`, counted from 0, is taken with, after the configured schedule."""
    recipe, warmup_steps, peak = config.optimizer, _warmup_steps(config), _peak(config)
    if config.schedule == "original_code":
        return stairs_then_cosine_of_epochs(step, steps_per_epoch, config.epochs, warmup_steps, peak, recipe.final_lr)
    return ramp_then_cosine(step, total_steps, warmup_steps, peak, recipe.final_lr)


def misfits(config: TrainingConfig, steps_per_epoch: int, total_steps: int) -> list[str]:
    """What the schedule cannot do in so many steps or with this global batch, each a sentence for the log; no reason to refuse a short trial."""
    recipe, warmup_steps, peak = config.optimizer, _warmup_steps(config), _peak(config)
    original = config.schedule == "original_code"
    room = min(steps_per_epoch, total_steps) if original else total_steps
    found = []
    if warmup_steps and warmup_steps + original >= room:  # the original's rate is set one step late
        found.append(
            f"training.optimizer.warmup_steps: the warm-up of {warmup_steps:,} steps is cut short after {room:,}, where the "
            f"{'first epoch' if room < total_steps else 'run'} ends, at a learning rate of {learning_rate(config, room - 1, steps_per_epoch, total_steps):.3g} "
            f"on its way to {peak:.3g}; set fewer"
        )
    if peak < recipe.final_lr:
        found.append(
            f"training.optimizer.final_lr {recipe.final_lr:g} is above the peak, which is {peak:.3g} for a global batch of {config.global_batch_size}, so the "
            "learning rate rises to the end; set it lower"
        )
    return found


def alpha(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Weight of the teacher's soft targets at `step`; the original code's is the paper's: i / len(loader) in the first epoch, then constant."""
    ramp_steps = steps_per_epoch if config.alpha_ramp_steps is None else config.alpha_ramp_steps
    return ramp(step - config.alpha_start_step, ramp_steps, config.alpha)


def scaled_peak(peak: float, global_batch_size: int, reference_batch_size: int | None) -> float:
    """The linear scaling rule (Goyal et al. 2017) for the peak alone, as ALBEF's authors took 2e-4 for 16 GPUs and left the rest (issues 39, 92)."""
    return peak if reference_batch_size is None else peak * (global_batch_size / reference_batch_size)


def ramp_then_cosine(step: int, total: int, warmup_steps: int, peak: float, final: float) -> float:
    """Linear from 0 to `peak` over `warmup_steps`, then a cosine, step by step, that is exactly `final` at the last one, `total - 1`.

    A run that ends inside its warm-up ends on the straight line.
    """
    if step < warmup_steps:
        return ramp(step, warmup_steps, peak)
    if step >= total - 1:
        return final
    return cosine((step - warmup_steps) / (total - 1 - warmup_steps), peak, final)


def stairs_then_cosine_of_epochs(step: int, steps_per_epoch: int, epochs: int, warmup_steps: int, peak: float, final: float) -> float:
    """What the original's code does: in the first epoch stairs of 100 steps from 1e-5 to `peak`, afterwards a cosine that is constant within an epoch.

    The rate is set after every hundredth iteration, hence one step late, and the next epoch's cosine cuts a warm-up that is longer than the first.
    """
    epoch = step // steps_per_epoch
    if epoch > 0:
        return cosine(min(epoch / epochs, 1.0), peak, final)
    stairs = warmup_steps // STAIR_STEPS
    climbed = min(max(step - 1, 0) // STAIR_STEPS, stairs)
    return STAIRS_START + ramp(climbed, stairs, peak - STAIRS_START)


def ramp(step: int, steps: int, end: float) -> float:
    """0 up to step 0, linear to `end` over `steps`, then constant."""
    return end if step >= steps else end * max(0, step) / max(1, steps)


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _warmup_steps(config: TrainingConfig) -> int:
    return WARMUP_STEPS[config.schedule] if config.optimizer.warmup_steps is None else config.optimizer.warmup_steps


def _peak(config: TrainingConfig) -> float:
    return scaled_peak(config.optimizer.peak_lr, config.global_batch_size, config.optimizer.reference_batch_size)
