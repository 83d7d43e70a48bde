"""``fastadv models check``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from fastadv.cli.fields import Changed, takes_groups
from fastadv.cli.options import Device, InputOptions, PairOptions, PrintOptions

if TYPE_CHECKING:
    from fastadv.studies.preprocessing import Preprocessings, Tried


@takes_groups
def check(
    given: InputOptions,
    pairs: Annotated[
        PairOptions,
        Changed("limit", "Verify at most N pairs, half of each class, spread over the list.", default=300),
    ],
    printing: PrintOptions,
    device: Device = "cpu",
) -> None:
    """Verify pairs with a network's preprocessing and with the usual others, and say which fits.

    The others are RGB and BGR, each with the usual means and standard deviations. Example: fastadv models check --model
    my.toml --data lfw/
    """
    from fastadv.cli.show import print_line, timed
    from fastadv.studies.preprocessing import check_folder

    found, _ = timed(check_folder, given.inputs(device), pairs.choice(), quiet=printing.without_bars)
    if printing.ends(asdict(found)):
        return
    _print(found)
    print_line(_conclusion(found))


def _print(found: Preprocessings) -> None:
    from fastadv.cli.show import percent, print_table

    rows = [
        (
            f"{_shown(each)}{' (described)' if k == 0 else ''}",
            percent(each.accuracy),
            percent(each.auc),
            percent(each.eer),
            f"{each.separation:.3f}",
        )
        for k, each in enumerate(found.tried)
    ]
    print_table(f"{found.model}, {found.pairs} pairs", rows, ("preprocessing", "accuracy", "AUC", "EER", "d'"))


def _shown(tried: Tried) -> str:
    """The order, mean and standard deviation: one number where all three are equal."""
    mean, std = (
        " ".join(f"{255 * value:.4g}" for value in (values if len(set(values)) > 1 else values[:1]))
        for values in (tried.mean, tried.std)
    )
    return f"{tried.channels} (x - {mean}) / {std}"


def _conclusion(found: Preprocessings) -> str:
    best = found.tried[found.best]
    if found.fits:
        return f"the described preprocessing fits: d' {found.tried[0].separation:.3f}, largest {best.separation:.3f}"
    mean, std = ([round(255 * value, 4) for value in values] for values in (best.mean, best.std))
    return (
        f"another preprocessing fits better, d' {best.separation:.3f} instead of {found.tried[0].separation:.3f}: "
        f'channels = "{best.channels}", mean = {mean}, std = {std}, range = 255'
    )
