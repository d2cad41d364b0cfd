"""From shards to batches: the dataset a run pins, its tokenizer, and the collate that makes every random draw of a step."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.errors import ConfigError
from shards.dataset import DamagedSample, Dataset
from shards.item_maker import MadeItems
from shards.loader import ShardLoader
from shards.order.blend import Source, parse_blend
from shards.order.mixing import MixedDataset, open_blend
from shards.pixels.transforms import PretrainTransform
from shards.random_stream import TRANSFORM, uniforms
from shards.remote.ranges import RangeReader
from shards.text_rules import pre_caption
from training.batch import Batch
from training.checkpoint import Checkpoint
from training.config import TrainingConfig
from training.device_augment import DrawnRandAugment
from training.distributed import World
from training.masking import gumbel_noise, kept_patches, mask_tokens
from training.quarantine_budget import QuarantineBudget, check_shards
from training.tokenizer import Tokenizer, train_vocabulary

log = logging.getLogger(__name__)
Manifests = int | dict[str, int]  # the number of the dataset's manifest, or of each by its name in the blend


@dataclass(frozen=True)
class Collate:
    """Items to one batch: token ids, MLM masks and the noise of negative draws, all keyed by item and never by batch or worker."""

    tokenizer: Tokenizer
    max_tokens: int
    mlm_probability: float
    group_size: int  # pairs that negatives are drawn from
    device_augment: PretrainTransform | None = None  # whose RandAugment is left to the device
    num_patches: int = 0  # of a picture, of which the student sees num_kept_patches
    num_kept_patches: int = 0
    pin: bool = False  # copy batches to memory that a GPU reads by itself, here, in the loader's threads

    def __call__(self, items: MadeItems) -> Batch:
        """B items -> tensors on the CPU; pictures stay uint8, [B, 3, R, R] as a view of [B, R, R, 3]."""
        keys = np.array([item.key for item in items], dtype=np.uint64)
        input_ids, attention_mask = self.tokenizer.encode([item.caption for item in items], self.max_tokens)
        tokens = self.tokenizer
        masked_ids, labels = mask_tokens(
            keys,
            input_ids.numpy(),
            probability=self.mlm_probability,
            vocab_size=tokens.vocab_size,
            cls_id=tokens.cls_id,
            pad_id=tokens.pad_id,
            mask_id=tokens.mask_id,
        )
        gumbel_i2t, gumbel_t2i = gumbel_noise(keys, self.group_size)
        batch = Batch(
            randaugment=self._drawn(keys),
            images=torch.from_numpy(items.images).permute(0, 3, 1, 2),
            input_ids=input_ids,
            attention_mask=attention_mask,
            masked_ids=torch.from_numpy(masked_ids),
            mlm_labels=torch.from_numpy(labels),
            gumbel_i2t=torch.from_numpy(gumbel_i2t),
            gumbel_t2i=torch.from_numpy(gumbel_t2i),
            item_keys=keys,
            sample_keys=[item.sample_key for item in items],
            image_ids=torch.tensor([item.sample for item in items]),
            kept_patches=self._kept_patches(keys),
        )
        return batch.pinned() if self.pin else batch

    def _kept_patches(self, keys: npt.NDArray[np.uint64]) -> torch.Tensor | None:
        if self.num_kept_patches == self.num_patches:
            return None
        return torch.from_numpy(kept_patches(keys, self.num_patches, self.num_kept_patches))

    def _drawn(self, keys: npt.NDArray[np.uint64]) -> DrawnRandAugment | None:
        if self.device_augment is None:
            return None
        draws = uniforms(keys, TRANSFORM, self.device_augment.num_draws)
        return DrawnRandAugment(self.device_augment.settings, [self.device_augment.operations(row) for row in draws])


def open_dataset(config: TrainingConfig, resumed: Checkpoint | None, world: World) -> Dataset | MixedDataset:
    """The dataset, or the blend, with the manifests this run pins: the configured ones, the checkpoint's, or the newest that rank 0 finds.

    Every rank must call.

    Raises:
        BelowFloor: more of it is lost than training.quarantine_budget allows; rank 0 looks for all.
        DataError: a dataset is missing or its manifest damaged.
        FailedElsewhere: another rank raised one of these.
    """
    sources = parse_blend(config.dataset)
    reader = RangeReader(int(config.cache_gib * 2**30), config.cache_folder)

    def numbers_of_first() -> Manifests | None:
        if world.rank > 0:
            return None
        dataset = open_blend(sources, _by_name(sources, _configured(config, resumed)), reader)
        check_shards(dataset, QuarantineBudget(config.quarantine_budget, dataset.num_samples, dataset.name_of))
        return dataset.pinned

    numbers = world.from_first(world.together(numbers_of_first))  # else a rank that starts later may find a newer manifest, and draw another order
    dataset = world.together(lambda: open_blend(sources, _by_name(sources, numbers), reader))
    for part in dataset.parts:
        found = part.dataset.manifest
        log.info(
            "dataset %s: manifest %d, %d samples, %d captions%s",
            part.dataset.folder, found.number, found.num_samples, found.num_captions,
            f"; {100 * float(part.share):.4g} % of the items drawn are its own" if len(dataset.parts) > 1 else "",
        )  # fmt: skip
    return dataset


def _configured(config: TrainingConfig, resumed: Checkpoint | None) -> Manifests:
    if config.manifest is not None:
        return config.manifest
    pinned: Manifests = resumed.state["manifest"] if resumed else {}
    return pinned


def _by_name(sources: Sequence[Source], pinned: Manifests) -> dict[str, int]:
    return pinned if isinstance(pinned, dict) else {sources[0].name: pinned}


def build_tokenizer(config: TrainingConfig, dataset: Dataset | MixedDataset, known: Tokenizer | None = None) -> Tokenizer:
    """The configured tokenizer, that of the first weights (`known`), or one trained on all captions of the dataset.

    Raises ConfigError when the configured one is not that of the first weights, or when those come without one and none is configured.
    """
    if config.init.tokenizer is not None:
        tokenizer = Tokenizer.load(config.init.tokenizer)
        if known is not None and known.vocabulary() != tokenizer.vocabulary():
            raise ConfigError(
                f"training.init.tokenizer {config.init.tokenizer}: other word pieces than those of {config.init.checkpoint}; set it to null to take the latter"
            )
        return tokenizer
    if known is not None:
        return known
    if config.init.checkpoint is not None:  # captions would teach other pieces, and row 17 of the word table would be another word
        raise ConfigError(f"training.init.tokenizer is null, but {config.init.checkpoint} has no vocabulary of its own; give the vocab.txt it was trained with")
    tokenizer = train_vocabulary(_captions(dataset), config.init.vocabulary_size)
    log.info("vocabulary of %d word pieces trained from the captions", tokenizer.vocab_size)
    return tokenizer


def _captions(dataset: Dataset | MixedDataset) -> Iterator[str]:
    for sample in range(dataset.num_samples):
        with contextlib.suppress(DamagedSample):  # the loader will meet it again, replace it and list it
            yield from map(pre_caption, dataset.read(sample).captions)


def build_loader(
    config: TrainingConfig, dataset: Dataset | MixedDataset, tokenizer: Tokenizer, world: World, micro_batch_size: int, accumulation_steps: int
) -> ShardLoader[Batch]:
    """The loader of this rank.

    Raises ConfigError when the dataset is too small for one global batch, or the cache for what a node has in use.
    """
    on_cpu = config.augment_on == "cpu"
    transform = PretrainTransform(config.model.image_size, config.crop_scale, config.flip, config.randaugment and on_cpu, config.sharpness, config.transform)
    device_augment = transform if config.randaugment and not on_cpu else None
    try:
        loader: ShardLoader[Batch] = ShardLoader(
            dataset,
            transform=transform,
            collate=Collate(
                tokenizer,
                config.max_tokens,
                config.mlm_probability,
                config.pairs_per_group,
                device_augment,
                config.model.num_patches,
                config.num_kept_patches,
                pin=world.device.type == "cuda",
            ),
            global_batch_size=config.global_batch_size,
            micro_batch_size=micro_batch_size,
            accumulation_steps=accumulation_steps,
            rank=world.rank,
            world_size=world.world_size,
            ranks_per_node=world.local_size,
            seed=config.seed,
            epoch_over=config.epoch_over,
            num_workers=config.num_workers,
            lanes=config.lanes,
            block_shards=config.block_shards,
        )
    except ConfigError as error:  # it begins with the setting that does not fit
        raise ConfigError(f"training.{error}") from error
    if loader.steps_per_epoch == 0:
        raise ConfigError(
            f"training.global_batch_size {config.global_batch_size} is more than the {loader.items_per_epoch} items of {dataset.folder}; take a smaller one"
        )
    return loader
