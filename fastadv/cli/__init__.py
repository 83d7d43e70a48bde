"""The command line: a module a command; parse, call a workflow, print."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from fastadv._version import __version__
from fastadv.cli.attack import attack
from fastadv.cli.bench import bench
from fastadv.cli.defend import defend
from fastadv.cli.demo import demo
from fastadv.cli.detect import detect
from fastadv.cli.doctor import doctor
from fastadv.cli.export import export
from fastadv.cli.groups import OwnOptions
from fastadv.cli.identify import identify
from fastadv.cli.report import report
from fastadv.cli.serve import serve
from fastadv.cli.show import errors
from fastadv.cli.talfw import talfw
from fastadv.cli.train import train
from fastadv.cli.train_denoiser import denoiser
from fastadv.cli.transfer import transfer
from fastadv.cli.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Adversarial attacks on face recognition, at the full speed of the hardware.",
)
for command in (doctor, attack, verify, identify, transfer, talfw, defend, demo, report, serve):
    app.command()(command)
detect.command()(export)
app.add_typer(detect, name="detect")
training = typer.Typer(
    cls=OwnOptions, subcommand_metavar="[COMMAND]", pretty_exceptions_enable=False, rich_markup_mode="rich"
)
training.callback(invoke_without_command=True)(train)
training.command()(denoiser)
app.add_typer(training, name="train")
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(bench)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's error is one sentence on standard error and exit code 2."""
    try:
        app(standalone_mode=True)
    except (ValueError, OSError, KeyError, ImportError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        errors.print("[red]error:[/red]", Text(str(text)), highlight=False, soft_wrap=True)
        sys.exit(2)
