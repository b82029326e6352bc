"""The train step on many devices without running it."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks import mesh_memory, mesh_tasks

PROGRAM = """
import densezoo as dz
from benchmarks.mesh_memory import plan

model = dz.create_model("unet", dz.PlainEncoder((8, 16)), num_classes=4)
few, many = (plan(model, {"data": count}, count, 16) for count in (8, 256))
assert few == many and few["pixels"] == 256 and set(few["traffic"]) == {"all-reduce"}, (few, many)
shared = plan(model, {"fsdp": 4, "rows": 2, "columns": 2}, 4, 16)
assert shared["pixels"] == 64 and shared["arguments"] < few["arguments"], (few, shared)
assert set(shared["traffic"]) == {"all-reduce", "all-gather", "collective-permute"}, shared
print("planned")
"""


def test_the_plan_for_256_devices_is_that_of_8_with_as_many_pixels_each():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=256", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = os.environ | flags | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_the_tables():
    base = [{"mesh": f"data {n}", "pictures": 8, "size": 1000, "pixels": 8000000 // n} for n in (2, 4, 8)]
    more = {"arguments": 1000000, "traffic": {"all-reduce": 1500000}}
    rows = [row | more | {"temporary": 3 * row["pixels"] + 5000000} for row in base]
    rows.append(rows[-1] | {"mesh": "data 256", "pictures": 256, "temporary": 9000000})
    lines = mesh_memory.table(rows).splitlines()
    assert lines[-1] == "| data 256 | 256x1000x1000 | 1.00 | 1 | 9 | 8 | 1.5 | 0.0 | 0.0 | 0.0 |"

    found = {"task": "depth", "mesh": "rows 2", "difference": 1.4e-6, "difference_of_scores": 0.0}
    rows = [found, found | {"mesh": "data 2", "difference": 0.5}, found | {"task": "segmentation"}]
    assert list(map(mesh_tasks.agree, rows)) == [True, False, True]
    assert mesh_tasks.table(rows).splitlines() == [
        "| task | data 2 | rows 2 |",
        "| --- | --- | --- |",
        "| segmentation | - | 1e-06 |",
        "| depth | 5e-01 | 1e-06 |",
    ]
