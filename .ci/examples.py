"""Runs every script of examples/ in its quick form, and fails on one that has none.

Two scripts run at a time, because compiling, which takes most of the time, uses one core.
"""

import concurrent.futures
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
        "--out {out}/run --resume --steps 4",
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
    "scale_semantics.py": ["--quick --out {out}/semantics"],
    "unet_claims.py": ["--quick --out {out}/claims"],
    "receptive_field.py": ["--quick --out {out}/fields"],
    "blueprints.py": ["--quick --out {out}/quick", "--out {out}/blueprints"],
    "train_detector.py": [
        "--model retinanet --encoder resnet18 --crop-size 64 --batch-size 2 --steps 1 --limit-val 2"
        " --out {out}/detector"
    ],
    "detect.py": ["--model {out}/detector --images {out}/scenes/val/images --draw 1 --out {out}/found"],
    "change_detection.py": [
        "--quick --out {out}/change",
        "--quick --model snunet --encoder plain --out {out}/snunet",
    ],
    "depth.py": ["--quick --out {out}/depth", "--quick --task normals --out {out}/normals"],
    "denoise.py": ["--quick --out {out}/denoise"],
    "autoencoder.py": ["--quick --out {out}/autoencoder"],
    "export.py": [
        "--quick --out {out}/export",
        "--model {out}/run --outputs classes --size 32 32 --out {out}/exported",
    ],
    "diffusion_digits.py": [
        "--quick --out {out}/digits",
        "--quick --latent {out}/autoencoder --guidance 2 --out {out}/latents",
    ],
    "diffusion_skips.py": ["--quick --out {out}/diffusion_skips"],
    "nnx_training.py": ["--steps 2 --batch-size 2 --out {out}/nnx"],
}


READS = {
    "train_segmentation.py": "export_scenes.py",
    "predict.py": "train_segmentation.py",
    "evaluate.py": "predict.py",
    "export.py": "train_segmentation.py",
    "detect.py": "train_detector.py",
    "diffusion_digits.py": "autoencoder.py",
}
"""The script that must have run before another. `detect.py` also reads the scenes, which are written first."""


def main() -> None:
    # What the scripts share has no main.
    scripts = {path.name for path in pathlib.Path("examples").glob("*.py") if "__main__" in path.read_text()}
    if scripts != set(QUICK):
        sys.exit(f"no quick form, or no script: {sorted(scripts ^ set(QUICK))}")
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # they compile more than they compute
    done: dict[str, concurrent.futures.Future[None]] = {}

    # A fresh folder, so that nothing is left from a run before.
    with tempfile.TemporaryDirectory() as out, concurrent.futures.ThreadPoolExecutor(2) as pool:

        def run(script: str) -> None:
            if script in READS:
                done[READS[script]].result()
            for form in QUICK[script]:
                command = [sys.executable, f"examples/{script}", *form.format(out=out).split()]
                output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
                result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False, **output)
                print(" ".join(command[1:]), result.stdout, sep="\n", flush=True)
                result.check_returncode()

        for script in QUICK:  # a script starts after those before it have started, so it waits for none that waits
            done[script] = pool.submit(run, script)
        for result in done.values():
            result.result()


if __name__ == "__main__":
    main()
