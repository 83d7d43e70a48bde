"""Tables of operations and of the shipped denoiser."""

from bench import tables


def test_a_derivative_has_a_row_for_each_size():
    shared = {"op": "relative_distances (of claims) (derivative)", "size": "batch 8", "times_compile": 0.5}
    rows = [
        {"op": "the machine's copy bandwidth", "size": "256 MiB", "GB_per_s": 40.0},
        shared | {"backend": "eager", "ms": 3.0, "times_eager": 1.0},
        shared | {"backend": "cpu", "ms": 1.5, "times_eager": 2.0},
        {"op": "box_blur (derivative)", "size": "one", "backend": "eager", "ms": 3.0, "times_eager": 1.0},
        {"op": "box_blur (derivative)", "size": "one", "backend": "cpu", "ms": 1.0, "times_eager": 3.0},
        shared | {"op": "relative_distances (of claims)", "backend": "cpu", "ms": 9.0, "times_eager": 9.0},
    ]
    text = tables.KINDS["ops-derivatives"]({"rows": rows})
    assert text.splitlines()[2:] == [
        "| `relative_distances` (of claims) | batch 8 | 1.5 | 3 | 2× | 0.5× |",
        "| `box_blur` | one | 1 | 3 | 3× | – |",
    ]


def test_a_denoiser_has_a_column_for_each_source_of_faces():
    shared = {"images": 200, "noisy_db": 32.13}
    rows = [
        shared | {"faces": name, "sigma": 0.025, "denoised_db": 35.0 + k} for k, name in enumerate(("drawn", "LFW"))
    ]
    text = tables.KINDS["denoiser"]({"rows": rows})
    assert text.splitlines()[::2] == [
        "| σ | noisy | 200 faces, drawn | 200 faces, LFW |",
        "| 0.025 | 32.1 | 35.0 | 36.0 |",
    ]
