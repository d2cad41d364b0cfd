"""Weights change their form: into checkpoints of ours, out of them, and nothing else changes on the way."""

import logging
from collections.abc import Callable
from pathlib import Path

import published_files
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core import storage
from pipeline.core.errors import ConfigError, DataError
from training import checkpoint
from training.model import Albef
from training.tokenizer import SPECIAL, Tokenizer
from training.weights.conversion import export, import_file
from training.weights.inspection import inspect
from training.weights.portable import load_exported
from training.weights.published import import_published, published_from

WORDS = Tokenizer([*SPECIAL, *(f"word{number}" for number in range(35))])


def published(folder: Path, kind: str) -> str:
    torch.save({"model": published_files.tensors(kind)}, folder / f"{kind}.pth")
    return str(folder / f"{kind}.pth")


def imported(folder: Path, kind: str = "pretrain") -> str:
    import_file(published(folder, kind), str(folder / "checkpoint"), WORDS)
    return str(folder / "checkpoint")


@pytest.mark.parametrize("kind", published_files.KINDS)
def test_a_published_file_that_became_a_checkpoint_comes_out_with_the_same_tensors_under_the_same_keys(tmp_path: Path, kind: str) -> None:
    export(imported(tmp_path, kind), str(tmp_path / "out.pth"), "albef")
    before, after = (torch.load(tmp_path / name, weights_only=True)["model"] for name in (f"{kind}.pth", "out.pth"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) and before[name].shape == after[name].shape for name in before)


@pytest.mark.parametrize("name", ["ALBEF.ckpt", "ALBEF"])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_file_of_any_name_with_the_keys_of_a_distributed_run_is_read(
    tmp_path: Path, name: str, save: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    state = published_files.tensors("ve")
    save({f"module.{key}": value.clone() for key, value in state.items()}, tmp_path / name)
    with caplog.at_level(logging.INFO):
        assert inspect(str(tmp_path / name)).kind == f"published ALBEF file, SNLI-VE, {len(state)} tensors"
    assert "every key begins with 'module.', which DistributedDataParallel puts there: left out" in caplog.text
    import_file(str(tmp_path / name), str(tmp_path / "out"), WORDS)


@pytest.mark.parametrize("tower", ["student", "teacher"])
def test_a_model_that_came_from_a_file_computes_what_the_file_says(tmp_path: Path, tower: str) -> None:
    model, tokenizer, sizes = checkpoint.load_for_evaluation(imported(tmp_path), tower)
    weights = import_published(str(tmp_path / "pretrain.pth"))
    expected = Albef(sizes).eval()
    expected.load_state_dict((weights.student if tower == "student" else weights.teacher) or {})
    images, (ids, mask) = torch.randn(2, 3, 16, 16), tokenizer.encode(["word1 word2", "word3"], 8)
    assert torch.equal(model.encode_image(images), expected.encode_image(images))
    assert torch.equal(model.encode_text(ids, mask), expected.encode_text(ids, mask))


def test_evaluating_weights_that_a_file_did_not_have_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A VQA file has no ITM head: ranking with a fresh one tells nothing, and the original would not have said so."""
    checkpoint.load_for_evaluation(imported(tmp_path, "vqa"))
    assert "imported from a file without temperature, image_projection, text_projection, itm_head, mlm_head: fresh weights" in caplog.text
    caplog.clear()
    (tmp_path / "other").mkdir()
    checkpoint.load_for_evaluation(imported(tmp_path / "other"))
    assert not caplog.text


def test_fresh_weights_of_an_import_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = (checkpoint.read(imported(make(tmp_path / name), "ve")).tensors("student") for name in ("one", "two"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_an_import_for_larger_pictures_resizes_the_positions_of_both_towers_and_says_so(tmp_path: Path) -> None:
    done = import_file(published(tmp_path, "retrieval"), str(tmp_path / "larger"), WORDS, image_size=32)
    assert "interpolated: position embeddings, bicubic, for 32 px in place of 16" in done.lines
    assert done.checkpoint.model_config.image_size == 32
    for tower in ("student", "teacher"):
        assert done.checkpoint.tensors(tower)["image_encoder.pos_embed"].shape == (1, 17, 16)
    with pytest.raises(ConfigError, match="image size 20 is not a multiple of the 8 pixels of a patch"):
        import_file(published(tmp_path, "retrieval"), str(tmp_path / "odd"), WORDS, image_size=20)


def test_an_import_says_what_came_what_is_fresh_and_what_is_kept_aside(tmp_path: Path) -> None:
    lines = import_file(published(tmp_path, "retrieval"), str(tmp_path / "out"), WORDS).lines
    assert lines[1:] == [
        "teacher: from the file",
        "queue: 6 features, position 4",
        "heads: 1 (assumed; --vision-heads) and 1 (assumed; --text-heads)",
        "pooling: cls (assumed; --image-pool)",
        "fresh: mlm_head (5 tensors), which tell nothing before they are trained",
        "kept in extra.safetensors: queue.image_ids (1 tensors)",
    ]


def test_heads_and_pooling_go_out_and_come_back_with_the_options_that_the_export_names(tmp_path: Path) -> None:
    first = import_file(published(tmp_path, "pretrain"), str(tmp_path / "one"), WORDS, vision_heads=2, text_heads=4, image_pool="mean")
    assert first.lines[3:] == ["heads: 2 and 4", "pooling: mean"]
    lines = export(str(tmp_path / "one"), str(tmp_path / "out.pth"), "albef")
    assert lines[0] == "mind: the original code projects [CLS]; this model was trained with image_pool mean"
    assert lines[1].endswith("out.pth OUT --tokenizer vocab.txt --vision-heads 2 --text-heads 4 --image-pool mean")
    back = import_file(str(tmp_path / "out.pth"), str(tmp_path / "two"), WORDS, vision_heads=2, text_heads=4, image_pool="mean")
    assert back.checkpoint.model_config == first.checkpoint.model_config


def test_an_export_that_an_import_takes_as_it_is_names_no_options(tmp_path: Path) -> None:
    assert export(imported(tmp_path), str(tmp_path / "out.pth"), "albef") == []


def test_heads_of_a_folder_that_knows_its_own_are_refused(tmp_path: Path) -> None:
    export(imported(tmp_path), str(tmp_path / "exported"), "safetensors")
    with pytest.raises(ConfigError, match=r"--image-pool: .*exported says it itself; leave it out"):
        import_file(str(tmp_path / "exported"), str(tmp_path / "back"), image_pool="mean")


def test_importing_twice_is_fine_and_over_something_else_is_refused(tmp_path: Path) -> None:
    folder = imported(tmp_path)
    imported(tmp_path)
    with pytest.raises(ConfigError, match="another file is there, and nothing is overwritten"):
        import_file(published(tmp_path, "retrieval"), folder, WORDS)
    (Path(folder) / "latest").write_text("step-0000400")
    with pytest.raises(ConfigError, match=r"the checkpoints of a run are there \(step-0000400\)"):
        import_file(published(tmp_path, "pretrain"), folder, WORDS)


@pytest.mark.parametrize("words", [34, 36])
def test_a_vocabulary_of_another_size_than_the_models_is_refused(tmp_path: Path, words: int) -> None:
    tokenizer = Tokenizer([*SPECIAL, *(f"word{number}" for number in range(words))])
    with pytest.raises(ConfigError, match=rf"--tokenizer: has {5 + words} word pieces, but .*pretrain\.pth knows 40; give its own vocab\.txt"):
        import_file(published(tmp_path, "pretrain"), str(tmp_path / "out"), tokenizer)


@pytest.mark.parametrize("tower", ["student", "teacher"])
def test_an_exported_model_is_the_checkpoints_tower_with_its_tokenizer(tmp_path: Path, tower: str) -> None:
    folder = imported(tmp_path)
    export(folder, str(tmp_path / "exported"), "safetensors", tower)
    model, tokenizer = load_exported(str(tmp_path / "exported"))
    expected, _, _ = checkpoint.load_for_evaluation(folder, tower)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())
    assert tokenizer.vocabulary() == WORDS.vocabulary()
    assert not model.training


def test_an_exported_model_can_be_imported_again(tmp_path: Path) -> None:
    folder = imported(tmp_path)
    export(folder, str(tmp_path / "exported"), "safetensors")
    back = import_file(str(tmp_path / "exported"), str(tmp_path / "back")).checkpoint
    before = checkpoint.read(folder).tensors("student")
    assert all(torch.equal(value, before[name]) for name, value in back.tensors("student").items())
    assert back.tokenizer().vocabulary() == WORDS.vocabulary()


def test_a_damaged_export_is_named_with_its_file(tmp_path: Path) -> None:
    export(imported(tmp_path), str(tmp_path / "exported"), "safetensors")
    weights = tmp_path / "exported" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"exported/model\.safetensors: not a readable checkpoint"):
        load_exported(str(tmp_path / "exported"))
    (tmp_path / "exported" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match=r"exported/config\.json: not of a model that albef exported \(model_type 'bert'\)"):
        load_exported(str(tmp_path / "exported"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"itm_head.bias": None}, "missing itm_head.bias"),
        ({"itm_head.bias": torch.zeros(3)}, "itm_head.bias has shape (3,), the model's is (2,)"),
        ({"itm_head.bias": torch.full((2,), float("nan"))}, "NaN or infinite numbers in itm_head.bias"),
    ],
)
def test_an_exported_folder_that_is_not_what_its_settings_say_is_not_inspected_as_one(
    tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    export(imported(tmp_path), str(tmp_path / "exported"), "safetensors")
    file = tmp_path / "exported" / "model.safetensors"
    save_file({name: value for name, value in {**load_file(file), **change}.items() if value is not None}, file)
    with pytest.raises(DataError) as caught:
        inspect(str(tmp_path / "exported"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_exported_vit_and_bert_are_the_towers_weights(tmp_path: Path) -> None:
    folder, student = imported(tmp_path), published_from(published_files.tensors("pretrain"), "file").student
    export(folder, str(tmp_path / "vit.pth"), "timm")
    left_out = export(folder, str(tmp_path / "bert"), "bert")
    vit, bert = torch.load(tmp_path / "vit.pth", weights_only=True), load_file(tmp_path / "bert" / "model.safetensors")
    assert torch.equal(vit["blocks.1.attn.qkv.weight"], student["image_encoder.blocks.1.attn.qkv.weight"])
    assert torch.equal(bert["bert.encoder.layer.3.output.dense.weight"], student["fusion_encoder.layers.1.ffn.down.weight"])
    assert left_out == ["left out: cross-attention to the picture: transformers puts it into every layer of a BERT or into none"]
    assert not [name for name in bert if "cross" in name]


def test_a_published_file_is_exported_without_becoming_a_checkpoint_first(tmp_path: Path) -> None:
    export(published(tmp_path, "vqa"), str(tmp_path / "vit.pth"), "timm", "teacher")
    vit = torch.load(tmp_path / "vit.pth", weights_only=True)
    assert torch.equal(vit["norm.bias"], published_files.tensors("vqa")["visual_encoder_m.norm.bias"])


@pytest.mark.parametrize(
    ("kind", "out", "file_format", "tower", "message"),
    [
        ("pretrain", "out.pth", "albef", "teacher", "a published file holds student and teacher; leave --tower out"),
        ("pretrain", "out", "albef", None, "this format is one file; give a name that ends with .pth or .pt"),
        ("pretrain", "out", "timm", None, "this format is one file"),
        ("ve", "out", "safetensors", None, "has no trained temperature, image_projection, text_projection, itm_head, mlm_head"),
        ("retrieval", "out", "bert", None, "has no trained masked-language head"),
        ("ta", "out.pth", "timm", "teacher", "has no teacher; leave --tower out"),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path: Path, kind: str, out: str, file_format: str, tower: str | None, message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        export(imported(tmp_path, kind), str(tmp_path / out), file_format, tower)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / out).exists()


def test_an_export_never_overwrites_another_file(tmp_path: Path) -> None:
    folder, out = imported(tmp_path), tmp_path / "vit.pth"
    export(folder, str(out), "timm", "student")
    export(folder, str(out), "timm", "student")
    before = out.read_bytes()
    with pytest.raises(ConfigError, match="another file is there"):
        export(folder, str(out), "timm", "teacher")
    assert out.read_bytes() == before


def test_weights_go_to_s3_and_come_from_there(tmp_path: Path, s3_bucket: str) -> None:
    folder = imported(tmp_path)
    export(folder, f"{s3_bucket}/out.pth", "albef")
    export(folder, f"{s3_bucket}/exported", "safetensors")
    storage.write_bytes(f"{s3_bucket}/out.ckpt", storage.read_bytes(f"{s3_bucket}/out.pth"))
    import_file(f"{s3_bucket}/out.ckpt", f"{s3_bucket}/checkpoint", WORDS)
    export(f"{s3_bucket}/checkpoint", str(tmp_path / "back.pth"), "albef")
    before, after = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("pretrain.pth", "back.pth"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_exported(f"{s3_bucket}/exported")[1].vocab_size == WORDS.vocab_size
    assert inspect(f"{s3_bucket}/checkpoint").holds["teacher"] == "yes"
