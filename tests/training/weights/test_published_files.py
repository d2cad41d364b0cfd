"""Published ALBEF files of every kind come in strictly and go out again as they were."""

from pathlib import Path

import published_files
import pytest
import torch
from published_files import KINDS, TINY, Sizes

from pipeline.core.errors import DataError
from training.feature_queue import FeatureQueue
from training.model import Albef
from training.model_config import ModelConfig
from training.weights import import_published
from training.weights.names import VARIANTS, key_table, position_id_keys
from training.weights.published import parameter_shapes, published_from, published_state, variant_of

GOLDEN = Path(__file__).parents[2] / "data" / "albef_tiny" / "checkpoint.pth"
State = dict[str, torch.Tensor]


def saved(path: Path, state: State, **change: torch.Tensor | None) -> str:
    """A published file of these tensors with some replaced, added or (None) taken out."""
    torch.save({"model": {name: value for name, value in {**state, **change}.items() if value is not None}}, path)
    return str(path)


def golden() -> State:
    state: State = torch.load(GOLDEN, weights_only=True)["model"]
    return state


def assert_same(found: State, expected: State) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_has_the_originals_keys_at_the_published_sizes(kind: str) -> None:
    variant = VARIANTS[kind]
    sizes = ModelConfig(fusion_layers=12 if kind in ("nlvr", "ta") else 6)
    ours = [*key_table(variant, sizes), *position_id_keys(variant)]
    theirs = published_files.shapes(kind, Sizes())
    assert set(ours) == set(theirs)
    assert len(ours) == len(theirs) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_recognised_and_survives_import_and_export_bit_for_bit(tmp_path: Path, kind: str) -> None:
    state = published_files.tensors(kind)
    published = import_published(saved(tmp_path / "file.pth", state))
    assert published.variant == kind
    assert_same(published_state(published), state)


def test_the_file_of_the_original_code_survives_the_way_through_our_models_bit_for_bit() -> None:
    published = import_published(str(GOLDEN), vision_heads=4, text_heads=4)
    assert published.teacher is not None
    assert published.queue is not None
    student, teacher, queue = Albef(published.config), Albef(published.config), FeatureQueue(64, published.config.embed_dim)
    student.load_state_dict(published.student)
    teacher.load_state_dict(published.teacher)
    queue.load_state_dict(published.queue)
    through_models = type(published)(published.config, student.state_dict(), teacher.state_dict(), queue.state_dict())
    assert_same(published_state(through_models), golden())


def test_published_sizes_make_the_published_numbers_of_parameters() -> None:
    shapes = parameter_shapes(ModelConfig())

    def millions(*roots: str) -> float:
        return round(sum(torch.Size(shape).numel() for name, shape in shapes.items() if name.startswith(roots)) / 1e6, 1)

    assert millions("image_encoder.") == 85.8
    assert millions("text_encoder.", "fusion_encoder.", "mlm_head.") == 123.7
    assert millions("") == 209.9


def test_sizes_are_read_off_the_published_shapes() -> None:
    config = import_published(str(GOLDEN), vision_heads=4, text_heads=4).config
    assert (config.image_size, config.patch_size, config.text_layers, config.fusion_layers) == (64, 16, 2, 2)
    assert (config.vocab_size, config.embed_dim, config.text_intermediate) == (1000, 32, 128)


def test_what_our_model_has_no_place_for_is_kept_under_our_names() -> None:
    extra = {kind: published_from(published_files.tensors(kind), kind).extra for kind in ("pretrain", "retrieval", "vqa", "nlvr")}
    assert extra["pretrain"] == {}
    assert set(extra["retrieval"]) == {"queue.image_ids"}
    assert "teacher.answer_decoder.layers.1.cross_attention.key.weight" in extra["vqa"]
    classifier = [f"classifier.{layer}.{leaf}" for layer in ("hidden", "output") for leaf in ("weight", "bias")]
    assert set(extra["nlvr"]) == {f"{tower}.{name}" for tower in ("student", "teacher") for name in classifier}


@pytest.mark.parametrize(
    ("kind", "fresh"),
    [
        ("pretrain", set()),
        ("retrieval", {"mlm_head"}),
        ("vqa", {"mlm_head", "itm_head", "image_projection", "text_projection", "temperature"}),
        ("ta", {"mlm_head", "itm_head"}),
    ],
)
def test_what_a_kind_of_file_does_not_have_is_named_as_fresh(kind: str, fresh: set[str]) -> None:
    assert {name.partition(".")[0] for name in published_from(published_files.tensors(kind), kind).fresh} == fresh


def test_a_pair_of_fusion_layers_of_nlvr_gets_the_keys_and_values_that_it_shares() -> None:
    state = published_files.tensors("nlvr")
    student = published_from(state, "nlvr.pth").student
    for layer in ("layers.2", "layers.3"):
        assert torch.equal(student[f"fusion_encoder.{layer}.cross_attention.key.weight"], state["text_encoder.encoder.layer.4.crossattention.self.key.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_single_key_is_missed_when_it_is_not_there(kind: str) -> None:
    """Each one, but the constant position ids, in a file that keeps its teacher and its queue."""
    state = published_files.tensors(kind)
    recognised_by = {"visual_encoder.patch_embed.proj.weight", "visual_encoder.pos_embed", "vision_proj.weight"}
    for key in [key for key in state if not key.endswith("position_ids") and key not in recognised_by][::7]:
        rest = {name: value for name, value in state.items() if name != key}
        with pytest.raises(DataError) as caught:
            published_from(rest, "file.pth")
        assert key in str(caught.value)


def test_every_missing_and_unexpected_key_is_named_in_one_line(tmp_path: Path) -> None:
    change = {"itm_head.bias": None, "text_proj_m.weight": None, "idx_queue": torch.zeros(1), "extra.weight": torch.zeros(2)}
    with pytest.raises(DataError) as caught:
        import_published(saved(tmp_path / "file.pth", golden(), **change))
    text = str(caught.value)
    assert "missing itm_head.bias, text_proj_m.weight" in text
    assert "unexpected extra.weight, idx_queue" in text
    assert "\n" not in text


def test_a_pretraining_file_renamed_for_fine_tuning_names_the_keys_of_its_head() -> None:
    """The original's scripts strip `bert.` and load the rest as it fits, and so lose the MLM head in silence."""
    renamed = {name.replace("bert.", ""): value for name, value in published_files.tensors("pretrain").items()}
    with pytest.raises(DataError, match=r"missing idx_queue; unexpected text_encoder\.cls\.predictions\.bias, .*text_encoder_m\.cls\.predictions"):
        published_from(renamed, "renamed.pth")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("text_proj.weight", (7, 16)),
        ("image_queue", (8, 5)),
        ("queue_ptr", (2,)),
        ("text_encoder_m.bert.encoder.layer.3.crossattention.self.key.weight", (16, 17)),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(key: str, shape: tuple[int, ...]) -> None:
    state = published_files.tensors("pretrain")
    expected = state["text_queue" if key == "image_queue" else key].shape
    with pytest.raises(DataError) as caught:
        published_from({**state, key: torch.zeros(shape)}, "file.pth")
    named = "text_queue has shape (8, 6), the model's is (8, 5)" if key == "image_queue" else f"{key} has shape {shape}, the model's is {tuple(expected)}"
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("pretrain", "text_encoder.cls.predictions.decoder.bias"),
        ("pretrain", "text_encoder_m.cls.predictions.decoder.weight"),
        ("vqa", "text_decoder.cls.predictions.decoder.weight"),
        ("nlvr", "text_encoder.encoder.layer.3.crossattention.self.value.bias"),
        ("nlvr", "text_encoder_m.encoder.layer.5.crossattention.self.key.weight"),
    ],
)
def test_copies_of_one_tensor_that_differ_are_refused(kind: str, key: str) -> None:
    state = published_files.tensors(kind)
    with pytest.raises(DataError, match=r"differs from .*, but they are one tensor in the model") as caught:
        published_from({**state, key: state[key] + 1}, "file.pth")
    assert key in str(caught.value)


def test_position_ids_may_be_absent_but_not_others() -> None:
    state, key = published_files.tensors("ve"), "text_encoder.embeddings.position_ids"
    assert published_from({name: value for name, value in state.items() if name != key}, "file.pth").variant == "ve"
    with pytest.raises(DataError, match=r"position_ids is not 0 to 11 in order"):
        published_from({**state, key: state[key].flip(1)}, "file.pth")


@pytest.mark.parametrize("kind", ["pretrain", "retrieval", "nlvr"])
def test_a_file_without_teacher_and_queue_gives_the_student_and_survives_too(tmp_path: Path, kind: str) -> None:
    """As refcoco.pth, which is bare on top."""
    bare = {name: value for name, value in published_files.tensors(kind).items() if "_m." not in name and "queue" not in name}
    torch.save(bare, tmp_path / "bare.pth")
    published = import_published(str(tmp_path / "bare.pth"))
    assert published.teacher is None
    assert published.queue is None
    assert_same(published_state(published), bare)


def test_a_teacher_by_halves_is_refused() -> None:
    state = published_files.tensors("retrieval")
    half = {name: value for name, value in state.items() if not name.startswith("visual_encoder_m.blocks")}
    with pytest.raises(DataError, match=r"missing visual_encoder_m\.blocks\.0\.attn\.proj\.bias, "):
        published_from(half, "half.pth")


def test_weights_without_what_a_published_file_has_cannot_become_one() -> None:
    published = published_from(published_files.tensors("retrieval"), "mscoco.pth")
    with pytest.raises(DataError, match=r"a published pre-training file has more than these weights: missing .*student\.mlm_head\.norm\.weight"):
        published_state(type(published)(published.config, published.student, published.teacher, published.queue))


def test_another_kind_of_checkpoint_is_not_taken_for_albef() -> None:
    state = published_files.tensors("pretrain")
    vit = {name.removeprefix("visual_encoder."): value for name, value in state.items() if name.startswith("visual_encoder.")}
    assert variant_of(vit) is None
    with pytest.raises(DataError, match="not a published ALBEF checkpoint"):
        published_from(vit, "vit.pth")


def test_tiny_files_are_of_the_sizes_they_say() -> None:
    config = published_from(published_files.tensors("ta"), "ta.pth").config
    assert (config.image_size, config.fusion_layers, config.vocab_size, config.embed_dim) == (16, 2 * TINY.fusion_layers, TINY.vocabulary, TINY.features)
