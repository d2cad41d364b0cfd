"""Weights from published ALBEF files, timm and transformers do in our model what they do in theirs."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from pipeline.core.errors import DataError
from training.feature_queue import FeatureQueue
from training.model import Albef
from training.model_config import ModelConfig
from training.weights import export_published, import_published, load_hf_bert, load_timm_vit

GOLDEN = Path(__file__).parents[1] / "data" / "albef_tiny" / "checkpoint.pth"
SMALL = ModelConfig(
    image_size=32, vision_width=32, vision_depth=2, vision_heads=2, text_hidden=24, text_heads=2, text_layers=2, fusion_layers=1, text_intermediate=48,
    vocab_size=60, max_positions=16, embed_dim=8,
)  # fmt: skip


def vit(image_size: int = 32, **options: int) -> torch.nn.Module:
    sizes = {"img_size": image_size, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10, **options}
    model: torch.nn.Module = timm.create_model("vit_base_patch16_224", pretrained=False, **sizes)
    return model.eval()


def save_bert(folder: Path, **options: int) -> BertForMaskedLM:
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 16}
    torch.manual_seed(1)
    bert = BertForMaskedLM(BertConfig(**(sizes | options), initializer_range=0.3)).eval()
    for parameter in bert.parameters():  # biases and norms too, or a swapped pair would go unseen
        torch.nn.init.normal_(parameter, std=0.3)
    bert.save_pretrained(folder)
    return bert


def altered(path: Path, tmp_path: Path, change: dict[str, torch.Tensor | None]) -> str:
    """A copy of a published file with some tensors replaced, added or (None) taken out."""
    state = torch.load(path, weights_only=True)["model"]
    for name, value in change.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    torch.save({"model": state}, tmp_path / "altered.pth")
    return str(tmp_path / "altered.pth")


def test_a_published_file_survives_import_and_export_bit_for_bit(tmp_path: Path) -> None:
    published = import_published(str(GOLDEN), vision_heads=4, text_heads=4)
    assert published.teacher is not None
    assert published.queue is not None
    student, teacher = Albef(published.config), Albef(published.config)
    student.load_state_dict(published.student)
    teacher.load_state_dict(published.teacher)
    queue = FeatureQueue(64, published.config.embed_dim)
    queue.load_state_dict(published.queue)
    export_published(str(tmp_path / "out.pth"), published.config, student.state_dict(), teacher.state_dict(), queue)
    before, after = (torch.load(path, weights_only=True)["model"] for path in (GOLDEN, tmp_path / "out.pth"))
    assert set(before) == set(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
        assert value.shape == after[name].shape, name


def test_sizes_are_read_off_the_published_shapes() -> None:
    config = import_published(str(GOLDEN), vision_heads=4, text_heads=4).config
    assert (config.image_size, config.patch_size, config.text_layers, config.fusion_layers) == (64, 16, 2, 2)
    assert (config.vocab_size, config.embed_dim, config.text_intermediate) == (1000, 32, 128)


def test_every_missing_and_unexpected_key_is_named_in_one_line(tmp_path: Path) -> None:
    path = altered(GOLDEN, tmp_path, {"itm_head.bias": None, "text_proj_m.weight": None, "idx_queue": torch.zeros(1), "extra.weight": torch.zeros(2)})
    with pytest.raises(DataError) as caught:
        import_published(path)
    text = str(caught.value)
    assert "missing itm_head.bias, text_proj_m.weight" in text
    assert "unexpected extra.weight, idx_queue" in text
    assert "\n" not in text


def test_a_published_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    path = altered(GOLDEN, tmp_path, {"text_proj.weight": torch.zeros(31, 64)})
    with pytest.raises(DataError, match=r"text_projection\.weight has shape \(31, 64\), the model's is \(32, 64\)"):
        import_published(path)


def test_tied_copies_that_differ_are_refused(tmp_path: Path) -> None:
    path = altered(GOLDEN, tmp_path, {"text_encoder.cls.predictions.bias": torch.ones(1000)})
    with pytest.raises(DataError, match=r"predictions\.bias differs from"):
        import_published(path)


def test_a_published_file_without_teacher_and_queue_still_gives_the_student(tmp_path: Path) -> None:
    state = torch.load(GOLDEN, weights_only=True)["model"]
    torch.save({name: value for name, value in state.items() if "_m." not in name and "queue" not in name}, tmp_path / "bare.pth")
    published = import_published(str(tmp_path / "bare.pth"), vision_heads=4, text_heads=4)
    assert published.teacher is None
    assert published.queue is None
    Albef(published.config).load_state_dict(published.student)


def test_another_kind_of_checkpoint_is_not_taken_for_albef(tmp_path: Path) -> None:
    torch.save(vit().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(DataError, match="not an ALBEF pre-training checkpoint"):
        import_published(str(tmp_path / "vit.pth"))


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("trapped"),))


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    torch.save({"model": Trap()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(DataError, match=r"evil2?\.pth: not a readable checkpoint") as caught:
            import_published(name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "trapped").exists()


def test_a_truncated_checkpoint_and_an_absent_one_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "half.pth").write_bytes(GOLDEN.read_bytes()[:100_000])
    for name, reason in (("half.pth", "not a readable checkpoint"), ("none.pth", "no such checkpoint file")):
        with pytest.raises(DataError, match=reason) as caught:
            import_published(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrapped", ["model", None, "safetensors"])
def test_a_timm_vit_gives_the_same_features_in_ours(tmp_path: Path, wrapped: str | None) -> None:
    torch.manual_seed(0)
    theirs, path = vit(), tmp_path / ("vit.safetensors" if wrapped == "safetensors" else "vit.pth")
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if wrapped == "safetensors":
        save_file(theirs.state_dict(), path)
    else:
        torch.save({wrapped: theirs.state_dict()} if wrapped else theirs.state_dict(), path)
    ours, images = Albef(SMALL), torch.randn(2, 3, 32, 32)
    load_timm_vit(ours, str(path))
    torch.testing.assert_close(ours.encode_image(images), theirs.forward_features(images), atol=1e-5, rtol=1e-5)


def test_a_vit_of_another_resolution_is_loaded_with_resized_positions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = vit(image_size=64)
    torch.save({"model": theirs.state_dict()}, tmp_path / "vit.pth")
    ours = Albef(SMALL)
    load_timm_vit(ours, str(tmp_path / "vit.pth"))
    grid = theirs.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (2, 2), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(1, 4, 32)
    torch.testing.assert_close(ours.image_encoder.pos_embed, torch.cat([theirs.pos_embed[:, :1], resized], dim=1))


def test_a_vit_of_another_width_is_refused_with_the_first_key_and_both_shapes(tmp_path: Path) -> None:
    torch.save(vit(embed_dim=48).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(DataError, match=r"wide\.pth: cls_token has shape \(1, 1, 48\), the model's is \(1, 1, 32\)") as caught:
        load_timm_vit(Albef(SMALL), str(tmp_path / "wide.pth"))
    assert "\n" not in str(caught.value)


def test_an_unknown_timm_name_is_one_line() -> None:
    with pytest.raises(DataError, match="no_such_vit: cannot be loaded") as caught:
        load_timm_vit(Albef(SMALL), "no_such_vit")
    assert "\n" not in str(caught.value)


def test_our_text_layers_give_the_states_of_the_bert_they_come_from(tmp_path: Path) -> None:
    save_bert(tmp_path)
    theirs, ours = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval(), Albef(SMALL).eval()
    load_hf_bert(ours, str(tmp_path))
    ids, mask = torch.randint(0, 60, (3, 7)), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    states = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours.encode_text(ids, mask)[mask.bool()], states[2][mask.bool()], atol=1e-5, rtol=1e-4)


def test_the_upper_half_and_the_mlm_head_come_from_the_bert_too(tmp_path: Path) -> None:
    """Without its cross-attention the whole stack is the BERT."""
    theirs, ours = save_bert(tmp_path), Albef(SMALL).eval()
    load_hf_bert(ours, str(tmp_path))
    layer = ours.fusion_encoder.layers[0]
    layer.cross_attention.forward = lambda hidden, *_, **__: hidden
    ids, mask = torch.randint(0, 60, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    fused = ours.fuse(ours.encode_text(ids, mask), mask, torch.zeros(2, 5, 32))
    torch.testing.assert_close(ours.mlm_head(fused), theirs(input_ids=ids, attention_mask=mask).logits, atol=1e-4, rtol=1e-4)


def test_a_file_laid_out_like_bert_base_uncased_is_understood(tmp_path: Path) -> None:
    """That file names its norms gamma and beta, leaves the tied decoder out, and brings heads we have no use for."""
    theirs, ours = save_bert(tmp_path), Albef(SMALL).eval()
    stored = load_file(tmp_path / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in stored.items()}
    old = {name: value for name, value in old.items() if "decoder" not in name}
    old |= {"bert.pooler.dense.weight": torch.zeros(24, 24), "cls.seq_relationship.weight": torch.zeros(2, 24)}
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_hf_bert(ours, str(tmp_path))
    assert torch.equal(ours.mlm_head.decoder.bias, theirs.cls.predictions.bias)
    assert torch.equal(ours.mlm_head.norm.weight, theirs.cls.predictions.transform.LayerNorm.weight)
    assert torch.equal(ours.text_encoder.layers[1].ffn.norm.bias, theirs.bert.encoder.layer[1].output.LayerNorm.bias)


def test_a_bert_without_its_mlm_head_is_refused(tmp_path: Path) -> None:
    BertModel(save_bert(tmp_path / "whole").config).save_pretrained(tmp_path / "headless")
    with pytest.raises(DataError, match=r"missing mlm_head\."):
        load_hf_bert(Albef(SMALL), str(tmp_path / "headless"))


def test_a_bert_of_another_vocabulary_is_refused_with_both_shapes(tmp_path: Path) -> None:
    save_bert(tmp_path, vocab_size=61)
    with pytest.raises(DataError, match=r"has shape \(61, 24\), the model's is \(60, 24\)"):
        load_hf_bert(Albef(SMALL), str(tmp_path))


def test_a_bert_with_too_few_layers_is_refused(tmp_path: Path) -> None:
    save_bert(tmp_path, num_hidden_layers=2)
    with pytest.raises(DataError, match=r"missing fusion_encoder\.layers\.0\.ffn"):
        load_hf_bert(Albef(SMALL), str(tmp_path))


def test_a_folder_without_a_bert_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded; expected a folder with a BERT") as caught:
        load_hf_bert(Albef(SMALL), str(tmp_path))
    assert "\n" not in str(caught.value)
