"""A command that does something by itself and has sub-commands besides."""

from __future__ import annotations

from typing import Any

import typer

from fastadv.cli.checks import check, check_texts
from fastadv.cli.help_page import Group, usage
from fastadv.cli.names import refused_choices


class Listing(Group):
    """A group whose callback lists things, with a sub-command ``show``, which a name of a thing calls too.

    ``fastadv models iresnet50`` is ``fastadv models show iresnet50``. The callback returns at once where a sub-command
    is invoked.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """The arguments, none of them empty."""
        check_texts(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """The sub-command; ``show`` where the first word is none of them."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "show", self.commands["show"], [*args, *(["--json"] if ctx.params.get("as_json") else [])]


class OwnOptions(Group):
    """A group whose callback is a command of its own, with required options.

    ``fastadv train --data ...`` runs the callback, ``fastadv train denoiser --data ...`` the sub-command, which is not
    asked for the options of the former. The callback returns at once where a sub-command is invoked.
    """

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """What a call of the callback needs; the sub-commands have pages of their own."""
        return usage(self.params)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """The arguments after the options; options are not required before a sub-command."""
        check_texts(args)
        if not args or args[0] not in self.commands:
            with refused_choices():
                return super().parse_args(ctx, args)
        ctx.resilient_parsing = True
        try:
            return super().parse_args(ctx, args)
        finally:
            ctx.resilient_parsing = False

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Check the options of the callback, and run it or the sub-command."""
        check(str(self.name), ctx.params)
        return super().invoke(ctx)
