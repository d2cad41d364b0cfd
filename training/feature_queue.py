"""The feature queue: rings of the teacher's recent image and text features, the further keys of ITC."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.core.errors import DataError

UNKNOWN = -1  # id of a row whose picture is not known: like no other


class FeatureQueue:
    """Rings `[Q, E]` of unit vectors in fp32, a ring `[Q]` of their pictures' ids, and one write position.

    The same on every rank, since every rank pushes the same rows. Starts as random unit vectors from a fixed seed. A `size` of 0 means no queue.
    """

    def __init__(self, size: int, embed_dim: int, device: torch.device | str = "cpu", seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.image = F.normalize(torch.randn(size, embed_dim, generator=generator), dim=1).to(device)
        self.text = F.normalize(torch.randn(size, embed_dim, generator=generator), dim=1).to(device)
        self.ids = torch.full((size,), UNKNOWN, device=device)
        self.position = 0

    @property
    def size(self) -> int:
        return len(self.image)

    @torch.no_grad()
    def push(self, image_feats: Float[Tensor, "n e"], text_feats: Float[Tensor, "n e"], image_ids: Int[Tensor, " n"] | None = None) -> None:
        """Overwrite the oldest rows in place; of more than Q rows the last Q stay. Without ids, no row is known to be of the same picture as another."""
        n, size = len(image_feats), self.size
        if size == 0:
            return
        kept = min(n, size)
        rows = torch.arange(self.position + n - kept, self.position + n, device=self.image.device) % size
        self.image[rows] = image_feats[n - kept :].to(self.image)
        self.text[rows] = text_feats[n - kept :].to(self.text)
        self.ids[rows] = UNKNOWN if image_ids is None else image_ids[n - kept :].to(self.ids)
        self.position = (self.position + n) % size

    def state_dict(self) -> dict[str, Any]:
        """The rings and the write position."""
        return {"image": self.image, "text": self.text, "ids": self.ids, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DataError when the rings have another shape. Published ALBEF files have no ids."""
        for name, ring in (("image", self.image), ("text", self.text)):
            if state[name].shape != ring.shape:
                found, wanted = tuple(state[name].shape), tuple(ring.shape)
                raise DataError(f"feature queue: the checkpoint's {name} ring is {found}, this run's is {wanted}; keep queue_size and embed_dim or start fresh")
            ring.copy_(state[name])
        self.ids.copy_(state.get("ids", torch.full_like(self.ids, UNKNOWN)))
        self.position = int(state["position"])
