"""Models of the training benchmarks, and a bare training step over them: no loop, no data, no DeepSpeed."""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch.optim import AdamW, Optimizer

from pipeline.app.bench.plain_step import plain_step
from training.batch import Batch
from training.feature_queue import FeatureQueue
from training.losses import LOSSES
from training.model import Albef
from training.model_config import ModelConfig
from training.objective import Pretrainer
from training.optim import parameter_groups

ALPHA, MOMENTUM, QUEUE_SIZE = 0.4, 0.995, 65_536


@dataclass(frozen=True)
class Sizes:
    """A model, and the batch a CPU steps through in seconds."""

    model: ModelConfig
    pairs: int
    queue_size: int = QUEUE_SIZE


BASE = Sizes(ModelConfig(), pairs=2)
SMALL = Sizes(
    ModelConfig(
        vision_width=384, vision_depth=6, vision_heads=6, text_hidden=384, text_heads=6, text_layers=3, fusion_layers=3, text_intermediate=1536
    ),
    pairs=16,
)  # fmt: skip
DEMO = Sizes(
    ModelConfig(
        image_size=64, vision_width=128, vision_depth=3, vision_heads=4, image_pool="mean", text_hidden=128, text_heads=4, text_layers=2, fusion_layers=2,
        text_intermediate=512, max_positions=32, embed_dim=128, vocab_size=1000, hidden_dropout=0.0, attention_dropout=0.0,
    ),
    pairs=64, queue_size=256,
)  # fmt: skip


class Steps:
    """Student, teacher, queue and optimizer that the fused and the plain way step in turn."""

    def __init__(self, sizes: Sizes, group_size: int, device: torch.device, precision: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.student = Albef(sizes.model).to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.queue = FeatureQueue(sizes.queue_size, sizes.model.embed_dim, device)
        self.pretrainer = Pretrainer(self.student, {name: loss() for name, loss in LOSSES.items()}, group_size)
        on_gpu = device.type == "cuda"
        self.optimizer: Optimizer = AdamW(parameter_groups(self.student, 0.02), lr=1e-5, fused=on_gpu)
        self._autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision is torch.bfloat16)

    def fused(self, batch: Batch) -> None:
        with self._autocast():
            output = self.pretrainer(batch, self.teacher, self.queue, ALPHA)
        self.optimizer.zero_grad()
        output.total.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - MOMENTUM)
        self.queue.push(output.teacher_image_feat, output.teacher_text_feat)

    def plain(self, batch: Batch) -> None:
        plain_step(self.student, self.teacher, self.queue, batch, ALPHA, self.optimizer, MOMENTUM, self._autocast())
