"""Features that work without the extras, and messages that name a missing one."""

import importlib
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from densezoo.extras import EXTRAS, require

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = ("train_segmentation", "predict", "evaluate", "nnx_training")
WITHOUT_EXTRAS = """
    import sys
    import flax.linen, flax.nnx  # which need rich themselves
    import jax, jax.numpy as jnp, numpy as np, optax
    from densezoo.extras import EXTRAS

    ABSENT = {module for modules in EXTRAS.values() for module in modules}

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ABSENT:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.split(".")[0] in ABSENT]:
        del sys.modules[name]
    sys.meta_path.insert(0, Blocked())
"""


def run(program, tmp_path):
    """Runs a program in a process that cannot import any extra; returns its standard error stream."""
    text = textwrap.dedent(WITHOUT_EXTRAS) + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", text, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_composing_training_compiling_and_saving_need_the_core_alone(tmp_path):
    shown = run(
        """
        import densezoo as dz
        from densezoo import viz
        from densezoo.train import create_state, fit, make_eval_step, make_optimizer, make_train_step

        model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
        batch = {"image": jnp.ones((2, 16, 16, 3)), "mask": jnp.zeros((2, 16, 16), jnp.int32)}
        state = create_state(model, make_optimizer(1e-3, steps=4), jax.random.key(0), batch["image"])
        loss = lambda apply, batch, *key: dz.losses.cross_entropy(apply(batch["image"]), batch["mask"])
        step = make_train_step(loss)
        state, metrics = step(state, batch)
        state, history = fit(state, step, [batch], steps=4, log_every=1, directory=f"{sys.argv[1]}/run")
        assert history[-1]["loss"] < float(metrics["loss"])
        assert jnp.isfinite(make_eval_step(loss)(state, batch))
        path = f"{sys.argv[1]}/model.safetensors"
        dz.save(path, model, state.variables, preprocessing=dz.Preprocessing(channels=3))
        model, variables = dz.load(path)
        infer = dz.compile(model, variables)
        assert jnp.allclose(infer(batch["image"]), model.apply(variables, batch["image"]), atol=1e-4)
        assert dz.from_nnx(dz.to_nnx(model, variables)).keys() == variables.keys()
        viz.save_mask(np.zeros((4, 4), np.uint8), f"{sys.argv[1]}/mask.png")
        assert not {name.split(".")[0] for name in sys.modules} & ABSENT
        """,
        tmp_path,
    )
    assert "step 4/4" in shown and (tmp_path / "mask.png").exists()


def test_what_needs_an_extra_names_it(tmp_path):
    shown = run(
        f"""
        import runpy

        sys.path.insert(0, {str(EXAMPLES)!r})
        for script in {SCRIPTS}:
            sys.argv = [script]
            try:
                runpy.run_path(f"{EXAMPLES}/{{script}}.py", run_name="__main__")
            except SystemExit as stopped:
                assert stopped.code == 1
            else:
                raise AssertionError(script)
        """
        """
        import densezoo as dz
        from densezoo import data

        uses = {
            "grain": ("data", lambda: next(data.train_batches([{"image": np.zeros((8, 8, 3))}], batch_size=1)(0))),
            "scikit-learn": ("data", lambda: data.DigitScenes(1)),
            "huggingface_hub": ("hub", lambda: dz.weights.from_hub("timm/resnet18.a1_in1k")),
        }
        for package, (extra, use) in uses.items():
            try:
                use()
            except ModuleNotFoundError as error:
                message = f'needs {package}, which is not installed: pip install "densezoo[{extra}]"'
                assert message in str(error), error
            else:
                raise AssertionError(package)
        """,
        tmp_path,
    )
    message = 'error: this needs tyro, which is not installed: pip install "densezoo[cli]"'
    assert shown.count(message) == len(SCRIPTS) and "Traceback" not in shown


def test_the_extras_are_those_of_the_package():
    project = tomllib.loads(Path(__file__).parent.parent.joinpath("pyproject.toml").read_text())["project"]
    listed = {
        extra: {re.split(r"[<>=[]", requirement)[0] for requirement in project["optional-dependencies"][extra]}
        for extra in EXTRAS
    }
    assert listed == {extra: set(packages.values()) for extra, packages in EXTRAS.items()}
    assert project["optional-dependencies"]["all"] == [f"densezoo[{','.join(EXTRAS)}]"]
    core = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]}
    assert core == {
        "jax", "flax", "optax", "orbax-checkpoint", "jaxtyping", "numpy", "matplotlib", "pillow", "safetensors"
    }  # fmt: skip


def test_a_package_that_lacks_one_of_its_own_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "tifffile.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tifffile", raising=False)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        require("tifffile")
    importlib.invalidate_caches()
