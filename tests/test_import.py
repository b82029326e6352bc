"""What importing costs."""

import subprocess
import sys


def test_importing_densezoo_is_light():
    # A second's worth of packages that only some uses need: they come on first use.
    program = (
        "import sys, densezoo as dz\n"
        "heavy = {'matplotlib', 'grain', 'orbax', 'skimage', 'sklearn', 'torch', 'PIL', 'rich', 'tyro'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert dz.weights.from_torch and dz.train.fit and dz.data.ImageMaskFolder and dz.viz.palette\n"
        "assert {'train', 'viz'} <= set(dir(dz)) and not hasattr(dz, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
