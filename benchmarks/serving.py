"""A predictor in a service: pictures of many sizes, a few programs.

Usage: python -m benchmarks.serving --pictures 1000 --checked 25

Predicts pictures of different sizes with `max_programs=8` in several threads, and compares the probabilities of some of
them with those of a predictor that computes each picture at its own size. The last line on standard output is a JSON
object: the number of compiled programs, the largest difference, seconds per picture once everything is compiled, and
the resident memory after a tenth of the pictures and at the end.
"""

import concurrent.futures
import dataclasses
import json
import time

import numpy as np
import tyro

import densezoo as dz
from benchmarks.resident import resident_bytes
from benchmarks.tiling import model_of, variables_of


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the benchmark."""

    network: str = "unet"
    """A network of `list_models(task="segmentation")`, with a small encoder."""
    pictures: int = 1000
    """Number of pictures, each of another size."""
    checked: int = 25
    """Number of pictures to compare; each compiles a program of its own."""
    sides: tuple[int, int] = (32, 600)
    """Smallest and largest side."""
    threads: int = 2
    """Number of threads that predict."""


def main(arguments: Arguments) -> None:
    """Predicts and compares."""
    model = model_of(arguments.network)
    if model is None:
        raise ValueError(f"{arguments.network} does not work with a small encoder")
    variables, task = variables_of(model), dz.tasks.Segmentation(5)
    shared = dz.Predictor(task, model, variables, max_programs=8)
    alone = dz.Predictor(task, model, variables)
    smallest, largest = arguments.sides
    generator = np.random.default_rng(0)
    numbers = generator.choice((largest - smallest) ** 2, arguments.pictures, replace=False)
    sizes = [(smallest + n // (largest - smallest), smallest + n % (largest - smallest)) for n in numbers]

    def picture(index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (*sizes[index], 3), np.uint8)

    def predict(index: int) -> int:
        return shared.probabilities(picture(index)).shape[0]

    shared.warm_up(probabilities=True)
    programs, memory = shared.compiled, []
    with concurrent.futures.ThreadPoolExecutor(arguments.threads) as pool:
        start, tenth = time.perf_counter(), arguments.pictures // 10
        heights = list(pool.map(predict, range(tenth)))
        memory.append(resident_bytes())
        heights += list(pool.map(predict, range(tenth, arguments.pictures)))
        seconds = time.perf_counter() - start
        memory.append(resident_bytes())
    if heights != [height for height, _ in sizes]:
        raise RuntimeError("results are not in order")
    worst = 0.0
    for index in range(min(arguments.checked, arguments.pictures)):
        found, expected = shared.probabilities(picture(index)), alone.probabilities(picture(index))
        worst = max(worst, float(np.abs(found - expected).max()))
    result = {"network": arguments.network, "pictures": len(heights), "programs": shared.compiled}
    result |= {"programs_after_warm_up": programs, "largest_difference": worst}
    result |= {"seconds_per_picture": round(seconds / len(heights), 4)}
    result |= {"resident_gib": [round(each / 2**30, 3) for each in memory]}
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
