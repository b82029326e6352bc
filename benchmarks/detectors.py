"""Times detectors beside torchvision's: from an image to its detections, and the train step.

Usage: python -m benchmarks.detectors --against torch torch.compile --peer-python /path/of/a/python/with/torchvision

"densezoo" is `dz.compile` with `method="detect"`, and the step of `dz.train` with `tasks.Detection`. Both sides have
the same weights, with which they find 50 to 90 objects in the image. The detections are compared before anything is
timed. For the train step the losses are compared, with every anchor and proposal in them, because the random samples of
the two sides differ. torchvision's compiled operators are the peer; where they do not load, `--peer-setup` names a
module that provides them, and the results name it.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import densezoo as dz
from benchmarks.machine import console
from benchmarks.models import run, timed_rows
from benchmarks.networks import NetworkOptions, Shape
from benchmarks.options import Mismatch, PeerForm, Refused, run_command
from benchmarks.protocol import PeerError, Worker
from benchmarks.record import OWN, shape_text
from benchmarks.seeded import PEAK, STEPS, WEIGHT_DECAY, random_images
from benchmarks.timing import Compiled, compile_apart
from benchmarks.training import densezoo_call
from densezoo.compiling import jitted_once

PEERS = ("torch", "torch.compile, frozen")
"""With the weights as constants, torch.compile folds batch norms."""
OBJECTS = 8
"""Objects in each image of the train step."""


@dataclasses.dataclass(frozen=True)
class Arguments(NetworkOptions):
    """Options of the benchmark of detectors."""

    models: tuple[str, ...] = ("retinanet:resnet50", "mask_rcnn:resnet50")
    """model:encoder whose inference is timed."""
    trained: tuple[str, ...] = ("faster_rcnn:resnet50",)
    """model:encoder whose train step is timed; of models without masks, because the objects have none."""
    num_classes: int = 91
    """Number of classes."""


def compare_detections(
    pair: tuple[str, str],
    shape: Shape,
    arguments: Arguments,
    platform: str,
    worker: Worker | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Checks, then times inference in all forms; a row for each, also for those that are left out."""
    label, head = named(pair, shape, "inference", arguments)
    images = random_images(shape, arguments.seed)
    say(f"{label}: weights")
    variables, missing = variables_of(worker, pair, images, arguments)
    say(f"{label}: {OWN}")
    infer = dz.compile(make_model(pair, arguments), variables, method="detect")
    x = jax.device_put(images)
    compiled = compile_apart(infer, x)
    calls: dict[str, Any] = {OWN: functools.partial(compiled.call, x)}
    found = arrays_of(calls[OWN]())
    facts: dict[str, dict[str, Any]] = {OWN: seconds_of(compiled) | {"detections": len(found[1])}}
    left_out = []
    for form in arguments.forms(PEERS):
        say(f"{label}: {form}")
        try:
            if worker is None or missing:
                raise PeerError(missing)
            answer = worker.ask("detect", form=form, images=worker.send("images", images))
            truth = [np.load(path) for path in worker.ask("output", form=form)["outputs"]]
        except PeerError as error:
            console.print(f"{label}: {form} is left out: {error}")
            left_out.append(head | {"form": form, "left_out": str(error)[:200]})
            continue
        compile_seconds = answer.pop("seconds") if form != "torch" else None
        facts[form] = answer | {"compile_seconds": compile_seconds, "setup": arguments.peer_setup}
        facts[OWN]["error"] = check_detections(f"{label}, {form}", found, truth)
        calls[form] = PeerForm(worker, form)
    say(f"{label}: timing")
    return timed_rows(head, calls, facts, arguments) + left_out


def compare_steps(
    pair: tuple[str, str],
    shape: Shape,
    arguments: Arguments,
    platform: str,
    worker: Worker | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Checks, then times the train step of both sides; a row for each, also for one that is left out."""
    label, head = named(pair, shape, "training", arguments)
    images = random_images(shape, arguments.seed)
    say(f"{label}: weights")
    variables, missing = variables_of(worker, pair, images, arguments)
    boxes, labels = objects(shape, arguments)
    # The labels of a batch start at 0, and class 0 of the model is the background.
    batch = {"image": jnp.asarray(images), "boxes": jnp.asarray(boxes), "labels": jnp.asarray(labels) - 1}
    model = make_model(pair, arguments)
    task = dz.tasks.Detection(arguments.num_classes, first_label=1)
    say(f"{label}: {OWN}")
    optimizer = dz.train.make_optimizer(PEAK, STEPS, weight_decay=WEIGHT_DECAY)
    state = dz.train.create_state(model, optimizer, jax.random.key(0), batch["image"], variables=variables)
    compiled = compile_apart(dz.train.make_train_step(task.loss), state, batch)
    facts: dict[str, dict[str, Any]] = {OWN: seconds_of(compiled)}
    calls: dict[str, Any] = {}
    left_out = []
    for form in arguments.forms(("torch",)):
        say(f"{label}: {form}")
        try:
            if worker is None or missing:
                raise PeerError(missing)
            sent = {
                name: worker.send(name, x) for name, x in (("images", images), ("boxes", boxes), ("labels", labels))
            }
            truth = worker.ask("detector_losses", **sent)["losses"]
            answer = worker.ask("detector_step", form=form, **sent)
        except PeerError as error:
            console.print(f"{label}: {form} is left out: {error}")
            left_out.append(head | {"form": form, "left_out": str(error)[:200]})
            continue
        facts[form] = answer | {"setup": arguments.peer_setup}
        facts[OWN]["losses"] = check_losses(f"{label}, {form}", losses_of(model, variables, task, batch), truth)
        calls[form] = PeerForm(worker, form)
    calls = {OWN: densezoo_call(compiled, state, batch)} | calls
    say(f"{label}: timing")
    return timed_rows(head, calls, facts, arguments) + left_out


def named(pair: tuple[str, str], shape: Shape, mode: str, arguments: Arguments) -> tuple[str, dict[str, Any]]:
    """What messages call a measurement, and what its rows have in common."""
    name = ":".join(pair)
    head = {"model": name, "mode": mode, "shape": list(shape), "dtype": arguments.dtype}
    return f"{name} {shape_text(shape)}", head


def make_model(pair: tuple[str, str], arguments: Arguments) -> Any:
    """A detector of the zoo."""
    return dz.create_model(*pair, arguments.num_classes)


def variables_of(
    worker: Worker | None, pair: tuple[str, str], images: np.ndarray, arguments: Arguments
) -> tuple[Any, str]:
    """The model's variables, of torchvision's if there is a worker that can make it, and why it cannot."""
    model = make_model(pair, arguments)
    missing = "" if pair[1] == "resnet50" else f"its encoder is not {pair[1]}"
    if worker is not None and not missing:
        asked = {"model": pair[0], "classes": arguments.num_classes, "seed": arguments.seed}
        try:
            answer = worker.ask("detector", **asked, images=worker.send("images", images))
            with np.load(answer["weights"]) as file:
                return dz.weights.from_torch(model, {key: file[key] for key in file.files}), ""
        except PeerError as error:
            missing = str(error)
    return jitted_once(model.init)(jax.random.key(arguments.seed), jnp.asarray(images[:1])), missing


def objects(shape: Shape, arguments: Arguments) -> tuple[np.ndarray, np.ndarray]:
    """(b, n, 4) boxes inside the images, and (b, n) classes, of which 0 is the background."""
    generator = np.random.default_rng(arguments.seed)
    batch, height, width = shape
    whole = np.array([width, height], np.float32)
    first = generator.uniform(0, 0.6, (batch, OBJECTS, 2)) * whole
    last = np.minimum(first + generator.uniform(0.1, 0.6, first.shape) * whole, whole)
    labels = generator.integers(1, arguments.num_classes, (batch, OBJECTS), np.int32)
    return np.concatenate([first, last], -1).astype(np.float32), labels


def arrays_of(found: Any) -> list[np.ndarray]:
    """The real detections of the first image: boxes, scores, labels and, if there are some, masks."""
    valid = np.asarray(found.valid[0])
    parts = (found.boxes, found.scores, found.labels, *([] if found.masks is None else [found.masks]))
    return [np.asarray(x[0])[valid] for x in parts]


def check_detections(label: str, found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """The largest difference between the scores of two sets of detections that agree.

    Raises:
        Mismatch: a detection has no partner, or there are more on one side.
    """
    (boxes, scores, labels, *masks), (true_boxes, true_scores, true_labels, *true_masks) = found, truth
    if len(scores) != len(true_scores):
        raise Mismatch(f"{label}: {len(scores)} objects are found, {len(true_scores)} by torchvision: nothing is timed")
    far = np.abs(boxes[:, None] - true_boxes[None]).max(-1) + 1e3 * (labels[:, None] != true_labels[None])
    far += 100 * np.abs(scores[:, None] - true_scores[None])
    partner = far.argmin(1)
    if len(set(partner)) < len(partner) or far.min(1).max(initial=0) > 0.5:
        raise Mismatch(f"{label}: the objects are not those that torchvision finds: nothing is timed")
    for mine, other in zip(masks, true_masks, strict=True):
        error = np.abs(mine - other.reshape(mine.shape)[partner]).max(initial=0)
        if not error <= 1e-2:
            raise Mismatch(f"{label}: masks differ by {error:.2g} from torchvision's: nothing is timed")
    return float(np.abs(scores - true_scores[partner]).max(initial=0))


def losses_of(model: Any, variables: Any, task: Any, batch: Any) -> float:
    """The sum of the losses in training mode, with every anchor and proposal in them."""
    if isinstance(model, dz.RCNN):  # a single-stage detector's losses have no samples
        most = model.proposals[True] + batch["boxes"].shape[1]
        task = dataclasses.replace(task, anchor_samples=10**6, region_samples=most, region_positives=1.0)

    def loss(batch: Any) -> jax.Array:
        def apply(*inputs: Any, **options: Any) -> Any:
            return model.apply(variables, *inputs, train=True, mutable=["batch_stats"], **options)[0]

        return task.loss(apply, batch, jax.random.key(0))[0]

    return float(jitted_once(loss)(batch))


def check_losses(label: str, found: float, truth: float) -> dict[str, float]:
    """Both sums of losses if they agree. Rounding decides which of two similar proposals is kept.

    Raises:
        Mismatch: they do not.
    """
    if not abs(found - truth) <= 1e-2 * abs(truth):
        raise Mismatch(f"{label}: the loss is {found:.6g} and torchvision's {truth:.6g}: nothing is timed")
    return {"densezoo": found, "torchvision": truth}


def seconds_of(compiled: Compiled) -> dict[str, Any]:
    """What compiling told."""
    return {"trace_seconds": compiled.trace_seconds, "compile_seconds": compiled.compile_seconds} | compiled.costs()


def check_trained(arguments: Arguments) -> None:
    """Refuses models that need masks for training."""
    for pair in arguments.pairs():
        if getattr(make_model(pair, arguments), "mask_head", None) is not None:
            raise Refused(f"--trained {':'.join(pair)}: it needs masks, which the benchmark's objects do not have")


def main(arguments: Arguments, platform: str) -> int:
    """Runs the benchmark."""
    failed = 0
    for mode, models, compare, forms in (
        ("inference", arguments.models, compare_detections, PEERS),
        ("training", arguments.trained, compare_steps, ("torch",)),
    ):
        sides = {"inference": ((1, 320, 480), (1, 64, 96)), "training": ((2, 256, 320), (2, 64, 64))}[mode]
        mine = dataclasses.replace(arguments, models=models)
        if mode == "training":
            check_trained(mine)
        shapes = mine.shapes_of(("", ""), ()) if mine.shapes else [sides[mine.quick]]
        plan = [(pair, shape) for pair in mine.pairs() for shape in shapes]
        failed |= run("detectors", mine, platform, compare, plan, mode, [OWN, *mine.forms(forms)]) if plan else 0
    return failed


if __name__ == "__main__":
    sys.exit(run_command(main, Arguments))
