"""What Zhong and Deng 2020 print: tables I to VI, in per cent."""

from __future__ import annotations

from collections.abc import Sequence

from fastadv.studies.papers.recipe import PaperTable

MEAN = "mean"
"""Of a method's rates from each network to each other one; computed from the printed numbers, not printed itself."""


def _matrix(networks: Sequence[str], text: str) -> PaperTable:
    """Of a line for each method: the rates from each network to the others, network by network."""
    columns = [f"{one} → {other}" for one in networks for other in networks if other != one]
    rows: dict[str, Sequence[float]] = {}
    for line in text.strip().splitlines():
        method, *numbers = line.split()
        rates = [float(number) for number in numbers]
        rows[method] = (sum(rates) / len(rates), *rates)
    return PaperTable.of_percent((MEAN, *columns), rows)


_SETS = ("WebFace", "IMDB-Face", "VGGFace2", "MS1M")

TABLE_1 = _matrix(
    _SETS,
    """
    ftgsm 1.85 1.18 1.37   2.84 1.87 2.42   13.16 12.80 10.74   5.80 6.87 4.94
    itgsm 2.00 1.25 1.17   4.03 2.34 2.27   31.92 28.00 16.01   15.20 18.34 11.65
    ffm 9.44 7.47 6.11   15.76 9.99 11.50   23.60 19.11 15.18   14.05 14.71 10.54
    fim 11.10 7.29 4.95   30.90 15.67 12.71   65.95 53.90 32.24   36.43 37.57 25.19
    """,
)

TABLE_2 = _matrix(
    _SETS,
    """
    fim 11.10 7.29 4.95   30.90 15.67 12.71   65.95 53.90 32.24   36.43 37.57 25.19
    dfanet-fim 46.81 39.63 25.82   81.39 67.31 58.70   91.91 88.01 75.91   64.38 67.06 54.56
    m-fim 26.81 22.14 14.52   49.86 36.57 31.24   66.57 55.76 42.81   43.43 43.52 36.43
    dfanet-m-fim 80.73 80.16 58.85   95.18 92.14 85.31   96.08 93.23 87.30   84.66 86.40 82.78
    di-m-fim 73.92 74.05 50.22   88.82 84.01 71.53   91.86 88.31 78.31   80.15 82.63 80.72
    dfanet-di-m-fim 85.57 84.52 64.00   96.10 92.90 84.86   96.76 93.48 86.29   92.19 92.90 90.05
    """,
)

TABLE_3 = _matrix(
    ("Softmax", "Triplet Loss", "CosFace", "ArcFace"),
    """
    fim 9.92 20.69 24.36   27.17 57.82 61.32   11.78 14.13 31.56   6.43 7.93 16.89
    dfanet-fim 42.15 63.19 67.90   82.29 94.23 94.84   53.90 40.92 80.08   46.71 34.53 72.53
    m-fim 29.46 38.95 44.15   36.31 67.73 73.09   21.08 32.89 50.94   15.18 24.13 36.39
    dfanet-m-fim 80.16 89.71 91.01   89.85 97.56 97.81   72.69 70.28 92.55   77.36 73.18 93.32
    di-m-fim 73.39 86.09 87.22   84.94 95.55 96.67   74.36 81.79 93.21   76.09 84.20 93.94
    dfanet-di-m-fim 82.50 91.77 92.55   91.81 97.70 98.34   82.32 88.41 95.72   82.59 88.76 95.59
    """,
)

TABLE_4 = _matrix(
    ("ResNet-50", "SENet-50", "MobileNet", "Incep-ResNet"),
    """
    fim 39.91 13.46 11.62   52.13 18.49 15.32   12.92 12.76 4.19   18.54 17.84 9.32
    dfanet-fim 90.76 67.51 54.20   88.62 49.59 36.62   36.28 36.38 11.74   41.50 40.66 23.57
    m-fim 65.43 29.77 27.68   77.48 37.57 34.46   32.82 33.50 13.52   35.89 36.34 20.18
    dfanet-m-fim 99.17 92.41 86.14   98.24 78.58 67.79   62.14 64.45 27.78   62.15 62.92 41.59
    di-m-fim 98.76 84.16 78.14   99.02 85.56 77.95   85.94 87.30 54.24   83.61 83.59 65.03
    dfanet-di-m-fim 99.68 92.77 87.61   99.53 94.22 88.41   92.07 92.01 64.80   88.98 88.56 73.44
    """,
)

FARS = (1e-3, 1e-4, 1e-5)


def far_name(far: float) -> str:
    """The name of a column of table V."""
    return f"FAR {far:.0e}".replace("e-0", "e-")


_ENSEMBLES = {  # of E-DI-M-FIM, and of DFANet-E-DI-M-FIM
    "WebFace": ((51.90, 67.20, 80.50), (56.70, 69.80, 83.80)),
    "VGGFace2": ((67.19, 76.99, 86.49), (71.29, 80.50, 88.30)),
    "MS1M": ((68.50, 76.29, 83.59), (73.70, 81.69, 88.40)),
}
_PAIR = ("di-m-fim", "dfanet-di-m-fim")
TABLE_5 = PaperTable.of_percent(
    [far_name(far) for far in FARS[::-1]],
    {
        **{
            f"{method}, {MEAN}": [sum(both[k][far] for both in _ENSEMBLES.values()) / 3 for far in range(3)]
            for k, method in enumerate(_PAIR)
        },
        **{f"{m}, {name} → Face++": both[k] for name, both in _ENSEMBLES.items() for k, m in enumerate(_PAIR)},
    },
)

TABLE_6 = PaperTable.of_percent(
    ("LFW", "TALFW"),
    {
        "Center-loss": (98.78, 70.65),
        "SphereFace": (99.27, 62.47),
        "VGGFace2": (99.43, 71.47),
        "ArcFace (MobileNet)": (99.35, 50.77),
        "ArcFace (ResNet-100)": (99.82, 63.45),
        "Amazon": (99.47, 69.28),
        "Microsoft": (98.12, 70.93),
        "Baidu": (97.72, 72.07),
        "Face++": (96.95, 73.90),
        "Fusion of four APIs": (99.65, 72.33),
        "no defence": (99.78, 54.15),
        "JPEG, quality 20": (99.55, 73.93),
        "Gaussian blur, 5x5, sigma 2": (99.57, 77.95),
        "selective dropout": (99.52, 72.77),
        "adversarial training": (99.62, 82.17),
    },
)
