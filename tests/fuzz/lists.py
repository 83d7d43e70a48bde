"""Lists that name images: pairs, landmarks, templates, images; and the texts of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastadv.attacks.spec import parse_attack
from fastadv.core import numbers
from fastadv.core.errors import ArgumentError, ArgumentTypeError
from fastadv.data.alignment import AlignmentError
from fastadv.data.faces import FaceSource, SourceError
from fastadv.data.image_list import ImageList
from fastadv.data.kept_landmarks import ABOUT, FoundFace, KeptLandmarks
from fastadv.data.landmark_lists import read_landmarks
from fastadv.data.lfw import read_lfw_pairs
from fastadv.data.pair_lists import read_pair_list, read_pairs_of
from fastadv.data.pairs import PairError, check_pairs, read_pairs_csv
from fastadv.data.run_files import RunFolderError
from fastadv.data.shards import expand_shards
from fastadv.data.template_pairs import IJB, template_pairs_of
from fastadv.data.templates import open_template
from fastadv.models.description import DescriptionError
from fastadv.models.tensor_content import CheckpointError
from fastadv.runs.sharding import Shard
from fastadv.studies.defences.plan import parse_defence, parse_threat
from fastadv.studies.detection.controls import parse_control
from fastadv.studies.detection.plan import read_names
from fastadv.studies.train import parse_adversarial
from fastadv.studies.transfer.networks import parse_network
from fastadv.studies.transfer.plan import parse_method, parse_sets, parse_untargeted

from .images import PNG
from .judge import Target

_SOURCE = [f"{who}/{who}_000{k}" for who in ("Ada_L", "Bob B") for k in (1, 2, 3)]
NEXT = b"%%"  # between the files of one input


def written(folder: Path, place: str, data: bytes) -> Path:
    """A file of an input."""
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def source(names: list[str] = _SOURCE) -> FaceSource:
    """Faces by name; none of them is read."""
    return FaceSource({name: Path(f"{name}.png") for name in names}, size=112, landmarks=None)


def _pairs(data: bytes, folder: Path) -> None:
    path = written(folder, "pairs.txt", data)
    check_pairs(read_pair_list(path))
    read_pairs_of(source(), path)


def _lfw(data: bytes, folder: Path) -> None:
    read_lfw_pairs(written(folder, "lfw.txt", data))


def _csv(data: bytes, folder: Path) -> None:
    read_pairs_csv(written(folder, "pairs.csv", data))


def _cfp(data: bytes, folder: Path) -> None:
    places = ("P/Pair_list_F.txt", "P/Pair_list_P.txt", "P/Split/FP/01/same.txt", "P/Split/FP/01/diff.txt")
    parts = [*data.split(NEXT), b"", b"", b"", b""]
    for place, part in zip(places, parts, strict=False):
        written(folder, place, part)
    read_pair_list(folder / "P/Split/FP")


def _videos(data: bytes, folder: Path) -> None:
    frames = [f"{who}/{video}/{frame}" for who in "ab" for video in "01" for frame in "12"]
    template_pairs_of(source(frames), written(folder, "splits.txt", data))


def _ijb(data: bytes, folder: Path) -> None:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        if not (folder / "ijb/loose_crop" / name).is_file():
            written(folder, f"ijb/loose_crop/{name}", PNG)
    places = ("x_face_tid_mid.txt", "x_template_pair_label.txt", "x_name_5pts_score.txt")
    for place, part in zip(places, [*data.split(NEXT), b"", b"", b""], strict=False):
        written(folder, f"ijb/meta/{place}", part)
    IJB(folder / "ijb", size=112).template_pairs()


def _landmarks(data: bytes, folder: Path) -> None:
    found = read_landmarks(written(folder, "landmarks.txt", data))
    FaceSource({name: Path("x.png") for name in found}, size=112, landmarks=found)


def _kept(data: bytes, folder: Path) -> None:
    kept = KeptLandmarks.open(written(folder, "kept/landmarks.txt", data))
    kept.right({"a/b": "00"}, "how")
    for name, row in kept.rows.items():
        assert isinstance(name, str)
        assert row.points.shape in ((0, 2), (5, 2))
        row.lines().encode()


def _images(data: bytes, folder: Path) -> None:
    if not (folder / "list/a/1.png").is_file():
        for name in ("a/1.png", "b/2.png", "3.png"):
            written(folder, f"list/{name}", PNG)
    ImageList(written(folder, "list/images.lst", data))


def _names(data: bytes, folder: Path) -> None:
    read_names(written(folder, "names.txt", data))


def _template(data: bytes, folder: Path) -> None:
    open_template(written(folder, "template.txt", data)).widened(0.1)


_PARSERS: tuple[Callable[[str], object], ...] = (
    lambda text: numbers.show_eps(numbers.parse_eps(text)),
    lambda text: numbers.parse_number("limit", text),
    numbers.parse_weights,
    lambda text: numbers.parse_settings(text.split(";")),
    lambda text: numbers.parse_counts("at", text),
    lambda text: numbers.parse_rates("far", text),
    numbers.parse_steps,
    numbers.parse_folds,
    lambda text: Shard.parse(text).name,
    lambda text: str(parse_attack(text)),
    lambda text: parse_attack(text).radius,
    lambda text: parse_attack(str(parse_attack(text))),
    parse_defence,
    parse_threat,
    lambda text: str(parse_control(text)),
    parse_adversarial,
    parse_network,
    parse_method,
    parse_untargeted,
    lambda text: parse_sets(text.split(";")),
    expand_shards,
    open_template,
)


def _argument(data: bytes, folder: Path) -> None:
    """The first byte says which parser reads the rest, as a shell would hand it over."""
    parser = _PARSERS[data[0] % len(_PARSERS) if data else 0]
    parser(data[1:].replace(b"\0", b"").decode("utf-8", "surrogateescape"))


_ARGUMENTS = (
    *("8/255", "0.5", "2,1,1", "confidence=0.1;search_steps=9", "13,50-200:50", "1e-3,1e-4", "30", "1-2,5", "3/16"),
    *("bim:30@8/255", "cw-l2,search_steps=3", "dfanet-fim:200@10/255,rate=0.0125", "jpeg:75+median:3", "perfect:4"),
    *("blur:1", "fim:4@8/255", "alias=iresnet50:w.pth", "mi-fgsm:20,momentum=0.9", "gd-uap:200", "a=x+y;b=z"),
    *("faces-{000..012}.tar", "arcface"),
)
_HOSTILE_ARGUMENTS = (
    (9, b"bim,steps=" + b"9" * 5000),
    (9, b"bim:30@1e308"),
    (12, b"one(" * 3000 + b"mean" + b")" * 3000),
    (12, b"noise2clean:."),
    (13, b"perfect:" + b"9" * 5000),
    (14, b"gaussian:1e308"),
    (16, b"a" * 5000),
    (16, b"a/" * 3000 + b".onnx"),
    (20, b"f-{0.." + b"9" * 5000 + b"}.tar"),
    (20, b"a" * 5000),
    (21, b"a" * 5000),
)


def _parsed(text: str, place: int) -> bytes:
    return bytes([place]) + text.encode()


_POINTS = "38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2"
_FOUND = FoundFace(name="a/b", sha256="00", search="how", score=0.9, landmarks=tuple(map(float, _POINTS.split())))
_LOST = FoundFace(name="a/c", sha256="00", search="how", skipped="no face")
_LFW = b"2\t1\nAda_L\t1\t2\nAda_L\t1\tBob B\t2\nBob B\t1\t3\nBob B\t1\tAda_L\t2\n"
_CSV = b"first,second,same,fold\nAda_L/Ada_L_0001,Bob B/Bob B_0002,0,0\nAda_L/Ada_L_0001,Ada_L/Ada_L_0002,true,1\n"
_MARKS = "e\u0301\u0323" * 30_000  # in an order that normalisation sorts
_DIGITS = b"9" * 5000

TARGETS = [
    Target(
        name="pairs",
        seeds=lambda: [
            *(_LFW, _CSV, b"Ada_L/Ada_L_0001.jpg 1\nBob B/Bob B_0002.jpg 1\n".replace(b"Bob B", b"Ada_L")),
            *(
                b"Ada_L/Ada_L_0001.jpg\tBob B/Bob B_0002.jpg\t0\n",
                b"1\nAda_L 1 2\nAda_L 1 Bob 2\n".replace(b"Bob", b"Bob B"),
            ),
        ],
        hostile=lambda: (
            [
                b"a.jpg " + _DIGITS + b"\nb.jpg " + _DIGITS,
                _DIGITS + b" " + _DIGITS + b"\nx",
                b"1\na " + _DIGITS,
                b"1\n" + b"1 " * 60000 + b"\nb",
            ]
        ),
        read=_pairs,
        errors=(PairError, SourceError),
        weight=2,
    ),
    Target(
        name="lfw",
        seeds=lambda: [_LFW, b"1\nAda_L 1 2\nAda_L 1 Bob B 2\n"],
        hostile=lambda: [
            b"1\n" + b"1 " * 60_000 + b"\nb",
            _DIGITS[:4000] + b" " + _DIGITS[:4000],
            b"1\na\t1\t" + _DIGITS + b"\nb",
        ],
        read=_lfw,
        errors=(SourceError,),
        weight=2,
    ),
    Target(
        name="csv",
        seeds=lambda: [_CSV, b'first,second,same\r\n"a ""b""/1",c/2,0\r\n', _CSV.decode().encode("utf-16")],
        hostile=lambda: [
            b'first,second,same\n"' + b"a" * 140_000 + b'",b,1\n',
            b"first,second,same,fold\na,b,1," + _DIGITS,
        ],
        read=_csv,
        errors=(PairError,),
        weight=2,
    ),
    Target(
        name="cfp",
        guided=False,
        seeds=lambda: [b"1 ../Data/Images/001/f/1.jpg\n2 b/2.jpg\n%%1 c/1.jpg\n%%1,1\n%%2,1\n"],
        read=_cfp,
        errors=(PairError,),
    ),
    Target(
        name="videos",
        guided=False,
        seeds=lambda: [b"split number, first, second, is same\n1, a/0, a/1, 1\n2, a/0, b/1, 0\n"],
        hostile=lambda: [b"split number, a\n" + _DIGITS + b", a/0, a/1, 1\n"],
        read=_videos,
        errors=(PairError,),
        tokens=(b"a/0", b"b/1", b"split number"),
        weight=2,
    ),
    Target(
        name="ijb",
        guided=False,
        seeds=lambda: [f"1.jpg 1 7\n2.jpg 1 8\n3.jpg 2 9\n%%1 2 0\n1 1 1\n%%1.jpg {_POINTS} 0.9\n".encode()],
        hostile=lambda: [
            *(b"1.jpg " + _DIGITS + b" 7\n%%1 2 0\n%%", b"1.jpg 9223372036854775808 99999999999999999999\n%%1 1 1\n%%"),
            *(
                b"1.jpg 1 7\n%%1 99999999999999999999 0\n%%",
                b"1.jpg 1 7\n%%\n%%",
                b"a/" * 3000 + b"1.jpg 1 7\n%%1 1 1\n%%",
            ),
        ],
        read=_ijb,
        errors=(SourceError, AlignmentError),
        tokens=(b"1.jpg", b"2.jpg"),
    ),
    Target(
        name="landmarks",
        seeds=lambda: [
            *(f"a/1.png {_POINTS}\nb/2 {_POINTS} 0.9\n".encode(), f"5\na/1 10 10 99 99 {_POINTS}\n".encode()),
            *(b"a b/1.png\t" + _POINTS.replace(" ", "\t").encode(), ("a/1 " + _POINTS).replace(" ", ",").encode()),
            f"# \nname x y x y x y x y x y x\na/1 {_POINTS} 1 2 3 4 0.5\n".encode(),
        ],
        hostile=lambda: [
            *(b"x" * 140_000 + b" 1\n", b'a "' + b"x," * 70_000, f"a/1 {_POINTS.replace('.', 'e300.')}".encode()),
            *(
                f"a/{_MARKS} {_POINTS}".encode(),
                b"a/1" + b" 1e200" * 10,
                b"a/1" + b" 1e-200 2e-200" * 5,
                b"a/1 " + b"1 " * 60_000,
            ),
        ],
        read=_landmarks,
        errors=(AlignmentError, SourceError),
        tokens=(b"1e308", b"-1e308", b"inf", b"1e-310"),
        weight=2,
    ),
    Target(
        name="kept landmarks",
        guided=False,
        seeds=lambda: [f"{ABOUT}\n{_FOUND.lines()}{_LOST.lines()}".encode()],
        hostile=lambda: [
            f"{ABOUT}\n# {text}\n".encode()
            for text in (
                *("[" * 100_000, '{"name": [], "sha256": "", "search": "", "skipped": "x"}', '{"skipped": 1}'),
                '{"name": "\\ud800", "sha256": "", "search": "", "skipped": "x"}',
                '{"name": "a", "sha256": "", "search": "", "skipped": ""}\na' + "\tnan" * 11,
            )
        ],
        read=_kept,
        errors=(RunFolderError,),
        tokens=(b'"name"', b'"skipped": ""', b"\tnan", b"{"),
        weight=2,
    ),
    Target(
        name="image list",
        seeds=lambda: [
            b"# all\na/1.png a\nb/2.png,b\n",
            b"0\ta\ta/1.png\n",
            b"1 b/2.png 7\nx 3.png y\n",
            b"path label\na/1.png 2\n",
        ],
        hostile=lambda: [
            b"a/" * 3000 + b"1.png",
            b"a\0/1.png x",
            b"../../../etc/passwd.png x",
            f"{_MARKS}.png a".encode(),
        ],
        read=_images,
        errors=(SourceError,),
        tokens=(b"a/1.png", b"b/2.png", b"3.png", b"/etc/"),
        weight=2,
    ),
    Target(
        name="names",
        guided=False,
        seeds=lambda: [b"a/1.png\nb\\2\n./c/3\n"],
        hostile=lambda: [_MARKS.encode()],
        read=_names,
        errors=(ArgumentError,),
    ),
    Target(
        name="template",
        guided=False,
        seeds=lambda: [f"# mine\n112 112\n{_POINTS}\n".encode()],
        hostile=lambda: [
            f"{'9' * 5000} 112 {_POINTS}".encode(),
            f"1e3 112 {_POINTS}".encode(),
            b"112 112" + b" 1e308" * 10,
        ],
        read=_template,
        errors=(ArgumentError,),
        tokens=(b"1e308", b"-1e308", b"nan"),
    ),
    Target(
        name="arguments",
        seeds=lambda: [_parsed(text, k) for k in range(len(_PARSERS)) for text in _ARGUMENTS],
        hostile=lambda: [bytes([place]) + text for place, text in _HOSTILE_ARGUMENTS],
        read=_argument,
        errors=(ArgumentError, ArgumentTypeError, SourceError, CheckpointError, DescriptionError),
        tokens=(
            b"@",
            b"8/255",
            b"rate=",
            b"none",
            b"one(",
            b"|",
            b"+",
            b")",
            b"1e308",
            b"inf",
            b"known",
            b":",
            *tuple(f"{name}=1".encode() for name in ("steps", "eps", "margin", "step_size", "gamma", "search_steps")),
        ),
        weight=12,
        examples=200,
    ),
]
