"""`albef ingest CONFIG`, and what is done to a dataset afterwards."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class ConfigOrCommand(TyperGroup):
    """A first word that is no command is the configuration: `albef ingest CONFIG` is what everybody types."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["CONFIG", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=ConfigOrCommand, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

LINES_SHOWN = 50


@app.command()
def purge(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder of the dataset, on disk or s3://bucket/folder.")],
    lists: Annotated[
        list[str],
        typer.Argument(metavar="LIST...", help="Text, csv or parquet; an entry a line: a URL, a uid, a sha256 or a phash, which also finds near copies."),
    ],
) -> None:
    """Delete the pictures that LISTs name from a finished dataset: rewrites their shards and publishes a new manifest."""
    from ingest.purge import purge as take
    from pipeline.core import logs

    logs.configure()
    taken = take(dataset, lists)
    for one in taken[:LINES_SHOWN]:
        typer.echo(f"{one.shard} {one.key} {one.url or ''} by {one.kind} {one.entry}")
    if len(taken) > LINES_SHOWN:
        typer.echo(f"... and {len(taken) - LINES_SHOWN} more; all are in {dataset}/purges")
    shards = len({one.shard for one in taken})
    typer.echo(f"{len(taken)} pictures taken out of {shards} shards" if taken else "nothing to purge")


@app.command()
def phash(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Parquet file to write: name and phash of each picture.")],
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURES...", help="Folders, zips and tars with your copies of a benchmark's pictures.")],
) -> None:
    """Hash the pictures of a benchmark by their looks, for ingest.held_out.phashes."""
    from ingest.phash_corpus import build
    from pipeline.core import logs

    logs.configure()
    hashed, unreadable = build(out, pictures)
    typer.echo(f"{out}: {hashed} pictures hashed" + (f", {len(unreadable)} could not be read (named above)" if unreadable else ""))
