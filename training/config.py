"""Settings of a pre-training run; the defaults are the paper's recipe for the 4M set on 8 GPUs."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.config import Section
from pipeline.core.errors import ConfigError
from shards.order.blend import parse_blend
from shards.remote.ranges import CACHE_BYTES
from training.model_config import ModelConfig

STAIR_STEPS = 100  # of the original code's warm-up, which climbs one stair in so many
LOSS_OPTIONS = (
    "objectives and their options, e.g. {itc: {}, itm: {weight: 3.0}}; weight (1.0) is an objective's factor in the sum; "
    "itc.soft_targets (true), mlm.soft_targets (true): learn from the teacher, too, with weight alpha; "
    "itc.same_image_positives (false): other captions of the pair's picture, in its group and in the queue, are its own, too; "
    "itm.hard_from_step (0): optimizer step from which negatives are drawn by ITC's similarity, before it and with null (needed without itc) uniformly; "
    "itm.same_image_negatives (true): other captions of the pair's picture may be drawn, as in the paper"
)


class InitConfig(Section):
    """Where the first weights come from; null means random."""

    vision: str | None = Field(default="deit_base_patch16_224.fb_in1k", description="timm model name, or path of a timm checkpoint (.pth, .safetensors)")
    text: str | None = Field(default="bert-base-uncased", description="Hugging Face BERT: folder or hub name")
    tokenizer: str | None = Field(default="bert-base-uncased", description="vocab.txt, folder or hub name; null trains a vocabulary from the captions")
    checkpoint: str | None = Field(
        default=None,
        description="start from all weights of this, in place of vision and text: a checkpoint folder, a folder that albef exported, or a published "
        "ALBEF file; student, teacher, and the queue where its size fits; at step 0. With tokenizer null its own vocabulary is taken",
    )
    vocabulary_size: int = Field(default=1000, ge=100, description="word pieces of a vocabulary trained from the captions")


class OptimizerConfig(Section):
    """AdamW and its learning rate."""

    peak_lr: float = Field(default=1e-4, gt=0, description="learning rate after the warm-up")
    final_lr: float = Field(default=1e-5, ge=0, description="learning rate of the last step, at most peak_lr")
    warmup_steps: int | None = Field(
        default=None, ge=0, description="optimizer steps of warm-up; null is the schedule's own: 1,000 (paper), 2,000 in stairs of 100 (original_code)"
    )
    reference_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="global batch that peak_lr is meant for: with another one the peak, and it alone, is scaled linearly; null takes peak_lr as it is",
    )
    weight_decay: float = Field(default=0.02, ge=0, description="AdamW decay of weights with two or more dimensions, and of the temperature")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW moment decays")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW epsilon")
    temperature_lr_scale: float = Field(default=1.0, ge=0, description="learning rate of ITC's temperature over the others'; 0 keeps it at model.temperature")
    max_grad_norm: float = Field(default=0.0, ge=0, description="clip the global gradient norm; 0 does not clip (as the paper)")

    @model_validator(mode="after")
    def _falls(self) -> "OptimizerConfig":
        if self.final_lr > self.peak_lr:
            raise ValueError(f"final_lr {self.final_lr:g} is above peak_lr {self.peak_lr:g}, from which the rate falls to it; set it to at most that")
        return self


class ValidationConfig(Section):
    """Losses on held-out pairs."""

    dataset: str = Field(description="dataset folder of held-out pairs: path or s3:// URL")
    manifest: int | None = Field(default=None, ge=1, description="its manifest number; null takes the newest at each start")
    every_steps: int = Field(default=1000, ge=1, description="optimizer steps between validations")
    max_pairs: int = Field(default=1024, ge=2, description="pairs looked at, in groups of group_size; always the same ones")
    teacher: bool = Field(default=False, description="the teacher's losses, too, as val/teacher/...")


class ProfileConfig(Section):
    """torch's profiler over some steps of rank 0, written to train/profile."""

    first_step: int = Field(default=20, ge=1, description="first optimizer step profiled")
    steps: int = Field(default=3, ge=1, description="steps profiled; a trace grows by some 10 MB a step")
    memory_snapshot: bool = Field(default=False, description="a snapshot of CUDA memory as well, for pytorch.org/memory_viz")


class WandbConfig(Section):
    """Figures to Weights & Biases as well; needs the extra wandb."""

    project: str = Field(description="wandb project")
    name: str | None = Field(default=None, description="of the run there; null lets wandb choose")
    mode: Literal["online", "offline"] = Field(default="online", description="offline: only on disk, for `wandb sync`")


class TrainingConfig(Section):
    """One pre-training run."""

    dataset: str | dict[str, Any] = Field(
        description="dataset folder: path or s3:// URL; or several, mixed by weight: {blend: [{dataset: FOLDER, weight: 3}, {blend: [...], weight: 1}]}, "
        "where weights are shares of the items drawn, and a dataset may have a name for logs and a manifest number"
    )
    manifest: int | None = Field(default=None, ge=1, description="manifest number to pin; null takes the newest at the first start and pins it")
    lanes: int | None = Field(
        default=None, ge=1, description="stretches an epoch's shards are read in side by side, so many nodes can share the reading; null is one for each 20 "
        "shards, at most 64, a divisor of global_batch_size",
    )  # fmt: skip
    block_shards: int | None = Field(
        default=None, ge=1, description="shards of a lane that are shuffled together; null is 64 over all lanes, 4 a lane at least"
    )
    cache_gib: float = Field(
        default=CACHE_BYTES / 2**30,
        gt=0,
        description="GiB of local disk, per node, for what remote shards hold in use: by default 64 shards of half a GiB, and room to fetch ahead",
    )
    cache_folder: str | None = Field(default=None, description="local folder of that cache, shared by the ranks of a node; null is one in the temporary folder")
    model: ModelConfig = Field(default=ModelConfig(), description="sizes of the network")
    init: InitConfig = Field(default=InitConfig(), description="first weights")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="AdamW and its schedule")
    losses: dict[str, dict[str, Any] | None] = Field(default={"itc": None, "itm": None, "mlm": None}, min_length=1, description=LOSS_OPTIONS)

    schedule: Literal["paper", "original_code"] = Field(
        default="paper",
        description="of the learning rate. paper: from 0 in a straight line, then a cosine by steps to final_lr at the last; "
        "original_code: stairs of 100 steps from 1e-5, then a cosine by epochs, which max_steps does not shorten",
    )
    epochs: int = Field(default=30, ge=1, description="passes over the dataset")
    max_steps: int | None = Field(default=None, ge=1, description="end after this many optimizer steps even if epochs are left; schedule paper ends there too")
    epoch_over: Literal["pairs", "images"] = Field(default="pairs", description="one item per (picture, caption), or per picture with one caption drawn")
    global_batch_size: int = Field(default=512, ge=1, description="pairs per optimizer step over all ranks; constant whatever the number of ranks")
    micro_batch_size: int | None = Field(default=None, ge=1, description="pairs per rank and pass; null divides the global batch by the ranks")
    group_size: int = Field(
        default=64, ge=1, description="consecutive pairs that are each other's in-batch keys and ITM negatives; alone in its group, a pair has none of either"
    )
    negatives: Literal["group", "global"] = Field(
        default="group",
        description="which pairs are these. group: those of the own group_size; global: all of the global batch, over all ranks, whatever group_size is; "
        "needs the global batch in one pass, no accumulation, and waits for the device once a step",
    )

    momentum: float = Field(default=0.995, ge=0, le=1, description="decay of the teacher's moving average")
    alpha: float = Field(default=0.4, ge=0, le=1, description="weight of the teacher's soft targets after the ramp")
    alpha_start_step: int = Field(default=0, ge=0, description="optimizer step at which the ramp of alpha starts")
    alpha_ramp_steps: int | None = Field(default=None, ge=0, description="optimizer steps from 0 to alpha; null is one epoch")
    queue_size: int = Field(default=65536, ge=0, description="teacher features kept as further keys")
    mlm_probability: float = Field(default=0.15, gt=0, lt=1, description="share of word pieces selected for MLM")
    max_tokens: int = Field(default=25, ge=2, description="word pieces kept of a caption, [CLS] included")

    patch_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of a picture's patches that the student does not see, others at each visit (FLIP); the teacher sees all, as evaluation does",
    )
    crop_scale: tuple[float, float] = Field(default=(0.2, 1.0), description="area range of the random crop, as shares of the picture")
    flip: bool = Field(default=True, description="flip half of the pictures left to right; off where captions speak of left and right")
    randaugment: bool = Field(default=True, description="ALBEF's ten operations, two a picture, strength 7 of 10")
    sharpness: Literal["clipped", "original"] = Field(default="clipped", description="of RandAugment: clip to 0..255, or wrap around as the original code")
    transform: Literal["fast", "parity"] = Field(
        default="fast", description="parity: crops and operations equal torchvision's and the original's pixel for pixel"
    )
    augment_on: Literal["cpu", "device"] = Field(default="cpu", description="where RandAugment runs; device: the same draws, in batches, beside the model")

    precision: Literal["fp32", "bf16"] = Field(default="bf16", description="compute type; parameters stay fp32 (DeepSpeed torch_autocast)")
    bf16_params: bool = Field(
        default=False,
        description="keep the computing parameters and their gradients in bf16 beside ZeRO's fp32 masters: less memory; rounds temperature and norms",
    )
    compile: bool = Field(
        default=False, description="torch.compile every block on its own: minutes at the start (it needs a C++ compiler), fewer passes over memory later"
    )
    activation_checkpointing: bool = Field(
        default=False, description="keep only what goes into a block and compute the block again in the backward pass: less memory, about a third more compute"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="what DeepSpeed cuts over ranks: nothing (0), AdamW's state (1), gradients too (2), parameters too (3); 2 and 3 are for larger models; "
        "a lone rank runs 1 and 2 as 0",
    )
    offload: Literal["none", "optimizer"] = Field(default="none", description="optimizer: AdamW's state and its step are on the CPU (zero_stage 1 to 3)")
    seed: int = Field(default=42, ge=0, description="seed of order, crops, masks, draws, dropout and first weights")
    num_workers: int = Field(default=4, ge=0, description="threads per rank that read and decode")
    torch_threads: int | None = Field(default=None, ge=1, description="CPU threads per rank; null divides the cores by the local ranks")

    log_every_steps: int = Field(default=20, ge=1, description="optimizer steps between lines in the log and tensorboard; metrics.jsonl has every step")
    data_wait_window_steps: int = Field(default=100, ge=2, description="steps over which waiting for data is summed up; a hundred make a p99")
    data_wait_warn_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="warn, naming the slow stage, above this share of a window spent waiting for data; workers in time leave under 0.01",
    )
    checkpoint_folder: str | None = Field(
        default=None, description="where checkpoints go, path or s3:// URL, of this run alone; null is train/checkpoints in the run directory"
    )
    save_every_steps: int = Field(default=1000, ge=1, description="optimizer steps between checkpoints; the last step always saves")
    keep_last: int = Field(default=2, ge=1, description="checkpoints kept, the newest ones")
    keep_every_steps: int | None = Field(default=None, ge=1, description="checkpoints at multiples of this many optimizer steps are kept for good; null none")
    save_patience_s: float = Field(
        default=600,
        ge=0,
        description="seconds for which a full disk or a store that does not answer is tried again, at a start too, before the run stops with exit code 4",
    )
    evaluate_every_steps: int | None = Field(default=None, ge=1, description="optimizer steps between evaluations on the validation split; null never")
    validation: ValidationConfig | None = Field(default=None, description="losses on held-out pairs while training; null none")
    profile: ProfileConfig | None = Field(default=None, description="torch's profiler over some steps; null none")
    wandb: WandbConfig | None = Field(default=None, description="figures to Weights & Biases as well; null none")
    live: bool = Field(default=False, description="a live view of the run on rank 0's terminal, where there is one")
    max_skipped_in_a_row: int = Field(
        default=10, ge=1, description="skipped steps (non-finite loss or gradient) in a row before the run goes back or stops with exit code 4"
    )
    roll_back: Literal["never", "non_finite", "spikes"] = Field(
        default="never",
        description="go back to the last checkpoint before steps that went wrong, and leave their data out: after max_skipped_in_a_row skipped steps "
        "(non_finite), or also when loss or gradient norm jump above ten times their usual spread (spikes)",
    )
    roll_back_limit: int = Field(default=3, ge=0, description="roll-backs a run makes at most")
    compare_ranks_every_steps: int = Field(default=1000, ge=1, description="optimizer steps between comparisons of what all ranks should hold alike")
    hang_report_s: float = Field(default=600, gt=0, description="seconds without progress after which the stacks of all ranks are written to train/hang")
    hang_exit_s: float | None = Field(default=None, gt=0, description="seconds without progress after which the process ends with exit code 4; null never")
    quarantine_budget: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of the dataset's samples that may be damaged and replaced before the run ends with exit code 3: a few lost shards, not a lost copy",
    )

    @field_validator("losses", mode="before")
    @classmethod
    def _losses_have_options(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)] or ["itc", "itm", "mlm"]
            raise ValueError(f"should be names with their options, where {{}} leaves all at their defaults: {{{', '.join(f'{name}: {{}}' for name in names)}}}")
        for name, options in value.items():
            if not isinstance(options, dict | None):
                raise ValueError(f"{name} should have options by name, where {{}} leaves all at their defaults: {{{name}: {{weight: 1.0}}}}")
        return value

    @field_validator("dataset")
    @classmethod
    def _blend_parses(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        try:
            parse_blend(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _fields_fit(self) -> "TrainingConfig":
        if self.max_tokens > self.model.max_positions:
            raise ValueError(f"max_tokens {self.max_tokens} is more than model.max_positions {self.model.max_positions}")
        if self.transform == "parity" and self.randaugment and self.augment_on == "device":
            raise ValueError("augment_on device rounds warps differently from the original's pixels, which transform parity asks for; take one of the two")
        if self.schedule == "original_code" and (self.optimizer.warmup_steps or 0) % STAIR_STEPS:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} is not a multiple of {STAIR_STEPS}, the stairs that schedule original_code climbs in; "
                "take one, or schedule paper"
            )
        if self.bf16_params and (self.precision != "bf16" or self.zero_stage == 0):
            raise ValueError(
                f"bf16_params needs precision bf16 and zero_stage 1 to 3, found {self.precision} and {self.zero_stage}: "
                "without ZeRO's fp32 masters small updates would be rounded away"
            )
        if self.hang_exit_s is not None and self.hang_exit_s <= self.hang_report_s:
            raise ValueError(f"hang_exit_s {self.hang_exit_s:g} must be more than hang_report_s {self.hang_report_s:g}, else nothing is reported")
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError("offload optimizer needs zero_stage 1 to 3, found 0: stage 0 keeps AdamW's state with the parameters")
        if self.manifest is not None and not isinstance(self.dataset, str):
            raise ValueError("manifest pins one dataset; of a blend, give each dataset its own manifest")
        if self.global_batch_size % self.pairs_per_group:
            fitting = divisors(self.global_batch_size)
            raise ValueError(f"global_batch_size {self.global_batch_size} is not a multiple of group_size {self.group_size}; group sizes that fit: {fitting}")
        return self

    @property
    def pairs_per_group(self) -> int:
        """Consecutive pairs of the global batch that are each other's in-batch keys and ITM candidates."""
        return self.global_batch_size if self.negatives == "global" else self.group_size

    @property
    def num_kept_patches(self) -> int:
        """Patches of a picture that the student sees; the same for all, so that batches keep one shape."""
        return max(1, round(self.model.num_patches * (1 - self.patch_dropout)))


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
