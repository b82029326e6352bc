import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import report, targets
from benchmarks.record import ResultFile

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


def result(mode, rows, dtype="float32"):
    return {"mode": mode, "dtype": dtype, "machine": MACHINE, "limits": LIMITS, "rows": rows}


def write(folder, result):
    ResultFile(folder, {key: value for key, value in result.items() if key != "rows"}).put(result["rows"])


def model_row(model, form, ms, mode="inference", **ratios):
    row = {"model": model, "mode": mode, "shape": [4, 256, 256], "form": form, "milliseconds": spread(ms)}
    return row | {"ratios": {name.replace("_", "."): spread(value) for name, value in ratios.items()}}


@pytest.fixture
def folders(tmp_path):
    """Results of kernels, models and memory, and a document whose prose must not change."""
    results, docs = tmp_path / "results", tmp_path / "docs"
    rows = [
        kernel_row("conv_1x1", [4, 64, 64, 64], jax=0.125, torch=1.05),
        kernel_row("conv_1x1", [1, 8, 8, 8], jax=0.5, torch=4.2),
        kernel_row("dysample", [4, 64, 64, 64], torch=0.4),
    ]
    write(results, result("upsampling", rows))
    rows = [
        model_row("unet:resnet34", "densezoo", 50.0, torch=0.5, torch_compile=0.8, openvino=1.2),
        model_row("unet:resnet34", "torch.compile", 62.5),
        model_row("unet:resnet34", "torch.compile, frozen", 60.0),
        model_row("unet:resnet34", "openvino", 41.7),
        model_row("fpn:resnet18", "densezoo", 20.0, torch_compile=0.2),
        model_row("fpn:resnet18", "torch.compile", 100.0),
        {
            "model": "fpn:resnet18",
            "mode": "inference",
            "shape": [4, 256, 256],
            "form": "openvino",
            "left_out": "no such op",
        },
    ]
    write(results, result("models", rows))
    rows = [
        {"model": "unet:resnet34", "mode": mode, "shape": [4, 256, 256], "form": form, "peak_bytes": mib * 2**20}
        for mode, form, mib in (
            ("inference", "densezoo", 80),
            ("inference", "torch", 100),
            ("training", "densezoo", 300),
            ("training", "torch", 200),
            ("training", "torch.compile", 240),
        )
    ]
    write(results, result("memory", rows))
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
    assert "| conv_1x1 | forward+backward | 2 | 0.25 (0.12 to 0.50) | 2.10 (1.05 to 4.20) | 0.50" in text
    assert "| Some CPU, 2 cores | jax 0.10.2, torch 2.13.0+cpu | hugetlb | 20.0 | 150 (float32) | 0.1 |" in text
    assert "Not measured yet: training." in text
    (picture,) = (folders[1] / "images").iterdir()
    assert picture.name == "roofline-upsampling-cpu_some-cpu_2c-float32-jax0.10.2-torch2.13.0.png"
    assert f"](images/{picture.name})" in text and len(np.unique(np.asarray(Image.open(picture)))) > 20
    assert "3 result files, 1 pictures" in capsys.readouterr().out


def test_one_table_has_all_peers_with_the_mean_and_the_worst(folders):
    run(folders)
    text = (folders[1] / "benchmarks.md").read_text()
    head = "| model | images | densezoo, ms | torch.compile, ms | openvino, ms | densezoo / torch.compile |"
    assert f"{head} densezoo / the fastest |" in text
    assert "| unet:resnet34 | 4x256x256 | 50 | 60 | 41.7 | 0.80 | 1.20 |" in text  # the faster of torch.compile's two
    assert "| fpn:resnet18 | 4x256x256 | 20 | 100 | - | 0.20 | 0.20 |" in text
    assert "| geometric mean |  |  |  |  | 0.40 | 0.49 |" in text and "| worst |  |  |  |  | 0.80 | 1.20 |" in text
    assert "- fpn:resnet18 4x256x256, openvino: no such op" in text
    assert "| training | unet:resnet34 | 4x256x256 | 300 | 200 | 240 | 1.50 |" in text


def test_goals_say_what_was_reached_and_where(folders):
    run(folders)
    lines = (folders[1] / "benchmarks.md").read_text().splitlines()

    def line_of(what):
        line = next(line for line in lines if line.startswith(f"| {what} |"))
        return line.removeprefix(f"| {what} | CPU, float32 | ").rpartition(" | ")[0]

    each = "inference, each model over the fastest of torch.compile, onnxruntime, OpenVINO"
    assert line_of(each) == "at most 1.00 | 1.20 (worst of 2; best 0.20) | no"
    assert line_of("the same, geometric mean") == "at most 0.85 | 0.49 (of 2; worst 1.20; best 0.20) | yes"
    mean = "inference over torch.compile, geometric mean"
    assert line_of(mean) == "at most 0.65 | 0.40 (of 2; worst 0.80; best 0.20) | yes"
    assert line_of("peak memory of training, each model over the least of torch's") == "at most 1.00 | 1.50 | no"
    # Only at 4x64x64x64.
    end = "4x64x64x64, forward and backward, over the better of torch eager and compiled"
    assert line_of(f"conv_1x1, {end}") == "at most 1.00 | 1.05 | no"
    assert line_of("compiling the train step of U-Net-ResNet34") == "at most 6.0 s | not measured | -"
    missed = lines[lines.index("<!-- missed:begin -->") : lines.index("<!-- missed:end -->")]
    assert missed[3:] == [
        f"| Speed of inference | {each} | 1.20 | at most 1.00 |",
        "| Peak memory | peak memory of training, each model over the least of torch's | 1.50 | at most 1.00 |",
        f"| Single kernels | conv_1x1, {end} | 1.05 | at most 1.00 |",
    ]


def test_goals_of_training_compilation_and_gpus():
    row = model_row("unet:resnet34", "densezoo", 1.0, "training", torch=1.3, torch_compile=1.1)
    row |= {"trace_seconds": 1.5, "compile_seconds": 3.0}
    found = {target.what: targets.reached(target, result("training", [row])) for target in targets.TARGETS}
    assert {what: values for what, values in found.items() if values} == {
        "train step, each model over the better of torch eager and compiled": [1.3],
        "the same for training, geometric mean": [1.3],
        "compiling the train step of U-Net-ResNet34": [4.5],
    }
    hrnet = {"model": "hrnet", "encoder": "hrnet_w18", "remat": False, "train_step": [10.0, 15.0]}
    found = [
        values for target in targets.TARGETS if (values := targets.reached(target, result("compilation", [hrnet])))
    ]
    assert found == [[25.0]]
    rows = [
        model_row(f"unet:resnet{n}", "densezoo", 1.0, torch_compile=ratio) | {"shape": [16, side, side]}
        for n, side, ratio in ((34, 512, 0.8), (50, 512, 0.5), (34, 256, 2.0))
    ]
    gpu = result("models", rows, "bfloat16") | {"machine": MACHINE | {"platform": "gpu"}}
    found = [values for target in targets.TARGETS if (values := targets.reached(target, gpu))]
    assert found == [[1.25], [2.0]]
    assert not any(targets.reached(target, gpu | {"dtype": "float32"}) for target in targets.TARGETS)


def test_goals_on_a_gpu_come_from_the_parts_of_a_session(folders):
    def part(name, *rows, quick=False):
        rows = [{"dtype": "bfloat16", "shape": [16, 512, 512, 3], "ratios": {}} | row for row in rows]
        content = {"schema": 2, "quick": quick, "status": "done", "seconds": 1.0, "notes": [], "rows": rows}
        (folders[0] / "gpu").mkdir(exist_ok=True)
        (folders[0] / "gpu" / f"{name}.json").write_text(json.dumps(content))

    def times(form, ms):
        return {"model": "unet", "form": form, "milliseconds": spread(ms)}

    part("limits", {"what": "copy", "form": "jax", "bytes": 8e9, "milliseconds": spread(10.0)})  # 8 ms at its fastest
    kernel = {"kernel": "nearest_x2", "mode": "forward", "form": "auto", "bytes": 1e9}
    part("kernels", kernel | {"milliseconds": spread(2.0)}, kernel | {"dtype": "float32", "milliseconds": spread(9.0)})
    part("inference", times("reference", 9.0), times("auto", 5.0), times("dz.compile", 4.0))
    part("torch-inference", times("torch", 8.0))
    part("training", times("auto", 30.0))
    part("torch-training", times("torch, autocast", 60.0), times("torch compiled, reduce-overhead", 15.0))
    run(folders)
    text = (folders[1] / "benchmarks.md").read_text()
    goal, head = "| GPU, bfloat16 | at least 1.20 |", "U-Net-ResNet34 512x512"
    assert "| GPU, bfloat16 | at least 80% | 50% | no | `gpu/kernels.json` |" in text
    assert f"| {head} inference: times faster than torch eager {goal} 2.00 | yes | `gpu/inference.json` |" in text
    assert f"| {head} inference: times faster than torch.compile {goal} not measured | - | - |" in text
    train = f"| {head} train step: times faster than the better of torch eager and compiled"
    assert f"{train} {goal} 0.50 | no | `gpu/training.json` |" in text
    assert f"| On a GPU {train} | 0.50 | at least 1.20 |" in text
    part("training", times("auto", 30.0), quick=True)
    run(folders)
    assert f"{train} {goal} not measured | - | - |" in (folders[1] / "benchmarks.md").read_text()


def test_models_that_were_measured_on_a_busy_machine_are_marked(folders):
    row = {"mode": "training", "shape": [4, 256, 256], "form": "densezoo", "ratios": {"torch": spread(1.0)}}
    row |= {"trace_seconds": 1, "compile_seconds": 1, "cached_trace_seconds": 1, "cached_compile_seconds": 1}
    rows = [
        row | {"model": "unet:calm", "milliseconds": spread(50.0), "busy_cores": 0.3},
        row | {"model": "unet:busy", "milliseconds": spread(50.0), "busy_cores": 0.4},
        row | {"model": "unet:uneven", "milliseconds": spread(50.0) | {"q3": 61.0}, "busy_cores": 0.0},
    ]
    write(folders[0], result("training", rows))
    run(folders)
    text = (folders[1] / "benchmarks.md").read_text()
    assert r"| unet:busy \* | 4x256x256 | 50" in text and r"| unet:uneven \* | 4x256x256 | 50" in text
    assert "| unet:calm | 4x256x256 | 50" in text and "| 0.1 | 2 of 3 |" in text


def test_the_document_has_a_heading_for_every_goal_that_was_missed():
    lines = DOCUMENT.read_text().splitlines()
    begin, end = (lines.index(f"<!-- missed:{which} -->") for which in ("begin", "end"))
    topics = {line.split(" | ")[0].removeprefix("| ") for line in lines[begin + 3 : end]}
    assert topics and {f"### {topic}" for topic in topics} <= set(lines)


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
    [("x.json", "[1]", "is not a result of these benchmarks"), ("x.json", json.dumps({"schema": 9}), "schema 9")],
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
