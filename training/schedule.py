"""Learning rate and distillation weight as pure functions of the step, so that a resumed run needs no scheduler state."""

import math


def learning_rate(step: int, total: int, warmup_steps: int, peak: float, final: float) -> float:
    """Linear from 0 to `peak` over `warmup_steps`, then a cosine that is exactly `final` at the last step, `total - 1`."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    cosine_steps = total - 1 - warmup_steps
    if step >= total - 1 or cosine_steps <= 0:
        return final
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / cosine_steps))


def alpha(step: int, ramp_steps: int, alpha_max: float) -> float:
    """Weight of the teacher's soft targets: linear from 0 to `alpha_max` over `ramp_steps` (the paper: the first epoch), then constant."""
    return alpha_max if step >= ramp_steps else alpha_max * step / ramp_steps
