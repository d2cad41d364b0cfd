"""`albef ingest CONFIG`, and what is done to a dataset afterwards."""

from typing import Any

import typer
from typer.core import TyperGroup


class ConfigOrCommand(TyperGroup):
    """A first word that is no command is the configuration: `albef ingest CONFIG` is what everybody types."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["CONFIG", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=ConfigOrCommand, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
