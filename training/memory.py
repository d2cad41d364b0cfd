"""What a rank's weights and their company will take, before anything is allocated."""

from dataclasses import asdict, dataclass

from training.config import TrainingConfig
from training.zero.engine import LARGEST_BUCKET, stage_in_effect

FP32, BF16, INT64 = 4, 2, 8  # bytes
GIB = 2**30


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank between backward pass and optimizer step, without activations and what libraries keep for themselves."""

    parameters: int  # that compute
    gradients: int
    buckets: int  # that stage 3 keeps ready to reduce gradients in
    optimizer: int  # AdamW's moments and ZeRO's fp32 masters; with `offload` on the host, with buffers to and from it
    ema: int  # the teacher's fp32 average
    teacher: int  # its compute copy, where that is another tensor
    queue: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = [f"{name} {size / GIB:.3g}" for name, size in asdict(self).items() if size]
        return f"{self.total / GIB:.3g} GiB a rank beside activations ({', '.join(parts)})"


def memory_of_rank(num_parameters: int, config: TrainingConfig, world_size: int) -> RankMemory:
    """Under the ZeRO stage in effect and the configured precision.

    DeepSpeed 0.19: stage 0 has all of everything but the average; stages 1 and 2 all weights and a slice of the rest (in a backward pass stage 1 has all
    gradients for a while); stage 3 a slice of everything and its buckets (and in the passes the weights of the blocks at work).
    """
    total, share = num_parameters, -(-num_parameters // world_size)
    compute = BF16 if config.bf16_params else FP32
    queue = config.queue_size * (2 * config.model.embed_dim * FP32 + INT64)
    whole_teacher = total * (BF16 if config.precision == "bf16" else FP32)
    if world_size == 1 and config.precision == "fp32":
        whole_teacher = 0  # the average itself
    stage = stage_in_effect(config, world_size)
    if stage == 0:
        return RankMemory(total * FP32, total * FP32, 0, 2 * total * FP32, share * FP32, whole_teacher, queue)
    moments_and_masters = (5 if config.offload == "optimizer" else 3) * share * FP32
    if stage < 3:
        gradients = 0 if config.offload == "optimizer" else share * compute
        return RankMemory(total * compute, gradients, 0, moments_and_masters, share * FP32, whole_teacher, queue)
    bucket = min(LARGEST_BUCKET, total) * (FP32 + BF16 if config.precision == "bf16" and not config.bf16_params else compute)
    teacher = whole_teacher if world_size == 1 else 0  # a block's weights at a time
    return RankMemory(share * compute, share * compute, bucket, moments_and_masters, share * FP32, teacher, queue)
