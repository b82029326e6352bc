"""Tables of what can be exported."""

from benchmarks import exports


def timed(form, milliseconds, **ratios):
    ratios = {other: {"median": value} for other, value in ratios.items()}
    return {
        "model": "unet:resnet18",
        "shape": [1, 256, 256],
        "form": form,
        "milliseconds": {"median": milliseconds},
        "ratios": ratios,
    }


def test_times_are_a_line_for_each_network():
    rows = [
        timed("densezoo", 21.94),
        timed("densezoo, onnxruntime", 30.0, onnxruntime=1.234),
        timed("onnxruntime", 25.0),
    ]
    *_, line = exports.times_table([*rows, timed("densezoo", 1.0) | {"model": "without:peer"}]).splitlines()
    assert line == "| `unet:resnet18` | 1x256x256 | 21.9 | 30.0 | 25.0 | 1.23 |"


def test_a_row_says_how_many_boxes_were_compared():
    row = {"model": "fcos", "stablehlo": {"size": False, "batch": True}, "onnx": {"batch": True}, "onnx_error": 1.26e-6}
    *_, line = exports.table([row | {"boxes": 200}]).splitlines()
    assert line == "| `fcos` | any | fixed | any | 1.3e-06 (200 boxes) |"
