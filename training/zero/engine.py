"""DeepSpeed's engine for the pre-training objective, at each ZeRO stage."""

from typing import Any

import torch
from torch import Tensor

from training.config import TrainingConfig
from training.distributed import World
from training.objective import Pretrainer
from training.optim import parameter_groups

LARGEST_BUCKET = 50_000_000  # gradients reduced together; DeepSpeed's own 500 million would be 2 GB that stage 3 sets aside at the start


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that takes no step with a non-finite gradient, and clips: what ZeRO's optimizers do by themselves, and DeepSpeed's stage 0 does not.

    `overflow` and `_global_grad_norm` have the names under which DeepSpeed's engine looks for them.
    """

    max_grad_norm = 0.0
    overflow = False
    _global_grad_norm: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"] if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.overflow = not bool(torch.isfinite(norm))
        self._global_grad_norm = torch.full_like(norm, torch.inf) if self.overflow else norm
        if self.overflow:
            return None
        if 0 < self.max_grad_norm < norm:
            torch._foreach_mul_(gradients, self.max_grad_norm / norm)
        return super().step(closure)


def stage_in_effect(config: TrainingConfig, world_size: int) -> int:
    """0 for a lone rank, which has nothing to cut: ZeRO would keep a second fp32 copy of its weights, and copy to and from it in every step.

    Masters of bf16 parameters and an offloaded AdamW are there under ZeRO alone, and stage 3 takes blocks as they come.
    """
    plain = config.zero_stage in (1, 2) and not config.bf16_params and config.offload == "none"
    return 0 if world_size == 1 and plain else config.zero_stage


def deepspeed_engine(config: TrainingConfig, pretrainer: Pretrainer, world: World, micro_batch_size: int) -> Any:
    """The engine around the objective; it takes the student's parameters over, and under stage 3 cuts them up."""
    import deepspeed

    deepspeed.utils.logging.set_log_level_from_string("warning")
    recipe, stage = config.optimizer, stage_in_effect(config, world.world_size)
    groups = parameter_groups(pretrainer.student, recipe.weight_decay, recipe.temperature_lr_scale)
    fused = world.device.type == "cuda" and config.offload == "none"
    adamw = (GuardedAdamW if stage == 0 else torch.optim.AdamW)(groups, lr=recipe.peak_lr, betas=recipe.betas, eps=recipe.epsilon, fused=fused)
    if isinstance(adamw, GuardedAdamW):
        adamw.max_grad_norm = recipe.max_grad_norm
    settings = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.global_batch_size // (micro_batch_size * world.world_size),
        "gradient_clipping": 0.0 if stage == 0 else recipe.max_grad_norm,
        "zero_optimization": _zero(stage, config.offload, sum(parameter.numel() for parameter in pretrainer.student.parameters())),
        "bf16": {"enabled": config.bf16_params},
        "torch_autocast": {"enabled": config.precision == "bf16" and not config.bf16_params, "dtype": "bfloat16"},
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW, so that an offloaded run gives what another gives
        "steps_per_print": 1_000_000_000,
    }
    engine, *_ = deepspeed.initialize(model=pretrainer.to(world.device), optimizer=adamw, config=settings, dist_init_required=False)
    if stage == 3:
        gather_small(engine.optimizer)
    return engine


def gather_small(zero: Any) -> None:
    """Stage 3's parameters that stay whole between steps; every rank must call.

    DeepSpeed does it after each applied step only. Before the first one, and after a skipped one, what reads such a parameter outside its own module (the
    temperature) would lose a step's gradient in silence.
    """
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _zero(stage: int, offload: str, num_parameters: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(LARGEST_BUCKET, num_parameters)}
    if offload == "optimizer":
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return settings
