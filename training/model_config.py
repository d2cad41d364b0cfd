"""The sizes of one ALBEF model; the defaults are the paper's (ViT-B/16 at 256 px, BERT-base split 6 + 6)."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.core.config import Section

HEAD_WIDTH = 64  # of every attention head of the published ALBEF, DeiT and BERT models; heads leave no trace in the shapes
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5  # as in the original code, which clamps it in every forward pass


class ModelConfig(Section):
    """Everything needed to build the model; stored with every checkpoint."""

    image_size: int = Field(default=256, ge=1, description="side of the square input picture, pixels")
    patch_size: int = Field(default=16, ge=1, description="side of one patch, pixels")
    vision_width: int = Field(default=768, ge=1, description="width of the image encoder")
    vision_depth: int = Field(default=12, ge=1, description="blocks of the image encoder")
    vision_heads: int = Field(default=12, ge=1, description="attention heads of the image encoder")
    vision_mlp_ratio: float = Field(default=4.0, gt=0, description="hidden width of the image encoder's MLPs over vision_width")
    image_pool: Literal["cls", "mean"] = Field(default="cls", description="what ITC projects: the [CLS] token's state, or the mean over patches")
    text_hidden: int = Field(default=768, ge=1, description="width of the text and fusion layers")
    text_heads: int = Field(default=12, ge=1, description="attention heads of the text and fusion layers")
    text_layers: int = Field(default=6, ge=1, description="layers that see text alone")
    fusion_layers: int = Field(default=6, ge=1, description="layers with cross-attention to the picture")
    text_intermediate: int = Field(default=3072, ge=1, description="hidden width of the text and fusion layers' feed-forward parts")
    vocab_size: int = Field(default=30522, ge=1, description="word pieces in the vocabulary")
    max_positions: int = Field(default=512, ge=1, description="longest text the position table holds, tokens")
    type_vocab_size: int = Field(default=2, ge=1, description="rows of the token type table; row 0 is added to every token")
    hidden_dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout after embeddings, attention and feed-forward parts of the text side")
    attention_dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of the text side's attention weights")
    embed_dim: int = Field(default=256, ge=1, description="width of the projected features ITC compares")
    temperature: float = Field(default=0.07, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="initial softmax temperature of ITC; learned")
    init_std: float = Field(default=0.02, gt=0, description="standard deviation of fresh weights")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.vision_width % self.vision_heads:
            raise ValueError(f"vision_width {self.vision_width} cannot be split over {self.vision_heads} vision_heads")
        if self.text_hidden % self.text_heads:
            raise ValueError(f"text_hidden {self.text_hidden} cannot be split over {self.text_heads} text_heads")
        return self

    @property
    def num_patches(self) -> int:
        """Patches of one picture, the [CLS] token not counted."""
        return (self.image_size // self.patch_size) ** 2
