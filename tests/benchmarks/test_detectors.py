import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from benchmarks import detectors, machine, models, options


@pytest.mark.parametrize("mode", ["inference", pytest.param("training", marks=pytest.mark.parity)])
def test_detectors_end_to_end(mode, tmp_path, capsys, monkeypatch):
    def tiny(pair, arguments):
        return dz.create_model(pair[0], dz.PlainEncoder((4, 4, 4)), arguments.num_classes, features=4, depth=1)

    monkeypatch.setattr(machine, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(models, "measure_limits", lambda *, quick: {})
    monkeypatch.setattr(detectors, "make_model", tiny)
    monkeypatch.setattr(detectors.Arguments, "pairs", lambda self: [tuple(text.split(":")) for text in self.models])
    chosen, other = ("--models", "--trained") if mode == "inference" else ("--trained", "--models")
    argv = ("--quick", "--rounds", "2", "--num-classes", "3", "--shapes", "1x32x32", "--out", str(tmp_path))
    argv += (chosen, "retinanet:tiny", other)
    assert options.run_command(detectors.main, detectors.Arguments, argv) == 0
    (path,) = tmp_path.glob("detectors-quick-*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["model"], row["mode"], row["shape"], row["form"]) == ("retinanet:tiny", mode, [1, 32, 32], "densezoo")
    assert len(row["samples_milliseconds"]) == 2 and row["compile_seconds"] > 0
    assert "| retinanet:tiny | 1x32x32 | densezoo |" in capsys.readouterr().out


@pytest.mark.parity
def test_losses_of_a_single_stage_detector():
    model = dz.create_model("retinanet", dz.PlainEncoder((4, 4, 4)), 3, features=4, depth=1)
    batch = {"image": jnp.ones((1, 32, 32, 3)), "boxes": jnp.array([[[4.0, 4, 20, 28]]]), "labels": jnp.array([[1]])}
    variables = jax.jit(model.init)(jax.random.key(0), batch["image"])
    assert detectors.losses_of(model, variables, dz.tasks.Detection(3, first_label=1), batch) > 0


def test_train_steps_that_need_masks_are_refused(capsys):
    argv = ("--quick", "--models", "--trained", "mask_rcnn:resnet18")
    assert options.run_command(detectors.main, detectors.Arguments, argv) != 0
    assert "--trained mask_rcnn:resnet18: it needs masks" in "".join(capsys.readouterr())


def test_detections_that_differ_are_not_timed():
    boxes = np.array([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 9.0], [5.0, 5.0, 7.0, 8.0]])
    found = [boxes, np.array([0.9, 0.5, 0.3]), np.array([1, 2, 2])]
    turned = [x[::-1] for x in found]
    assert detectors.check_detections("", found, turned) == 0
    masks = np.arange(3.0)[:, None, None] * np.ones((3, 2, 2))
    assert detectors.check_detections("", [*found, masks], [*turned, masks[::-1, None]]) == 0
    for other, message in (
        ([x[1:] for x in found], "3 objects are found, 2 by torchvision"),
        ([boxes, found[1], np.array([1, 2, 1])], "not those"),
        ([boxes + 1, *found[1:]], "not those"),
        ([x[[0, 0, 2]] for x in found], "not those"),
    ):
        with pytest.raises(options.Mismatch, match=message):
            detectors.check_detections("", found, other)
    with pytest.raises(options.Mismatch, match="masks differ by 2"):
        detectors.check_detections("", [*found, masks], [*found, masks[::-1]])
    with pytest.raises(options.Mismatch, match="loss is 2 and torchvision's 3"):
        detectors.check_losses("", 2.0, 3.0)
