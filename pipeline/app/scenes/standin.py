"""The world's stand-in for ImageNet weights: a small ViT that learned to name single things, saved as timm would.

Pre-training starts from an image encoder that already sees, as the paper's starts from one trained on ImageNet. No such
weights fit a 64 px ViT, so the world brings its own: labelled pictures of one thing, classified by colour and shape.

A minute of plain classification names nearly all colours and few shapes, as `standin_vit.json` beside the weights says: a shape is a faint
signal that may lie across patches in any way. Pictures of known colours are still a start that random weights are not.
"""

import functools
import json
import logging
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from pipeline.app.scenes.config import ScenesConfig, StandinConfig
from pipeline.app.scenes.draw import Painter
from pipeline.app.scenes.parallel import as_finished
from pipeline.app.scenes.world import COLOURS, SHAPES, draw_scene
from pipeline.core import storage
from pipeline.core.logs import console
from pipeline.core.run_directory import fingerprint
from pipeline.core.stopping import raise_if_stopping
from shards.pixels.transforms import MEAN, STD

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
PART_SIZE = 1_000  # pictures a process draws at a time
LabelledPictures = tuple[Any, Any]  # uint8 [N, R, R, 3], int64 [N]


def train_standin(config: ScenesConfig, out: Path) -> Path:
    """Draw labelled pictures, train the ViT and write `standin_vit.pth` ({"model": state_dict}) with `standin_vit.json` beside it.

    Called again with the same settings it does nothing. The seed fixes the result up to the rounding of the machine's sums.
    """
    checkpoint, record_path = out / "standin_vit.pth", out / "standin_vit.json"
    mark = fingerprint({"seed": config.seed, **config.standin.model_dump(mode="json")})
    if checkpoint.exists() and record_path.exists() and json.loads(record_path.read_text())["fingerprint"] == mark:
        return checkpoint
    import torch

    started = time.monotonic()
    pictures = labelled_pictures(config, "train", config.standin.pictures)
    held_out = labelled_pictures(config, "held-out", config.standin.held_out)
    drawn = time.monotonic()
    model = _trained(config, pictures)
    accuracy = _accuracy(model, held_out)
    record = {
        "what": "a stand-in for ImageNet weights, trained on drawn single-object pictures; no ImageNet picture was seen",
        "fingerprint": mark,
        "architecture": architecture(config.standin),
        "classes": CLASSES,
        "mean": MEAN,
        "std": STD,
        **accuracy,
        "seconds_drawing": round(drawn - started, 1),
        "seconds_training": round(time.monotonic() - drawn, 1),
    }
    with storage.atomic_write(str(checkpoint)) as file:
        torch.save({"model": model.state_dict()}, file)
    storage.write_bytes(str(record_path), json.dumps(record, indent=1).encode())
    logger.info("stand-in weights: %.1f %% of held-out things named right, %.0f s", 100 * accuracy["accuracy"], time.monotonic() - started)
    return checkpoint


def architecture(config: StandinConfig) -> dict[str, Any]:
    """Keyword arguments of timm's VisionTransformer."""
    return {
        "img_size": config.resolution,
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "class_token": True,
        "num_classes": len(CLASSES),
        "global_pool": config.pool,
        "fc_norm": False,  # the norm stays in front of the pooling under either pool, as ALBEF's ViT has it
    }


# --- labelled pictures


def labelled_pictures(config: ScenesConfig, split: str, count: int) -> LabelledPictures:
    """Pictures of one thing, uint8 [count, R, R, 3], with their classes, int64 [count]."""
    tasks = [range(start, min(start + PART_SIZE, count)) for start in range(0, count, PART_SIZE)]
    draw = functools.partial(_draw_labelled, config, split)
    parts = dict(as_finished(draw, tasks, config.processes, f"drawing labelled pictures ({split})"))
    return np.concatenate([parts[place][0] for place in range(len(tasks))]), np.concatenate([parts[place][1] for place in range(len(tasks))])


def _draw_labelled(config: ScenesConfig, split: str, indices: range) -> LabelledPictures:
    resolution = config.standin.resolution
    painter = _painter(resolution, config.seed)
    pictures = np.empty((len(indices), resolution, resolution, 3), np.uint8)
    labels = np.empty(len(indices), np.int64)
    for place, index in enumerate(indices):
        rng = random.Random(f"{config.seed}/standin/{split}/{index}")
        scene = draw_scene(rng, things=1)
        pictures[place] = painter.paint(scene, rng)
        labels[place] = CLASSES.index(f"{scene.things[0].colour} {scene.things[0].shape}")
    return pictures, labels


@functools.cache
def _painter(resolution: int, seed: int) -> Painter:
    return Painter(resolution, seed)


# --- training


def _trained(config: ScenesConfig, pictures: LabelledPictures) -> "torch.nn.Module":
    import torch
    from timm.models.vision_transformer import VisionTransformer

    options = config.standin
    images, labels = (torch.from_numpy(array) for array in pictures)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: torch.nn.Module = VisionTransformer(**architecture(options))
    steps_per_epoch = len(labels) // options.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak_lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.peak_lr, options.epochs * steps_per_epoch, cycle_momentum=False)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in track(range(options.epochs), description="stand-in weights", console=console, transient=True):
        for batch in torch.randperm(len(labels), generator=generator).split(options.batch_size)[:steps_per_epoch]:  # type: ignore[no-untyped-call]
            loss = torch.nn.functional.cross_entropy(model(_normalised(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        raise_if_stopping(None)
    return model


def _normalised(images: "torch.Tensor") -> "torch.Tensor":
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] as the encoder reads it."""
    import torch

    return ((images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def _accuracy(model: "torch.nn.Module", pictures: LabelledPictures) -> dict[str, float]:
    """Shares of pictures whose class, colour and shape is named right."""
    import torch

    images, labels = (torch.from_numpy(array) for array in pictures)
    model.eval()
    with torch.no_grad():
        named = torch.cat([model(_normalised(part)).argmax(dim=1) for part in images.split(256)])  # type: ignore[no-untyped-call]
    same_colour = named // len(SHAPES) == labels // len(SHAPES)
    same_shape = named % len(SHAPES) == labels % len(SHAPES)
    right = {"accuracy": same_colour & same_shape, "colour_accuracy": same_colour, "shape_accuracy": same_shape}
    return {name: round(float(hits.float().mean()), 4) for name, hits in right.items()}
