import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import report, targets
from benchmarks.record import write

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
MACHINE = {
    "platform": "cpu",
    "device_kind": "Some CPU",
    "cores": 2,
    "malloc": "hugetlb",
    "busy_cores": 0.1,
    "versions": {"jax": "0.10.2", "torch": "2.13.0+cpu"},
}
LIMITS = {"copy_bandwidth": 2e10, "copy_bandwidth_by_mib": {"4": 2e10}, "matmul_peak": {"float32": 1.5e11}}


def spread(median):
    return {"median": median, "q1": 0.9 * median, "q3": 1.1 * median, "min": 0.8 * median}


def kernel_row(kernel, shape, **ratios):
    row = {"kernel": kernel, "mode": "forward+backward", "shape": shape, "form": "auto", "bytes": 1000, "flops": 500}
    row |= {"milliseconds": spread(2.0), "ratios": {name: spread(value) for name, value in ratios.items()}}
    return row | {"roofline_share": 0.5, "bandwidth_share": 0.5, "flops_per_second": 1e9, "peak_bytes": 4000}


def result(mode, rows, fits=()):
    head = {"mode": mode, "dtype": "float32", "machine": MACHINE, "limits": LIMITS}
    return head | {"fits": list(fits), "rows": rows}


@pytest.fixture
def folders(tmp_path):
    """Results of kernels and of a sweep, and a document whose prose is to stay."""
    results, docs = tmp_path / "results", tmp_path / "docs"
    rows = [
        kernel_row("nearest_x2", [4, 64, 64, 64], jax=0.125, torch=1.05),
        kernel_row("nearest_x2", [1, 8, 8, 8], jax=0.5, torch=4.2),
        kernel_row("bilinear_x2", [4, 64, 64, 64], jax=0.25, torch=1.7),
        kernel_row("max_unpool", [4, 64, 64, 64], torch=0.4),
    ]
    write(results, result("upsampling", rows))
    swept = [
        kernel_row("carafe", [1, n, n, 8]) | {"series": "pixels", "pixels": 4 * n * n, "size": 2 * n}
        for n in (64, 128, 256)
    ]
    swept.append({"kernel": "carafe", "form": "auto", "series": "pixels", "skipped": "needs 99 GiB"})
    fit = {"kernel": "carafe", "mode": "forward+backward", "form": "auto", "series": "pixels", "sizes": 3}
    write(results, result("upsampling-sweep", swept, [fit | {"time_exponent": 1.02}]))
    (results / "accuracy.jsonl").write_text("{}\n")
    docs.mkdir()
    (docs / "benchmarks.md").write_text(DOCUMENT.read_text() + "\nThe last word.\n")
    return results, docs


def run(folders, **options):
    return report.main(report.Arguments(results=folders[0], docs=folders[1], **options))


def test_tables_and_pictures_come_from_the_files(folders, capsys):
    assert run(folders) == 0
    text = (folders[1] / "benchmarks.md").read_text()
    assert text.endswith("\nThe last word.\n") and "## How it is measured" in text
    # ratios 0.125 and 0.5: geometric mean 0.25
    assert "| nearest_x2 | forward+backward | 2 | 0.25 (0.12 to 0.50) | 2.10 (1.05 to 4.20) | 0.50" in text
    assert "| carafe, forward+backward, auto | pixels | 3 | 1.02 | - |" in text
    assert "were allowed" not in text and "more memory than was allowed: 1 sizes" in text
    assert "| Some CPU, 2 cores | jax 0.10.2, torch 2.13.0+cpu | hugetlb | 20.0 | 150 (float32) | 0.1 |" in text
    assert "Not measured yet: training." in text
    pictures = sorted((folders[1] / "images").iterdir())
    stem = "cpu_some-cpu_2c-float32-jax0.10.2-torch2.13.0.png"
    assert [p.name for p in pictures] == [f"roofline-upsampling-{stem}", f"size-upsampling-sweep-{stem}"]
    for picture in pictures:
        assert f"](images/{picture.name})" in text
        assert len(np.unique(np.asarray(Image.open(picture)))) > 20
    assert "2 result files, 2 pictures" in capsys.readouterr().out


def test_goals_say_what_was_reached_and_where(folders):
    run(folders)
    lines = (folders[1] / "benchmarks.md").read_text().splitlines()
    file = "`upsampling-cpu_some-cpu_2c-float32-jax0.10.2-torch2.13.0.json`"

    def line_of(what):
        return next(line.removeprefix(f"| {what} | ") for line in lines if line.startswith(f"| {what} |"))

    # Only at 4x64x64x64, and the slower of the two counts.
    stock = "nearest and bilinear x2, forward and backward: faster than jax.image.resize"
    assert line_of(stock) == f"CPU | at least 5.00 | 4.00 (worst of 2; best 8.00) | no | {file} |"
    assert line_of("nearest x2, forward and backward, over torch") == f"CPU | at most 1.10 | 1.05 | yes | {file} |"
    assert line_of("bilinear x2, forward and backward, over torch") == f"CPU | at most 1.50 | 1.70 | no | {file} |"
    unpool = line_of("max-unpool, forward and backward: faster than torch")
    assert unpool == f"CPU | at least 2.00 | 2.50 | yes | {file} |"
    assert line_of("compiling a train step of U-Net-ResNet34") == "CPU | at most 6.0 s | not measured | - | - |"


def test_goals_of_models_training_and_gpus():
    row = {"model": "unet:resnet34", "shape": [4, 256, 256], "form": "auto", "ratios": {"torch": {"median": 1.3}}}
    row |= {"trace_seconds": 1.5, "compile_seconds": 3.0}
    training = {"mode": "training", "dtype": "float32", "machine": MACHINE, "rows": [row]}
    found = {target.what: targets.reached(target, training) for target in targets.TARGETS}
    assert {what: values for what, values in found.items() if values} == {
        "U-Net-ResNet34 4x256x256 train step over torch": [1.3],
        "compiling a train step of U-Net-ResNet34": [4.5],
    }
    rows = [
        {"model": f"unet:resnet{n}", "shape": [8, side, side], "form": "auto, folded"}
        | {"ratios": {"torch compiled": {"median": ratio}}}
        for n, side, ratio in ((34, 512, 0.8), (50, 512, 0.5), (34, 256, 2.0))
    ]
    gpu = {"mode": "models", "dtype": "bfloat16", "machine": MACHINE | {"platform": "gpu"}, "rows": rows}
    found = [values for target in targets.TARGETS if (values := targets.reached(target, gpu))]
    assert found == [[1.25, 2.0]]
    assert not any(targets.reached(target, gpu | {"dtype": "float32"}) for target in targets.TARGETS)


def test_check_writes_nothing(folders, capsys):
    file = folders[1] / "benchmarks.md"
    before = file.read_text()
    assert run(folders, check=True) == 1 and file.read_text() == before
    assert "is not what the results give" in capsys.readouterr().err
    assert run(folders) == 0 and run(folders, check=True) == 0


def test_running_it_twice_changes_nothing(folders):
    run(folders)
    first = {path: path.read_bytes() for path in folders[1].rglob("*.*") if path.is_file()}
    run(folders)
    assert {path: path.read_bytes() for path in folders[1].rglob("*.*") if path.is_file()} == first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("x.json", "[1]", "is no result of these benchmarks"), ("x.json", json.dumps({"schema": 9}), "schema 9")],
)
def test_other_files_in_the_folder_are_named(folders, capsys, name, content, message):
    (folders[0] / name).write_text(content)
    assert run(folders) == 1
    assert message in capsys.readouterr().err


def test_a_document_without_markers_is_left_alone(folders, capsys):
    file = folders[1] / "benchmarks.md"
    file.write_text("# Mine\n")
    assert run(folders) == 1 and file.read_text() == "# Mine\n"
    assert "<!-- goals:begin -->" in capsys.readouterr().err
    assert not (folders[1] / "images").exists()


def test_the_document_says_what_was_measured():
    folder = DOCUMENT.parents[1] / "benchmarks" / "results"
    assert report.main(report.Arguments(results=folder, docs=DOCUMENT.parent, check=True)) == 0
