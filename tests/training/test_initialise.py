"""First weights of a whole model: a run starts from a checkpoint, an export or a published file as it was, or says in one line why not."""

import copy
import logging
from pathlib import Path

import published_files
import pytest
import tiny_run
import torch

from pipeline.core.errors import ConfigError, DataError
from shards.dataset import Dataset
from shards.manifest import read_manifest
from training import checkpoint
from training.config import InitConfig, TrainingConfig
from training.data import build_tokenizer
from training.feature_queue import UNKNOWN, FeatureQueue
from training.initialise import build_student, load_teacher_and_queue, open_first_weights
from training.model import Albef
from training.model_config import ModelConfig
from training.teacher import Teacher
from training.tokenizer import SPECIAL, Tokenizer
from training.weights.conversion import export, import_file
from training.weights.published import published_from
from training.weights.sources import open_source
from training.zero.partition import partition_of

WORDS = Tokenizer([*SPECIAL, *(f"word{number}" for number in range(35))])
SIZES = ModelConfig(
    image_size=16, patch_size=8, vision_width=16, vision_depth=2, vision_heads=1, text_hidden=16, text_heads=1, text_layers=2, fusion_layers=2,
    text_intermediate=64, vocab_size=40, max_positions=12, embed_dim=8,
)  # fmt: skip


def config(start: str, tokenizer: str | None = None, model: ModelConfig = SIZES) -> TrainingConfig:
    return TrainingConfig(dataset="unused", max_tokens=8, model=model, init=InitConfig(checkpoint=start, tokenizer=tokenizer))


def started(config: TrainingConfig) -> Albef:
    return build_student(config, WORDS, open_first_weights(config))


def tokenizer_from(config: TrainingConfig, dataset: Dataset) -> Tokenizer:
    source = open_first_weights(config)
    assert source is not None
    return build_tokenizer(config, dataset, source.tokenizer)


def teacher_of(student: Albef) -> Teacher:
    """Of a run on one rank."""
    partition = partition_of(torch.optim.AdamW(student.parameters()), student, zero_stage=0, rank=0, world_size=1)
    return Teacher(copy.deepcopy(student), partition, momentum=0.9, compute_type=torch.float32)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    torch.save({"model": published_files.tensors("pretrain")}, tmp_path / "published.pth")
    import_file(str(tmp_path / "published.pth"), str(tmp_path / "checkpoint"), WORDS)
    export(str(tmp_path / "checkpoint"), str(tmp_path / "exported"), "safetensors")
    return str(tmp_path)


@pytest.mark.parametrize("start", ["published.pth", "checkpoint", "exported"])
def test_a_student_starts_from_any_form_of_the_same_weights(folder: str, start: str) -> None:
    student = started(config(f"{folder}/{start}"))
    expected = published_from(published_files.tensors("pretrain"), "file").student
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())


def test_a_student_takes_larger_pictures_than_its_first_weights_did(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        student = started(config(f"{folder}/checkpoint", model=SIZES.model_copy(update={"image_size": 32})))
    assert student.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 17, 16)
    assert "position embeddings resized from 2 x 2 to 4 x 4 patches" in caplog.text


def test_of_a_file_without_a_head_it_starts_fresh_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"model": published_files.tensors("retrieval")}, tmp_path / "mscoco.pth")
    student = started(config(str(tmp_path / "mscoco.pth")))
    assert "mscoco.pth has no trained mlm_head: they start fresh" in caplog.text
    assert torch.equal(student.mlm_head.decoder.weight, student.text_encoder.embeddings.word.weight)


@pytest.mark.parametrize("kind", ["retrieval", "vqa", "nlvr", "pretrain"])
def test_where_first_weights_were_never_trained_the_teacher_is_the_students_copy(tmp_path: Path, kind: str) -> None:
    torch.save({"model": published_files.tensors(kind)}, tmp_path / "published.pth")
    imported = import_file(str(tmp_path / "published.pth"), str(tmp_path / "checkpoint"), WORDS).checkpoint
    sizes = imported.model_config
    student = started(config(str(tmp_path / "checkpoint"), model=sizes))
    source, teacher = open_source(str(tmp_path / "checkpoint")), teacher_of(student)
    load_teacher_and_queue(source, sizes, teacher, FeatureQueue(6, sizes.embed_dim))
    own, expected = dict(student.named_parameters()), imported.tensors("teacher")
    for name, value in teacher.model.named_parameters():
        assert torch.equal(value, own[name] if name in imported.fresh else expected[name]), name
    assert bool(imported.fresh) == (kind != "pretrain")


def test_a_queue_of_first_weights_brings_no_numbers_of_another_datasets_pictures(tmp_path: Path, folder: str) -> None:
    found = checkpoint.read(f"{folder}/checkpoint")
    queue = {**found.tensors("queue"), "ids": torch.arange(6)}
    record = {name: found.manifest[name] for name in ("state", "model", "training")}
    checkpoint.write(str(tmp_path / "run"), 3, {"student": found.tensors("student"), "queue": queue}, WORDS, record)
    ours = FeatureQueue(6, SIZES.embed_dim)
    load_teacher_and_queue(open_source(str(tmp_path / "run")), SIZES, teacher_of(Albef(SIZES)), ours)
    assert torch.equal(ours.image, queue["image"])
    assert ours.ids.tolist() == [UNKNOWN] * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_heads": 2}, r"training\.model\.vision_heads is 2, but .*step-0000000 was assumed at import to have 1"),
        ({"image_pool": "mean"}, r"training\.model\.image_pool is 'mean', but .* was assumed at import to have 'cls'"),
    ],
)
def test_what_the_shapes_do_not_show_is_compared(folder: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        started(config(f"{folder}/checkpoint", model=SIZES.model_copy(update=change)))


@pytest.mark.parametrize("start", ["published.pth", "checkpoint", "exported"])
@pytest.mark.parametrize(("name", "value"), [("fusion_layers", 1), ("vision_depth", 3), ("text_hidden", 32), ("embed_dim", 16), ("vocab_size", 41)])
def test_first_weights_of_another_size_are_refused_by_the_setting_that_would_fit(folder: str, start: str, name: str, value: int) -> None:
    other = config(f"{folder}/{start}", f"{folder}/exported/vocab.txt", model=SIZES.model_copy(update={name: value}))
    expected = rf"training\.model\.{name} is {value}, but training\.init\.checkpoint .* was trained with {getattr(SIZES, name)}; set it to that, or"
    with pytest.raises(ConfigError, match=expected):
        started(other)


def test_the_width_of_features_that_a_file_does_not_have_is_free_to_choose(tmp_path: Path) -> None:
    torch.save({"model": published_files.tensors("nlvr")}, tmp_path / "published.pth")
    sizes = open_source(str(tmp_path / "published.pth")).weights.config
    student = started(config(str(tmp_path / "published.pth"), model=sizes.model_copy(update={"embed_dim": 12})))
    assert student.image_projection.weight.shape == (12, 16)


def test_what_a_file_was_said_to_have_at_its_import_is_not_called_assumed(folder: str) -> None:
    import_file(f"{folder}/published.pth", f"{folder}/given", WORDS, vision_heads=1)
    with pytest.raises(ConfigError, match=r"training\.model\.vision_heads is 2, but .*step-0000000 was trained with 1"):
        started(config(f"{folder}/given", model=SIZES.model_copy(update={"vision_heads": 2})))


def test_the_vocabulary_of_the_first_weights_is_taken_or_another_refused(folder: str) -> None:
    tiny_run.write_dataset(Path(folder) / "dataset", samples=4, shards=1)
    dataset = Dataset(f"{folder}/dataset", read_manifest(f"{folder}/dataset"))
    assert tokenizer_from(config(f"{folder}/exported"), dataset).vocabulary() == WORDS.vocabulary()
    Path(f"{folder}/vocab.txt").write_bytes(Tokenizer([*SPECIAL, "other"]).vocabulary_file())
    with pytest.raises(ConfigError, match=r"training\.init\.tokenizer .*vocab\.txt: other word pieces than those of .*checkpoint; set it to null"):
        tokenizer_from(config(f"{folder}/checkpoint", tokenizer=f"{folder}/vocab.txt"), dataset)


def test_no_vocabulary_is_trained_for_first_weights_that_have_learned_another(folder: str) -> None:
    tiny_run.write_dataset(Path(folder) / "dataset", samples=4, shards=1)
    dataset = Dataset(f"{folder}/dataset", read_manifest(f"{folder}/dataset"))
    with pytest.raises(
        ConfigError, match=r"init\.tokenizer is null, but .*published\.pth has no vocabulary of its own; give the vocab\.txt it was trained with"
    ):
        build_tokenizer(config(f"{folder}/published.pth"), dataset)


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"training\.init\.checkpoint: .*: no weights here; expected a checkpoint folder, a folder that albef exported, DeepSpeed's, or a published file",
    ):
        started(config(str(tmp_path)))
