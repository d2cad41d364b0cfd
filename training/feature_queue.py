"""The feature queue: rings of the teacher's recent image and text features, the additional negatives of ITC."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.core.errors import DataError


class FeatureQueue:
    """Two rings `[Q, E]` of unit vectors in fp32 and one write position; the same on every rank, since every rank pushes the same rows.

    Starts as random unit vectors from a fixed seed. A `size` of 0 means no queue.
    """

    def __init__(self, size: int, embed_dim: int, device: torch.device | str = "cpu", seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.image = F.normalize(torch.randn(size, embed_dim, generator=generator), dim=1).to(device)
        self.text = F.normalize(torch.randn(size, embed_dim, generator=generator), dim=1).to(device)
        self.position = 0

    @property
    def size(self) -> int:
        return len(self.image)

    @torch.no_grad()
    def push(self, image_feats: Float[Tensor, "n e"], text_feats: Float[Tensor, "n e"]) -> None:
        """Overwrite the oldest rows in place; of more than Q rows the last Q stay."""
        n, size = len(image_feats), self.size
        if size == 0:
            return
        kept = min(n, size)
        rows = torch.arange(self.position + n - kept, self.position + n, device=self.image.device) % size
        self.image[rows] = image_feats[n - kept :].to(self.image)
        self.text[rows] = text_feats[n - kept :].to(self.text)
        self.position = (self.position + n) % size

    def state_dict(self) -> dict[str, Any]:
        """Both rings and the write position."""
        return {"image": self.image, "text": self.text, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DataError when the rings have another shape."""
        for name, ring in (("image", self.image), ("text", self.text)):
            if state[name].shape != ring.shape:
                found, wanted = tuple(state[name].shape), tuple(ring.shape)
                raise DataError(f"feature queue: the checkpoint's {name} ring is {found}, this run's is {wanted}; keep queue_size and embed_dim or start fresh")
            ring.copy_(state[name])
        self.position = int(state["position"])
