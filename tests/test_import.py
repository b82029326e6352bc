"""The cost of importing."""

import subprocess
import sys


def test_importing_densezoo_is_light():
    # A second's worth of packages that only some uses need: they come on first use.
    program = (
        "import sys, jax, flax.linen\n"
        "before = set(sys.modules)\n"  # flax itself brings some of them
        "import densezoo as dz\n"
        "heavy = {'matplotlib', 'grain', 'orbax', 'skimage', 'sklearn', 'torch', 'PIL', 'rich', 'tyro'}\n"
        "brought = heavy & (set(sys.modules) - before)\n"
        "assert not brought, brought\n"
        "assert dz.weights.from_torch and dz.train.fit and dz.data.ImageMaskFolder and dz.viz.palette\n"
        "assert {'train', 'viz'} <= set(dir(dz)) and not hasattr(dz, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
