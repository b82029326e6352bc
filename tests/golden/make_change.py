"""Golden outputs of change detection. Needs torch and smp 0.6.0: run this file.

Two kinds of models: smp's encoder and U-Net decoder on the joined maps of two images; and SNUNet-CD with ensemble
channel attention, written here from the paper's description, with the names of the authors' code.
"""

import segmentation_models_pytorch as smp
import torch
from reference import write_model
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import nn


class Siamese(nn.Module):
    """One encoder for both images, and a decoder on their joined maps. The batch has the images before, then after."""

    def __init__(self, fusion: str):
        super().__init__()
        self.fusion = fusion
        channels = 6 if fusion == "early" else 3
        self.encoder = smp.encoders.get_encoder("resnet18", in_channels=channels, weights=None)
        widths = [width * (2 if fusion == "concat" else 1) for width in self.encoder.out_channels]
        self.decoder = UnetDecoder(widths, (256, 128, 64, 32, 16), n_blocks=5)
        self.segmentation_head = smp.base.SegmentationHead(16, 2, kernel_size=3)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        before, after = pairs.chunk(2)
        if self.fusion == "early":
            maps = self.encoder(torch.cat([before, after], 1))
        else:
            join = {"concat": lambda a, b: torch.cat([a, b], 1), "difference": lambda a, b: (a - b).abs()}
            maps = list(map(join[self.fusion], self.encoder(before), self.encoder(after)))
        return self.segmentation_head(self.decoder(maps))


class Block(nn.Module):
    """Two convolutions with batch norm; the first one's result is added to the second one's."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.conv1(x)
        return (first + self.bn2(self.conv2(self.bn1(first).relu()))).relu()


class Attention(nn.Module):
    """Channel attention from means and maxima."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1, bias=False), nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return sum(self.fc2(self.fc1(each).relu()) for each in pooled).sigmoid()


class SNUNet(nn.Module):
    """SNUNet-CD; `width` is 32 in the paper. The batch has the images before, then after."""

    def __init__(self, width: int, classes: int = 2):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        for level, channels in enumerate(widths):
            self.add_module(f"conv{level}_0", Block(widths[level - 1] if level else 3, channels))
            for column in range(1, 5 - level):
                joined = channels * (column + 1) + widths[level + 1]
                self.add_module(f"conv{level}_{column}", Block(joined, channels))
            for column in range(5 - level if level else 0):
                up = nn.Module()
                up.up = nn.ConvTranspose2d(channels, channels, 2, 2)
                self.add_module(f"Up{level}_{column}", up)
        self.ca, self.ca1 = Attention(4 * width, 4 * width // 16), Attention(width, width // 4)
        self.conv_final = nn.Conv2d(4 * width, classes, 1)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        x, encoded = pairs, []
        for level in range(5):
            x = self.get_submodule(f"conv{level}_0")(nn.functional.max_pool2d(x, 2) if level else x)
            encoded.append(x.chunk(2))
        rows, below = [list(pair) for pair in encoded], [after for _, after in encoded]
        for column in range(1, 5):
            for level in range(5 - column):
                up = self.get_submodule(f"Up{level + 1}_{column - 1}").up(below[level + 1])
                rows[level].append(self.get_submodule(f"conv{level}_{column}")(torch.cat([*rows[level], up], 1)))
            below = [row[-1] for row in rows]
        finest = rows[0][2:]
        x = torch.cat(finest, 1)
        return self.conv_final(self.ca(x) * (x + self.ca1(sum(finest)).repeat(1, 4, 1, 1)))


if __name__ == "__main__":
    for fusion in ("early", "concat", "difference"):
        quick = fusion == "concat"
        write_model(
            f"siamese_{fusion}", Siamese(fusion), (2, 64, 32, 3), "siamese_unet", "resnet18", quick=quick, fusion=fusion
        )
    write_model("snunet", SNUNet(32), (2, 32, 48, 3), "snunet", "snunet", quick=True)
