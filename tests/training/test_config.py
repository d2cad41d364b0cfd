"""The recipe as the paper has it, every way to split a global batch, and settings that cannot work."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pipeline.app.config import RunConfig
from pipeline.core.config import load
from pipeline.core.errors import ConfigError
from training.config import TrainingConfig
from training.losses import losses_of
from training.split import split_of

CONFIGS = Path(__file__).parents[2] / "pipeline" / "configs"
ROWS = sorted((CONFIGS / "table1").glob("*.yaml"))


def training_of(name: str | Path, *overrides: str) -> TrainingConfig:
    training = load(RunConfig, CONFIGS / name, overrides).training
    assert training is not None
    return training


def test_the_base_configuration_is_the_papers_pre_training() -> None:
    recipe = training_of("albef_base.yaml")
    assert (recipe.epochs, recipe.max_steps, recipe.epoch_over, recipe.seed) == (30, None, "pairs", 42)
    assert (recipe.global_batch_size, recipe.group_size, recipe.queue_size) == (512, 64, 65_536)
    assert (recipe.momentum, recipe.alpha, recipe.alpha_start_step, recipe.alpha_ramp_steps) == (0.995, 0.4, 0, None)
    assert (recipe.mlm_probability, recipe.max_tokens) == (0.15, 25)
    assert (recipe.crop_scale, recipe.flip, recipe.randaugment) == ((0.2, 1.0), True, True)
    assert recipe.init.model_dump(include={"vision", "text", "tokenizer"}) == {
        "vision": "deit_base_patch16_224.fb_in1k", "text": "bert-base-uncased", "tokenizer": "bert-base-uncased",
    }  # fmt: skip


def test_the_base_configuration_optimises_as_the_paper() -> None:
    recipe = training_of("albef_base.yaml")
    optimizer = recipe.optimizer
    assert recipe.schedule == "paper"
    assert (optimizer.peak_lr, optimizer.final_lr, optimizer.warmup_steps, optimizer.weight_decay) == (1e-4, 1e-5, None, 0.02)
    assert (optimizer.betas, optimizer.epsilon, optimizer.max_grad_norm, optimizer.temperature_lr_scale) == ((0.9, 0.999), 1e-8, 0.0, 1.0)


def test_the_base_configuration_is_vit_b_16_and_bert_base_cut_in_the_middle() -> None:
    model = training_of("albef_base.yaml").model
    assert (model.image_size, model.patch_size, model.vision_width, model.vision_depth, model.vision_heads, model.vision_mlp_ratio) == (256, 16, 768, 12, 12, 4)
    assert (model.text_hidden, model.text_heads, model.text_layers, model.fusion_layers, model.text_intermediate) == (768, 12, 6, 6, 3072)
    assert (model.vocab_size, model.max_positions, model.type_vocab_size) == (30_522, 512, 2)
    assert (model.hidden_dropout, model.attention_dropout, model.embed_dim, model.temperature) == (0.1, 0.1, 256, 0.07)
    assert (model.image_pool, model.init_std) == ("cls", 0.02)


def test_the_three_losses_weigh_the_same_with_hard_negatives_and_soft_targets_from_the_first_step() -> None:
    losses: dict[str, Any] = losses_of(training_of("albef_base.yaml").losses)
    assert {name: loss.weight for name, loss in losses.items()} == {"itc": 1.0, "itm": 1.0, "mlm": 1.0}
    assert (losses["itc"].soft_targets, losses["mlm"].soft_targets, losses["itm"].hard_from_step) == (True, True, 0)


def test_an_option_of_one_loss_on_the_command_line_leaves_the_other_losses_in() -> None:
    losses: dict[str, Any] = losses_of(training_of("albef_base.yaml", "training.losses.itm.weight=3").losses)
    assert {name: loss.weight for name, loss in losses.items()} == {"itc": 1.0, "itm": 3.0, "mlm": 1.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.losses=[itc]", r"training\.losses is \['itc'\]: should be names with their options, .*: \{itc: \{\}\}$"),
        ("training.losses=[itc, mlm]", r"training\.losses is .*: \{itc: \{\}, mlm: \{\}\}$"),
        ("training.losses=itc", r"training\.losses is 'itc': .*: \{itc: \{\}\}$"),
        ("training.losses=null", r"training\.losses is None: .*: \{itc: \{\}, itm: \{\}, mlm: \{\}\}$"),
        ("training.losses={itc: 3}", r"training\.losses: itc should have options by name, .*: \{itc: \{weight: 1\.0\}\}$"),
        ("training.losses.itm=3", r"training\.losses: itm should have options by name, .*: \{itm: \{weight: 1\.0\}\}$"),
    ],
)
def test_losses_in_another_form_are_refused_with_the_form_to_write(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        training_of("albef_base.yaml", override)
    assert "\n" not in str(caught.value)


def test_what_the_base_configuration_does_not_name_is_the_default() -> None:
    named = training_of("albef_base.yaml").model_dump()
    assert named["optimizer"].pop("reference_batch_size") == 512
    default = TrainingConfig(dataset="data/albef_14m").model_dump()
    del default["optimizer"]["reference_batch_size"]
    assert named == default


def test_the_base_configuration_trains_on_what_the_14m_configuration_makes() -> None:
    for name, made_by in (("albef_base.yaml", "albef_14m.yaml"), ("table1/1_mlm_itm.yaml", "albef_4m.yaml")):
        ingest = load(RunConfig, CONFIGS / made_by).ingest
        assert ingest is not None
        assert training_of(name).dataset == ingest.output


def test_each_row_of_table_1_adds_one_thing_to_the_row_before() -> None:
    rows: list[dict[str, Any]] = [losses_of(training_of(path).losses) for path in ROWS]
    assert [list(row) for row in rows] == [["itm", "mlm"], *[["itc", "itm", "mlm"]] * 4]
    assert [row["itm"].hard_from_step for row in rows] == [None, None, 0, 0, 0]
    assert [row["itc"].soft_targets for row in rows[1:]] == [False, False, True, True]
    assert [row["mlm"].soft_targets for row in rows] == [False, False, False, False, True]


def test_rows_of_table_1_differ_in_their_losses_alone_and_the_last_is_the_whole_recipe() -> None:
    rows = [training_of(path) for path in ROWS]
    assert len({row.model_copy(update={"losses": {}}).model_dump_json() for row in rows}) == 1
    assert len({load(RunConfig, path).run.folder for path in ROWS}) == len(ROWS) == 5
    whole = losses_of(training_of("albef_base.yaml").losses)
    assert losses_of(rows[-1].losses) == whole
    for path in ROWS:
        assert path.read_text().splitlines()[0] == f"# albef train pipeline/configs/table1/{path.name}"


def a_batch(global_batch_size: int, group_size: int, micro_batch_size: int | None) -> TrainingConfig:
    return TrainingConfig(dataset="x", global_batch_size=global_batch_size, group_size=group_size, micro_batch_size=micro_batch_size)


def test_every_global_batch_that_micro_batch_times_accumulation_times_ranks_can_form_is_accepted_and_no_other() -> None:
    sizes = [1, 2, 3, 4, 6, 7, 12, 24, 30, 48]
    for global_batch_size, group_size, micro_batch_size, ranks in product(sizes, [1, 2, 3, 4, 12], [None, *sizes], range(1, 9)):
        if global_batch_size % group_size:
            continue
        micro_batches = range(group_size, global_batch_size + 1, group_size) if micro_batch_size is None else [micro_batch_size]
        possible = [(m, global_batch_size // (m * ranks)) for m in micro_batches if m % group_size == 0 and global_batch_size % (m * ranks) == 0]
        config = a_batch(global_batch_size, group_size, micro_batch_size)
        if possible:
            assert split_of(config, ranks) == max(possible)
        else:
            with pytest.raises(ConfigError, match="that fit: "):
                split_of(config, ranks)


def test_what_does_not_fit_is_refused_with_what_fits() -> None:
    with pytest.raises(ConfigError, match=r"512 cannot be split over 3 ranks in groups of 64; ranks that fit: \[1, 2, 4, 8\]"):
        split_of(a_batch(512, 64, None), 3)
    with pytest.raises(ConfigError, match=r"micro_batch_size 96 must divide the 256 pairs .*; sizes that fit: \[64, 128, 256\]"):
        split_of(a_batch(512, 64, 96), 2)
    with pytest.raises(ValueError, match=r"100 is not a multiple of group_size 64; group sizes that fit: \[1, 2, 4, 5, 10, 20, 25, 50, 100\]"):
        a_batch(100, 64, None)


def a_global_group(global_batch_size: int, micro_batch_size: int | None = None) -> TrainingConfig:
    return TrainingConfig(dataset="x", global_batch_size=global_batch_size, negatives="global", micro_batch_size=micro_batch_size)


def test_a_global_group_is_one_pass_over_all_ranks_whatever_group_size_is() -> None:
    assert a_global_group(100).group_size == 64
    assert split_of(a_global_group(100), 4) == split_of(a_global_group(100, 25), 4) == (25, 1)
    with pytest.raises(ConfigError, match=r"100 cannot be split over 3 ranks; ranks that fit: \[1, 2, 4, 5, 10, 20, 25, 50, 100\]"):
        split_of(a_global_group(100), 3)
    with pytest.raises(ConfigError, match=r"micro_batch_size 5 would accumulate, .* global batch of 100 in one pass; on 4 ranks set it to 25 or null"):
        split_of(a_global_group(100, 5), 4)


@pytest.mark.parametrize("global_batch_size", [1, 96, 127, 500, 1000, 32_768])
def test_any_global_batch_can_be_had_with_groups_that_divide_it(global_batch_size: int) -> None:
    assert split_of(a_batch(global_batch_size, global_batch_size, None), 1) == (global_batch_size, 1)
    assert split_of(a_batch(global_batch_size, 1, 1), 1) == (1, global_batch_size)


@pytest.mark.parametrize("queue_size", [0, 1, 100, 65_537])
def test_any_queue_size_is_accepted(queue_size: int) -> None:
    assert TrainingConfig(dataset="x", queue_size=queue_size).queue_size == queue_size
