"""What the evaluation can be told."""

from typing import Any, Literal

from pydantic import Field

from pipeline.core.config import Section


class EvalConfig(Section):
    """Benchmarks of one checkpoint."""

    tasks: dict[str, dict[str, Any] | None] = Field(description="benchmarks to run: name -> its options (eval/tasks/ says which)")
    checkpoint: str | None = Field(default=None, description="checkpoint folder, or a folder of checkpoints (its newest); null takes the run's own newest")
    tower: Literal["student", "teacher"] = Field(default="student", description="whose weights: the trained ones or their moving average")
    device: str = Field(default="auto", description="auto (cuda where there is one), cpu, cuda, cuda:1, ...")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="compute type")
    state_type: Literal["float16", "float32"] = Field(default="float16", description="type in which token states wait in memory for re-ranking")
    batch_size: int = Field(default=64, ge=1, description="pictures or texts encoded at a time")
    pairs_per_batch: int = Field(default=256, ge=1, description="picture-text pairs that go through the fusion layers at a time")
    max_words: int = Field(default=30, ge=1, description="words kept of a caption")
    max_tokens: int = Field(default=30, ge=2, description="word pieces kept of a caption, [CLS] included")
    baselines: str | None = Field(default=None, description='JSON {"name": {"text_recall@1": 88.0, ...}} of rows to show beside the results')
    validation_split: str = Field(default="val", description="split on which checkpoints are scored while training")
