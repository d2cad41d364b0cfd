"""Settings of the drawn world."""

import os
from typing import Literal

from pydantic import Field

from pipeline.core.config import Section


class StandinConfig(Section):
    """The stand-in for ImageNet weights: a small ViT classifying labelled pictures of one object."""

    resolution: int = Field(default=64, ge=16, description="side of the pictures the ViT reads, px; a multiple of patch_size")
    patch_size: int = Field(default=16, ge=4, description="side of a patch, px")
    embed_dim: int = Field(default=128, ge=8, description="width of the ViT")
    depth: int = Field(default=3, ge=1, description="layers of the ViT")
    num_heads: int = Field(default=4, ge=1, description="attention heads of the ViT; divides embed_dim")
    pool: Literal["token", "avg"] = Field(default="avg", description="what the classifier reads: the class token, or the mean of the patch tokens")
    pictures: int = Field(default=12_000, ge=64, description="labelled training pictures")
    held_out: int = Field(default=1_000, ge=64, description="labelled pictures the accuracy is measured on")
    epochs: int = Field(default=5, ge=1, description="passes over the labelled pictures")
    batch_size: int = Field(default=64, ge=1, description="pictures per optimizer step")
    peak_lr: float = Field(default=1.5e-3, gt=0, description="highest learning rate of the one-cycle schedule")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW weight decay")


class ScenesConfig(Section):
    """How large the drawn world is, how noisy its captions and URLs are, and where its pictures will be served."""

    seed: int = Field(default=0, description="the same seed and settings give the same bytes, however many processes draw")
    train: int = Field(default=16_000, ge=1, description="training pictures")
    validation: int = Field(default=250, ge=1, description="validation pictures, apart from training and test")
    test: int = Field(default=250, ge=2, description="test pictures")
    picture_size: int = Field(default=128, ge=32, description="side of the square pictures, px")
    jpeg_quality: int = Field(default=92, ge=1, le=100, description="JPEG quality of the pictures")
    captions_per_picture: int = Field(default=4, ge=1, description="captions of a training picture (held-out pictures have 5)")
    wrong_rate: float = Field(default=0.03, ge=0, le=1, description="share of training captions that belong to another picture")
    vague_rate: float = Field(default=0.03, ge=0, le=1, description="share of training captions that say nothing (file names, slogans)")
    duplicate_rate: float = Field(default=0.03, ge=0, le=1, description="share of training captions that repeat another one of their picture")
    bad_url_rate: float = Field(default=0.03, ge=0, le=1, description="share of training pictures whose URL is broken (404, truncated, html, slow in turn)")
    base_url: str = Field(default="http://127.0.0.1:8765", description="where the pictures will be served; the prefix of every URL")
    processes: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, description="processes that draw (default: one per core)")
    standin: StandinConfig = Field(default=StandinConfig(), description="the stand-in for ImageNet weights")
