"""``fastadv models``: the networks on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer

from fastadv.cli.fields import takes_groups
from fastadv.cli.names import MODELS
from fastadv.cli.networks import NETWORKS, Network
from fastadv.cli.options import AsJson


@takes_groups
def models(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the networks: name, parameters, input and where the weights come from; 'fastadv models NAME' shows one."""
    if ctx.invoked_subcommand is None:
        _print(NETWORKS, as_json=as_json)


@takes_groups
def show_model(
    name: Annotated[str, MODELS.argument("Show this network.", metavar="NAME")],
    as_json: AsJson = False,
) -> None:
    """Show one network; 'fastadv models NAME' does the same."""
    _print({name: NETWORKS[name]}, as_json=as_json)


def _print(chosen: Mapping[str, Network], *, as_json: bool) -> None:
    from fastadv.cli.show import print_columns, print_next

    if as_json:
        print(json.dumps([{"name": name, **asdict(network)} for name, network in chosen.items()]))
        return
    rows = [(name, f"{n.parameters / 1e6:.2f} M", f"{n.input} x {n.width}", n.weights) for name, n in chosen.items()]
    print_columns("Networks (--model)", rows, ("name", "parameters", "input", "weights"))
    model = "synth-vgg" if len(chosen) > 1 else next(iter(chosen))
    weights = {} if NETWORKS[model].shipped else {"weights": "FILE"}
    print_next("verify", data="FACES", model=model, **weights)
