"""What the teacher would teach: the words it expects where one is hidden, and the texts it finds closest (the paper's section 3.2 and its figure of them)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from eval.config import EvalConfig
from eval.gallery import thumbnail
from eval.predictor import AlbefPredictor, Encoded, HiddenWord
from eval.suite import load_predictor
from pipeline.core.errors import DataError
from shards.dataset import DamagedSample, Dataset, Sample
from shards.index import key_hash
from shards.pixels.decode import decode_image
from shards.pixels.transforms import EvalTransform
from shards.random_stream import item_keys, permutation
from shards.text_rules import pre_caption
from training import checkpoint
from training.model_config import MAX_TEMPERATURE, MIN_TEMPERATURE
from training.weights.files import modules_of

ASKED = ("image_projection", "text_projection", "temperature", "mlm_head")  # of the modules a published file may lack
TOP = 5
READERS = 16  # samples asked for at a time: from S3 each is a request of its own
CHOSEN, POOL = 183, 184  # random streams
DRAWS_A_SAMPLE = 20  # at most: a dataset of pictures without captions would be drawn to its end otherwise
PICTURE_SIDE = 256  # pixels on the page, at most
# Words that say little about a picture; hidden all the same when asked for by name.
_SAYING_LITTLE = """
a an and are as at be but by for from has have his her in into is it its of on or she he that the their them there these they this to was were which
who will with
"""
FUNCTION_WORDS = frozenset(_SAYING_LITTLE.split())


@dataclass(frozen=True)
class Guess:
    """A word piece or text with the teacher's probability; `right` if it is the caption's own, with … where its word has further pieces."""

    text: str
    probability: float
    right: bool


@dataclass(frozen=True)
class HiddenPlace:
    """A word of the caption between what stands before and after it, and what the teacher expects there, likeliest first."""

    before: str
    word: str
    after: str
    guesses: tuple[Guess, ...]
    probability: float  # of the word itself, or of its first piece


@dataclass(frozen=True)
class PseudoTargets:
    """One sample: `words` are MLM's soft targets at hidden places, `texts` ITC's over the pool."""

    key: str
    caption: str
    thumbnail: str  # JPEG in base64
    words: tuple[HiddenPlace, ...]
    texts: tuple[Guess, ...]


class UnusableSample(DataError):
    """A sample without a caption, or whose picture cannot be decoded; its message begins with the key."""


@dataclass(frozen=True)
class Drawn:
    """Samples drawn by a seed, and of those that came up and cannot be shown, why."""

    samples: list[Sample]
    left_out: list[str]


@dataclass(frozen=True)
class Teacher:
    """The moving average of a checkpoint, ready to be asked; `temperature` is the student's, which training divides its similarities by too."""

    checkpoint: str
    step: int
    predictor: AlbefPredictor
    temperature: float


def load_teacher(checkpoint_or_run: str) -> Teacher:
    """From a checkpoint folder, a folder of checkpoints, or a run directory.

    Raises DataError when there is none of ours, it is damaged, it was imported without a teacher, or what would be asked of it has never been trained.
    """
    found = checkpoint.read(checkpoint_or_run)
    if not found.has("teacher"):
        raise DataError(f"{found.path}: imported from {found.published.get('file')}, which has no teacher, so there are no pseudo-targets to show")
    if untrained := [module for module in modules_of(found.fresh) if module in ASKED]:
        raise DataError(f"{found.path}: has no trained {', '.join(untrained)}, so its teacher would guess at random; train from it first")
    temperature = float(found.tensors("student")["temperature"])
    predictor = load_predictor(EvalConfig(tasks={}, tower="teacher"), found.path)
    return Teacher(found.path, found.step, predictor, min(max(temperature, MIN_TEMPERATURE), MAX_TEMPERATURE))


def samples_of(dataset: Dataset, keys: Sequence[str]) -> list[Sample]:
    """The samples with these keys, in their order.

    Raises DataError for the first key that is not there, DamagedSample for a damaged sample.
    """
    numbers = _numbers_of(dataset, keys)
    return [dataset.read(numbers[key]) for key in keys]


def drawn_samples(dataset: Dataset, count: int, seed: int) -> Drawn:
    """At most `count` samples, the same ones for the same dataset and seed; the next one drawn takes the place of one that cannot be shown.

    Raises DataError when none of those drawn can be shown.
    """
    order = permutation(int(item_keys(seed, 0, np.zeros(1, np.int64))[0]), CHOSEN, dataset.num_samples)
    drawn = Drawn([], [])
    for number in order[: DRAWS_A_SAMPLE * count].tolist():
        try:
            sample = dataset.read(number)
            _own_captions(sample)
            _decoded(sample)
        except (DamagedSample, UnusableSample) as error:
            drawn.left_out.append(str(error))
            continue
        drawn.samples.append(sample)
        if len(drawn.samples) == count:
            break
    if not drawn.samples:
        raise DataError(f"{dataset.folder}: none of {len(drawn.left_out)} samples drawn can be shown; the first: {drawn.left_out[0]}")
    return drawn


def pool_of(dataset: Dataset, size: int, seed: int) -> list[str]:
    """At most `size` different captions as the model reads them, from samples drawn by the seed; damaged samples give none."""
    order = permutation(int(item_keys(seed, 0, np.zeros(1, np.int64))[0]), POOL, dataset.num_samples)

    def captions_of(number: int) -> tuple[str, ...]:
        try:
            return dataset.read(number).captions
        except DamagedSample:
            return ()

    def captions() -> Iterator[str]:
        with ThreadPoolExecutor(READERS) as readers:
            for start in range(0, len(order), READERS):
                for of_sample in readers.map(captions_of, order[start : start + READERS].tolist()):
                    yield from filter(None, map(pre_caption, of_sample))

    unique: dict[str, None] = {}
    for caption in captions():
        unique[caption] = None
        if len(unique) == size:
            break
    return list(unique)


def pseudo_targets(teacher: Teacher, samples: Sequence[Sample], pool: Sequence[str], words: Sequence[str] = ()) -> list[PseudoTargets]:
    """The soft targets of each sample's first caption.

    Args:
        pool: texts ITC chooses from; a sample's own captions are added where they are not among them.
        words: hide these where a caption has them; without, every word but the function words.

    Raises UnusableSample for a sample without a caption or whose picture cannot be decoded.
    """
    pool_feats = teacher.predictor.encode_texts(pool).features
    return [_of_sample(teacher, sample, pool, pool_feats, frozenset(map(str.lower, words))) for sample in samples]


def _of_sample(teacher: Teacher, sample: Sample, pool: Sequence[str], pool_feats: NDArray[np.float32], words: frozenset[str]) -> PseudoTargets:
    own = _own_captions(sample)
    shown = thumbnail(_decoded(sample), PICTURE_SIDE)
    image = teacher.predictor.encode_images([EvalTransform(teacher.predictor.resolution)(sample.image)])
    wanted = [hidden for hidden in teacher.predictor.hidden_words(own[0]) if (hidden.word in words if words else _has_content(hidden.word))]
    added = [caption for caption in own if caption not in pool]
    feats = np.concatenate([pool_feats, teacher.predictor.encode_texts(added).features]) if added else pool_feats
    texts = _texts(image, [*pool, *added], feats, teacher.temperature, frozenset(own))
    return PseudoTargets(sample.key, own[0], shown, _words(teacher.predictor, image, wanted), texts)


def _own_captions(sample: Sample) -> list[str]:
    """As the model reads them; at least one."""
    own = [caption for caption in map(pre_caption, sample.captions) if caption]
    if not own:
        raise UnusableSample(f"{sample.key}: has no caption, so there is nothing to hide a word of; choose another sample")
    return own


def _decoded(sample: Sample) -> NDArray[np.uint8]:
    try:
        return decode_image(sample.image)
    except DataError as error:
        raise UnusableSample(f"{sample.key}: {error}") from error


def _words(predictor: AlbefPredictor, image: Encoded, wanted: Sequence[HiddenWord]) -> tuple[HiddenPlace, ...]:
    if not wanted:
        return ()
    probability = np.exp(predictor.word_log_probabilities(image, np.zeros(len(wanted), np.int64), wanted))
    return tuple(_place(predictor, hidden, row) for hidden, row in zip(wanted, probability, strict=True))


def _place(predictor: AlbefPredictor, hidden: HiddenWord, probability: NDArray[np.float32]) -> HiddenPlace:
    best = np.argsort(-probability, kind="stable")[:TOP]
    pieces = predictor.tokenizer.pieces(best.tolist())
    context = predictor.tokenizer.pieces(hidden.input_ids)
    masked = sum(number == predictor.tokenizer.mask_id for number in hidden.input_ids[hidden.position :])
    rights = [bool(number == hidden.answer) for number in best]
    texts = [f"{piece}…" if right and masked > 1 else piece for piece, right in zip(pieces, rights, strict=True)]
    guesses = tuple(Guess(text, float(probability[number]), right) for text, number, right in zip(texts, best, rights, strict=True))
    before, after = context[1 : hidden.position], context[hidden.position + masked :]
    return HiddenPlace(_joined(before), hidden.word, _joined(after), guesses, float(probability[hidden.answer]))


def _texts(image: Encoded, texts: Sequence[str], feats: NDArray[np.float32], temperature: float, own: frozenset[str]) -> tuple[Guess, ...]:
    logits = (feats @ image.features[0]).astype(np.float64) / temperature
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    return tuple(Guess(texts[number], float(probability[number]), texts[number] in own) for number in np.argsort(-probability, kind="stable")[:TOP])


def _has_content(word: str) -> bool:
    return word not in FUNCTION_WORDS and word[0] != "["  # [UNK]


def _joined(pieces: Sequence[str]) -> str:
    return " ".join(pieces).replace(" ##", "")


def _numbers_of(dataset: Dataset, keys: Sequence[str]) -> dict[str, int]:
    """Sample numbers by key; shards are looked through only until all keys are found."""
    hashes = {key_hash(key): key for key in keys}
    wanted = np.array(list(hashes), dtype=np.uint64)

    def found() -> Iterator[tuple[str, int]]:
        for shard, start in enumerate(dataset.shard_starts[:-1].tolist()):
            of_shard = dataset.indexes(shard).key_hash
            for row in np.flatnonzero(np.isin(of_shard, wanted)).tolist():
                yield hashes[int(of_shard[row])], start + row

    numbers = dict(islice(found(), len(hashes)))
    if missing := [key for key in keys if key not in numbers]:
        raise DataError(
            f"{dataset.folder}: no sample {missing[0]!r} among its {dataset.num_samples}; keys are the names of a tar's members without their suffix"
        )
    return numbers
