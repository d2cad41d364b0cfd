"""RandAugment on the device: the operations that the CPU would have applied, a batch at a time, for when decoding leaves the CPU no time for it.

Tables and sharpness give the CPU's pixels exactly; warps are interpolated in float32, as the CPU's parity mode does it, up to rounding.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from shards.pixels.affine import FILL, one_after_the_other
from shards.pixels.randaugment import KIND, RandAugment, Sharpness

Operation = tuple[str, int]  # name and sign


@dataclass(frozen=True)
class DrawnRandAugment:
    """`operations`: those drawn for each picture of a batch, in their order. They stay on the host, where sorting them costs the device no waiting."""

    settings: RandAugment
    operations: Sequence[Sequence[Operation]]

    def __call__(self, images: UInt8[Tensor, "b 3 r r"]) -> UInt8[Tensor, "b 3 r r"]:
        """New pictures; the given ones stay as they are."""
        images = images.clone(memory_format=torch.contiguous_format)
        drawn = [_grouped(operations) for operations in self.operations]
        for stage in itertools.zip_longest(*drawn, fillvalue=()):
            for kind, rows in _rows_by_kind(stage).items():
                where = _copied(torch.tensor(rows), images.device)
                images[where] = self._applied(kind, images[where], [stage[row] for row in rows])
        return images

    def _applied(self, kind: str, images: UInt8[Tensor, "b 3 r r"], operations: list[tuple[Operation, ...]]) -> UInt8[Tensor, "b 3 r r"]:
        if kind == "warp":
            side = images.shape[-1]
            matrices = [[self.settings.matrix(name, sign, side, side) for name, sign in together] for together in operations]
            return warped(images, np.stack([list(itertools.accumulate(steps, one_after_the_other))[-1] for steps in matrices]))
        if kind == "Sharpness":
            return sharpened(images, self.settings.factor, self.settings.sharpness)
        if kind == "Brightness":
            levels = (torch.arange(256, dtype=torch.float32, device=images.device) * self.settings.factor).clamp(0, 255).to(torch.uint8)
            return levels[images.long()]
        return _looked_up(images, TABLES[kind])


def auto_contrast_tables(histograms: Int64[Tensor, "b 3 256"]) -> Float64[Tensor, "b 3 256"]:
    """New values, not yet cut to whole numbers of 0..255, that stretch each channel to the full range."""
    present = (histograms > 0).to(torch.int8)
    low, high = present.argmax(-1, keepdim=True).double(), 255 - present.flip(-1).argmax(-1, keepdim=True).double()
    levels = _levels(histograms)
    scale = 255 / (high - low)
    return torch.where(high > low, levels * scale - low * scale, levels)


def equalize_tables(histograms: Int64[Tensor, "b 3 256"]) -> Float64[Tensor, "b 3 256"]:
    """New values, not yet limited to 0..255, that flatten each channel's histogram."""
    last = 255 - (histograms > 0).to(torch.int8).flip(-1).argmax(-1, keepdim=True)
    step = (histograms.sum(-1, keepdim=True) - histograms.gather(-1, last)) // 255
    below = torch.cat([step // 2, histograms[..., :-1]], dim=-1).cumsum(-1)
    return torch.where(step > 0, (below // step.clamp(min=1)).double(), _levels(histograms))


TABLES: dict[str, Callable[[Tensor], Tensor]] = {"AutoContrast": auto_contrast_tables, "Equalize": equalize_tables}


def sharpened(images: UInt8[Tensor, "b 3 h w"], factor: float, rounding: Sharpness) -> UInt8[Tensor, "b 3 h w"]:
    """Away from Pillow's SMOOTH by `factor`; the outermost pixels stay; values beyond 0..255 are clipped, or wrap around as in the original."""
    values = images.float()
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    inner = values[..., 1:-1, 1:-1]
    blurred = ((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner) / 13).round()
    moved = blurred + factor * (inner - blurred)
    result = images.clone()
    result[..., 1:-1, 1:-1] = (moved.int() if rounding == "original" else moved.clamp(0, 255)).to(torch.uint8)
    return result


def warped(images: UInt8[Tensor, "b 3 r r"], matrices: Float64[np.ndarray, "b 2 3"]) -> UInt8[Tensor, "b 3 r r"]:
    """Each picture moved by its matrix (where a pixel (x, y, 1) goes), bilinear, with grey from outside."""
    side = images.shape[-1]
    whole = np.concatenate([matrices, np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(matrices), 1, 3))], axis=1)
    to_pixels = np.array([[(side - 1) / 2, 0, (side - 1) / 2], [0, (side - 1) / 2, (side - 1) / 2], [0, 0, 1]])  # from grid_sample's -1..1
    inverse = np.linalg.inv(to_pixels) @ np.linalg.inv(whole) @ to_pixels
    theta = _copied(torch.from_numpy(inverse[:, :2].astype(np.float32)), images.device)
    grey = float(FILL[0])
    with torch.autocast(images.device.type, enabled=False):  # affine_grid is a matrix product, and bfloat16 would round its places by parts of a pixel
        grid = F.affine_grid(theta, list(images.shape), align_corners=True)
        moved = F.grid_sample(images.float() - grey, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return (moved + grey).round().clamp(0, 255).to(torch.uint8)


def _copied(values: Tensor, device: torch.device) -> Tensor:
    """From pinned memory to a GPU: any other copy would make the host wait for all that is queued."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _grouped(operations: Iterable[Operation]) -> list[tuple[Operation, ...]]:
    """Warps that follow each other together, everything else alone; Identity is left out."""
    groups: list[tuple[Operation, ...]] = []
    for operation in operations:
        if groups and KIND[operation[0]] == KIND[groups[-1][0][0]] == "warp":
            groups[-1] += (operation,)
        elif operation[0] != "Identity":
            groups.append((operation,))
    return groups


def _rows_by_kind(stage: Sequence[tuple[Operation, ...]]) -> dict[str, list[int]]:
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, together in enumerate(stage):
        if together:
            name = together[0][0]
            rows["warp" if KIND[name] == "warp" else name].append(row)
    return rows


def _looked_up(images: UInt8[Tensor, "b 3 r r"], tables_of: Callable[[Tensor], Tensor]) -> UInt8[Tensor, "b 3 r r"]:
    values = images.flatten(2).long()
    histograms = torch.zeros((*values.shape[:2], 256), dtype=torch.int64, device=images.device).scatter_add_(2, values, torch.ones_like(values))
    tables = tables_of(histograms).clamp(0, 255).to(torch.uint8)
    return tables.gather(2, values).view_as(images)


def _levels(histograms: Int64[Tensor, "b 3 256"]) -> Float64[Tensor, "256"]:
    return torch.arange(256, dtype=torch.float64, device=histograms.device)
