"""The numbers that Mehr and Schroeder print, and their columns."""

from __future__ import annotations

from fastadv.studies.papers.recipe import PaperTable

WHITE, NOISE = ("FGSM", "DeepFool"), ("Uniform", "Gaussian")
MEAN, DENOISER, CLEAN = "Mean Filter", "Noise2Clean", "No Attack"
OWN = "the verifier's threshold"


def both(name: str) -> tuple[str, str]:
    """The columns of both goals."""
    return f"{name}, Anon.", f"{name}, Impers."


TABLE_1 = PaperTable(
    columns=(*both("success"), *both("success, L2 < 5"), *both("success, L2 < 1"), *both("mean L2")),
    rows={
        "FGSM": (1.0, 0.7917, 1.0, 0.75, 0.5, 0.1667, 1.23, 2.41),
        "DeepFool": (1.0, 1.0, 1.0, 1.0, 0.9231, 0.7083, 0.50, 0.90),
        "Uniform": (1.0, 0.0, 0.0769, 0.0, 0.0384, 0.0, 33.29, None),
        "Gaussian": (1.0, 0.0417, 0.0769, 0.0, 0.0384, 0.0, 32.79, 12.91),
    },
)
TABLE_2 = PaperTable(
    columns=(
        *both("zero knowledge: success"),
        *both("zero knowledge: mean L2 after the defence"),
        *both("perfect knowledge: success"),
        *both("perfect knowledge: mean L2"),
    ),
    rows={
        "FGSM": (0.0769, 0.0, 2.20, 2.38, 1.0, 0.7917, 1.40, 2.48),
        "DeepFool": (0.0769, 0.0, 2.05, 1.88, 1.0, 1.0, 0.58, 1.05),
        "Uniform": (0.0769, 0.0, 11.50, None, 1.0, 0.0, 41.45, None),
        "Gaussian": (0.1153, 0.0, 11.34, 4.38, 1.0, 0.0417, 41.58, 52.52),
    },
)
TABLE_3 = PaperTable.of_percent(
    (*both("No Preprocessing"), *both(MEAN), *both(DENOISER)),
    {
        CLEAN: (98.60, 87.74, 98.40, 87.71, 98.62, 87.59),
        "FGSM": (97.46, 78.51, 97.06, 79.74, 97.38, 78.86),
        "DeepFool": (96.68, 78.65, 96.65, 79.11, 96.71, 78.77),
        "Uniform": (58.12, None, 92.16, None, 94.64, None),
        "Gaussian": (61.97, 90.75, 92.14, 92.25, 94.57, 91.88),
    },
)
LONGER = PaperTable.of_percent(
    ("longer through the filter",), {"white-box attacks": (17.0,), "black-box attacks": (27.0,)}
)
RATIOS = PaperTable(
    columns=tuple(f"{attack}: {name}" for attack in WHITE for name in ("Anon.", "Impers.", "ratio")),
    rows={OWN: (1.23, 2.41, 2.41 / 1.23, 0.50, 0.90, 0.90 / 0.50)},
)
