"""A worker for the tests, with NumPy and densezoo in place of torch. Run as a program."""

import os
import sys
from pathlib import Path

import numpy as np

from benchmarks import protocol


class FakePeers:
    def __init__(self, folder):
        self.folder, self.outputs = folder, {}

    def describe(self):
        return {"python": "3.x", "versions": {"torch": "9.9+fake"}, "threads": 1, "cuda": False}

    def model(self, model, encoder, classes, image_size, seed):
        import jax
        import jax.numpy as jnp

        import densezoo as dz

        if model != "unet":
            raise KeyError(f"{model}:{encoder}")
        self.made = dz.create_model("unet", dz.PlainEncoder((4, 8)), classes)
        self.variables = jax.jit(self.made.init)(jax.random.key(7), jnp.zeros((1, *image_size, 3)))
        self.apply = jax.jit(self.made.apply)
        np.savez(self.folder / "weights.npz", **dz.weights.to_torch(self.made, self.variables))
        return {"weights": str(self.folder / "weights.npz")}

    def infer(self, form, images, dtype, platform):
        if form == "onnxruntime":
            raise ImportError("no such runtime\nlong story")
        logits = np.asarray(self.apply(self.variables, np.load(images)))
        self.outputs[form] = [[logits * (1.5 if os.environ.get("FAKE_WRONG") == form else 1)], []]
        return {"seconds": 3.0}

    def kernel(self, form, kernel, inputs, cotangent, backward, platform):
        assert kernel == "nearest_x2"
        (x,), g = [np.load(path) for path, _ in inputs], np.load(cotangent[0])
        b, h, w, c = x.shape
        gradients = [g.reshape(b, h, 2, w, 2, c).sum((2, 4))] if backward else []
        self.outputs[form] = [[x.repeat(2, 1).repeat(2, 2)], gradients]
        return {"seconds": 3.0}

    def output(self, form):
        found = {}
        for part, arrays in zip(("outputs", "gradients"), self.outputs[form], strict=True):
            found[part] = [str(self.folder / f"{part}{number}.npy") for number in range(len(arrays))]
            for path, array in zip(found[part], arrays, strict=True):
                np.save(path, array)
        return found

    def sample(self, form, calls):
        print("noise on stdout")
        return {"seconds": 0.5}

    def clear(self):
        return {}

    def die(self):
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)


def commands(folder: Path):
    fake = FakePeers(folder)
    return {name: getattr(fake, name) for name in dir(fake) if name[0] != "_"}


if __name__ == "__main__":
    protocol.serve_process(commands, sys.argv[1:])
