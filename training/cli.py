"""`albef checkpoint inspect|import|export`: what weights are, and in and out of other programs' files."""

import logging
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

VisionHeads = Annotated[int | None, typer.Option(help="Attention heads of a published file's image encoder; without it, width / 64.", min=1)]
TextHeads = Annotated[int | None, typer.Option(help="Attention heads of a published file's text encoder; without it, width / 64.", min=1)]


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Checkpoint, folder of checkpoints, run directory, weights file or exported folder; on disk or s3://.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the text.")] = False,
    vision_heads: VisionHeads = None,
    text_heads: TextHeads = None,
) -> None:
    """Say what PATH is: kind, sizes, parameters by tower, step, temperature. Reads every byte and executes none of it."""
    from json import dumps

    from training.weights.inspection import inspect as look_at

    _log()
    found = look_at(path, vision_heads, text_heads)
    for line in [dumps(found.as_json(), indent=1)] if as_json else found.lines():
        typer.echo(line)


@app.command("import")
def import_(
    path: Annotated[
        str, typer.Argument(metavar="FILE", help="Published ALBEF file (.pth), pre-training or downstream; or a folder that albef exported, or DeepSpeed's.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write the checkpoint to, on disk or s3://.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Of a published file: its vocab.txt, a folder with one, or a BERT of the hub; without it, bert-base-uncased.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize position embeddings for pictures of this side, pixels.", min=1)] = None,
    vision_heads: VisionHeads = None,
    text_heads: TextHeads = None,
    image_pool: Annotated[Literal["cls", "mean"] | None, typer.Option(help="What a published file's model projects; without it, cls.")] = None,
) -> None:
    """Make a checkpoint of FILE: for `albef eval` (eval.checkpoint=OUT) or as first weights (training.init.checkpoint=OUT)."""
    from pipeline.core.errors import ConfigError
    from training.tokenizer import Tokenizer
    from training.weights.conversion import import_file
    from training.weights.files import is_weights_file
    from training.weights.zero_folders import folder_of

    _log()
    published = is_weights_file(path) or folder_of(path) is not None
    if tokenizer is not None and not published:
        raise ConfigError(f"--tokenizer {tokenizer}: {path} is a folder with a vocabulary of its own; leave --tokenizer out")
    vocabulary = Tokenizer.load(tokenizer or "bert-base-uncased") if published else None
    imported = import_file(path, out, vocabulary, image_size, vision_heads, text_heads, image_pool)
    for line in imported.lines:
        typer.echo(line)
    typer.echo(f"checkpoint: {imported.checkpoint.path}")


@app.command()
def export(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Checkpoint, folder of checkpoints, run directory, exported folder or published file.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="albef, timm: a .pth file; safetensors, bert: a folder; on disk or s3://.")],
    file_format: Annotated[Literal["albef", "safetensors", "timm", "bert"], typer.Option("--format", help="Who is to read it.")],
    tower: Annotated[Literal["student", "teacher"] | None, typer.Option(help="Whose weights; without it the student's. A published file holds both.")] = None,
) -> None:
    """Write weights for the original code (albef), for five lines of Python (safetensors), for timm or for transformers (bert)."""
    from training.weights.conversion import export as write

    _log()
    for line in write(path, out, file_format, tower):
        typer.echo(line)
    typer.echo(f"written: {out}")


def _log() -> None:
    from pipeline.core import logs

    if not logging.getLogger().handlers:
        logs.configure()
