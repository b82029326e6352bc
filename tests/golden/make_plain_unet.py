"""Golden outputs of plain U-Nets with names in wide use. Needs torch: python tests/golden/make_plain_unet.py."""

import torch
from reference import write
from torch import nn

WIDTHS = (8, 16, 32, 64)


def double_conv(inputs: int, outputs: int, hidden: int | None = None, *, bias: bool = False) -> nn.Module:
    """Two convolutions with batch norm and ReLU, in a module that calls them `double_conv`."""
    layers = []
    for before, after in ((inputs, hidden or outputs), (hidden or outputs, outputs)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU()]
    block = nn.Sequential()
    block.double_conv = nn.Sequential(*layers)
    return block


class Within(nn.Module):
    """The upsampling and the following convolutions are in one module `up{i}`; transposed or bilinear upsampling."""

    def __init__(self, bilinear: bool):
        super().__init__()
        *finer, bottom = WIDTHS
        widths = (*finer, bottom // 2 if bilinear else bottom)
        self.inc = double_conv(3, widths[0])
        for level in range(1, len(widths)):
            down = nn.Module()
            down.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), double_conv(widths[level - 1], widths[level]))
            self.add_module(f"down{level}", down)
        for level, joined in enumerate(reversed(WIDTHS[1:]), start=1):
            up = nn.Module()
            if bilinear:
                outputs = joined // 2 if level == len(WIDTHS) - 1 else joined // 4
                up.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
                up.conv = double_conv(joined, outputs, joined // 2)
            else:
                up.up = nn.ConvTranspose2d(joined, joined // 2, 2, 2)
                up.conv = double_conv(joined, joined // 2)
            self.add_module(f"up{level}", up)
        self.outc = nn.Sequential()
        self.outc.conv = nn.Conv2d(WIDTHS[0], 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.inc(x)]
        for level in range(1, len(WIDTHS)):
            maps.append(self.get_submodule(f"down{level}").maxpool_conv(maps[-1]))
        x = maps.pop()
        for level in range(1, len(WIDTHS)):
            up = self.get_submodule(f"up{level}")
            x = up.conv(torch.cat([maps.pop(), up.up(x)], 1))
        return self.outc(x)


class Beside(nn.Module):
    """Transposed convolutions `up{i}` beside the convolutions `conv{i}`, with biases; the decoder's map is first."""

    def __init__(self):
        super().__init__()
        self.inc = double_conv(3, WIDTHS[0], bias=True)
        for level in range(1, len(WIDTHS)):
            convs = double_conv(WIDTHS[level - 1], WIDTHS[level], bias=True)
            self.add_module(f"down{level}", nn.Sequential(nn.MaxPool2d(2), convs))
        for level, width in enumerate(reversed(WIDTHS[1:]), start=1):
            self.add_module(f"up{level}", nn.ConvTranspose2d(width, width // 2, 2, 2))
            self.add_module(f"conv{level}", double_conv(width, width // 2, bias=True))
        self.outc = nn.Conv2d(WIDTHS[0], 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.inc(x)]
        for level in range(1, len(WIDTHS)):
            maps.append(self.get_submodule(f"down{level}")(maps[-1]))
        x = maps.pop()
        for level in range(1, len(WIDTHS)):
            up, conv = self.get_submodule(f"up{level}"), self.get_submodule(f"conv{level}")
            x = conv(torch.cat([up(x), maps.pop()], 1))
        return self.outc(x)


if __name__ == "__main__":
    for case, model in (("transposed", Within(False)), ("bilinear", Within(True)), ("beside", Beside())):
        write(f"plain_unet_{case}", model, (2, 32, 48, 3), lambda logits: {"logits": logits})
