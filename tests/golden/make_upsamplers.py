"""Golden outputs of CARAFE as mmcv has it and of DySample as its authors have it, in torch alone.

Needs torch: python tests/golden/make_upsamplers.py. Names of weights and order of channels are theirs.
"""

import torch
import torch.nn.functional as F
from reference import write
from torch import nn


class CARAFEPack(nn.Module):
    """mmcv's names and order: in the masks the group is first, then the row and the column of the window."""

    def __init__(self, channels: int, kernel_size: int, groups: int, compressed: int):
        super().__init__()
        self.kernel_size, self.groups = kernel_size, groups
        self.channel_compressor = nn.Conv2d(channels, compressed, 1)
        self.content_encoder = nn.Conv2d(compressed, 4 * groups * kernel_size**2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        taps = self.kernel_size**2
        masks = F.pixel_shuffle(self.content_encoder(self.channel_compressor(x)), 2)
        masks = masks.reshape(batch, self.groups, 1, taps, 2 * height, 2 * width).softmax(3)
        windows = F.unfold(x, self.kernel_size, padding=self.kernel_size // 2).reshape(batch, -1, height, width)
        windows = windows.repeat_interleave(2, 2).repeat_interleave(2, 3)
        windows = windows.reshape(batch, self.groups, channels // self.groups, taps, 2 * height, 2 * width)
        return (windows * masks).sum(3).reshape(batch, channels, 2 * height, 2 * width)


class DySample(nn.Module):
    """Style "lp" with a static scope: in the offsets x precedes y, then the group, then the pixel of the block."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.groups = groups
        self.offset = nn.Conv2d(channels, 8 * groups, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        size = (2 * height, 2 * width)
        offsets = F.pixel_shuffle(0.25 * self.offset(x), 2).reshape(batch, 2, self.groups, *size)
        rows = (torch.arange(size[0]) + 0.5).reshape(-1, 1) / 2 + offsets[:, 1]
        columns = (torch.arange(size[1]) + 0.5) / 2 + offsets[:, 0]
        grid = torch.stack([2 * columns / width - 1, 2 * rows / height - 1], -1).flatten(0, 1)
        grouped = x.reshape(batch * self.groups, -1, height, width)
        y = F.grid_sample(grouped, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return y.reshape(batch, channels, *size)


if __name__ == "__main__":
    for case, model in (
        ("carafe", CARAFEPack(8, 5, 1, 64)),
        ("carafe_groups", CARAFEPack(8, 3, 2, 6)),
        ("dysample", DySample(8, 4)),
    ):
        write(f"upsampler_{case}", model, (2, 7, 6, 8), lambda y: {"y": y})
