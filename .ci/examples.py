"""Runs every script of examples/ in its quick form, and fails on one that has none."""

import os
import pathlib
import subprocess
import sys
import tempfile

QUICK = {
    "tiny_unet.py": ["--quick --out {out}/tiny"],
    "export_scenes.py": ["--train 8 --val 2 --out {out}/scenes"],
    "train_segmentation.py": [
        "--data {out}/scenes --num-classes 11 --model segnet --encoder vgg11_bn --crop-size 32 --batch-size 2"
        " --steps 2 --out {out}/run",
        "--data {out}/scenes --num-classes 11 --model segnet --encoder vgg11_bn --crop-size 32 --batch-size 2"
        " --steps 4 --out {out}/run --resume",
    ],
    "predict.py": [
        "--model {out}/run/model.safetensors --images {out}/scenes/val/images/0000.png --out {out}/masks"
        " --probabilities",
        "--model {out}/run --images {out}/scenes --recursive --pad-to 64 --out {out}/more",
    ],
    "evaluate.py": ["--model {out}/run/model.safetensors --data {out}/scenes/val --out {out}/evaluation"],
    "skip_addition.py": ["--quick --out {out}/skips"],
    "fpn_vs_plain_head.py": ["--quick --out {out}/pyramid"],
    "upsampling_artifacts.py": ["--quick --out {out}/artifacts"],
    "gradient_flow.py": ["--quick --out {out}/flow"],
    "receptive_field.py": ["--quick --out {out}/fields"],
    "blueprints.py": ["--quick --out {out}/quick", "--out {out}/blueprints"],
    "train_detector.py": [
        "--model retinanet --encoder resnet18 --crop-size 64 --batch-size 2 --steps 1 --limit-val 2"
        " --out {out}/detector"
    ],
    "detect.py": ["--model {out}/detector --images {out}/scenes/val/images --draw 1 --out {out}/found"],
    "diffusion_digits.py": ["--quick --out {out}/digits"],
    "autoencoder.py": ["--quick --out {out}/autoencoder"],
    "nnx_training.py": ["--steps 2 --batch-size 2 --out {out}/nnx"],
}


def main() -> None:
    # What the scripts share has no main.
    scripts = {path.name for path in pathlib.Path("examples").glob("*.py") if "__main__" in path.read_text()}
    if scripts != set(QUICK):
        sys.exit(f"no quick form, or no script: {sorted(scripts ^ set(QUICK))}")
    # A fresh folder, so that nothing is left from a run before.
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # they compile more than they compute

    with tempfile.TemporaryDirectory() as out:
        for script, forms in QUICK.items():
            for form in forms:
                command = [sys.executable, f"examples/{script}", *form.format(out=out).split()]
                print(*command[1:], flush=True)
                subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
