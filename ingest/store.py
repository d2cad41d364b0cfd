"""Which pictures are kept, and how they are stored."""

from typing import Literal

from pydantic import Field, field_validator

from pipeline.core.config import Section


class StoreConfig(Section):
    """Which pictures are kept, and how they are stored."""

    image_size: int = Field(default=256, ge=1, description="size after resizing, in pixels; resize_mode says of what")
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = Field(
        default="keep_ratio", description="keep_ratio: the short side becomes image_size; keep_ratio_largest: the long side; no: pictures keep their size"
    )
    upscale: bool = Field(default=False, description="also enlarge pictures that are smaller than image_size")
    encode_quality: int = Field(default=95, ge=1, le=100, description="JPEG quality of pictures that are encoded again, 1 to 100")
    skip_reencode: bool = Field(default=True, description="an upright JPEG that needs no resizing keeps its bytes; it is decoded all the same, as a check")
    fast_resize: bool = Field(
        default=True,
        description="decode JPEGs at a half to an eighth, never below 1.5 times the stored size, and shrink by less than 3 with a filtered bilinear; "
        "false: decode whole and take OpenCV's area, as img2dataset, for its very pixels",
    )
    min_size: int = Field(default=0, ge=0, description="pictures with a shorter side, in pixels, are refused as too_small, by their header")
    max_aspect_ratio: float | None = Field(
        default=None, ge=1, description="pictures whose long side is more than this many short sides are refused as too_long"
    )
    max_pixels: int = Field(default=64_000_000, ge=1, description="pictures with more pixels are refused as too_large, by their header, before decoding")
    blur_column: str | None = Field(
        default=None, description="column with boxes to blur, such as faces: a list of [x0, y0, x1, y1] in shares of width and height"
    )

    @field_validator("resize_mode", mode="before")
    @classmethod
    def _no_of_yaml(cls, mode: object) -> object:
        """An unquoted `no` is false in YAML."""
        return "no" if mode is False else mode
