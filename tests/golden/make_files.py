"""Tiny checkpoint files as torch writes them. Needs torch and safetensors: python tests/golden/make_files.py."""

from collections import OrderedDict

import safetensors.torch
import seeded
import torch
from reference import FOLDER

if __name__ == "__main__":
    base = torch.from_numpy(seeded.array("base", (2, 3, 4)))
    tensors = OrderedDict(
        float32=base,
        permuted=base.permute(2, 0, 1),
        strided=base[1:, ::2, 1:3],
        parameter=torch.nn.Parameter(base[0]),
        float16=base.half(),
        bfloat16=base.bfloat16(),
        float64=base.double(),
        int64=torch.arange(5),
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
    )
    tensors._metadata = {"": {"version": 2}}  # as a module's state_dict has it
    contents = {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {0: {"step": base}}, "lr": [0.1, None, True]}}
    torch.save(contents, FOLDER / "tensors.pth")
    torch.save(contents, FOLDER / "tensors_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {"float8": base.to(torch.float8_e4m3fn)}}, FOLDER / "float8.pth")
    contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(contiguous, FOLDER / "tensors.safetensors")
