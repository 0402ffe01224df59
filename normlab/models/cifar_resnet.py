"""The CIFAR ResNets."""

import torch
import torch.nn.functional as F
from torch import nn

from normlab.config.model import CifarResNetConfig


class CifarTrunk(nn.Module):
    """The convolutions of a CIFAR ResNet and the forward through them, shared by CifarResNet and CifarFcnTrunk.

    Parameters have the same names in both, so that weights trained in one fit the other.
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        assert (depth - 2) % 6 == 0, depth
        blocks_per_stage = (depth - 2) // 6
        self.conv = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[BasicBlock] = []
        in_channels = width
        for stage in range(3):
            out_channels = width * 2**stage
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(in_channels, out_channels, stride))
                in_channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.out_channels = in_channels

    def stem(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(images_BCHW)), inplace=True)


class CifarFcnTrunk(CifarTrunk):
    """The trunk for segmentation: the first convolution has stride 2, for larger pictures.

    output_stride 8: strides 2, 1, 2, 2. output_stride 4: strides 2, 1, 2, 1, the last stage dilated by 2.
    Shape: images (B, 3, H, W) -> {"aux": (B, 2 width, H/4, W/4), "out": (B, 4 width, H/s, W/s)}, rounded up.
    Source: dilation instead of stride, Chen et al. 2017, arXiv:1706.05587, section 3.2.
    """

    def __init__(self, depth: int, width: int, output_stride: int) -> None:
        assert output_stride in (4, 8)
        super().__init__(depth, width)
        self.conv.stride = (2, 2)
        self.first_of_last_stage = len(self.blocks) // 3 * 2
        if output_stride == 4:
            for block in self.blocks[self.first_of_last_stage :]:
                assert isinstance(block, BasicBlock)
                block.dilate(first=block.stride > 1)
        _initialise(self)

    def forward(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        aux_BCHW = self.blocks[: self.first_of_last_stage](self.stem(images_BCHW))
        return {"aux": aux_BCHW, "out": self.blocks[self.first_of_last_stage :](aux_BCHW)}


class CifarResNet(CifarTrunk):
    """ResNet of depth 6n + 2 for small images, built with BatchNorm.

    A 3x3 convolution of `width` channels; three stages of n basic blocks at `width`, 2 `width` and 4 `width`
    channels and 1, 1/2 and 1/4 of the resolution; mean over pixels; one linear layer. Shortcuts that change
    the shape take every second pixel and pad the new channels with zeros, so they have no parameters.

    Shape: images (B, 3, H, W) -> logits (B, num_classes).
    Train and eval differ only in the norm layers.
    Source: He et al. 2015, arXiv:1512.03385, section 4.2 and option A of section 3.3.
    """

    def __init__(self, depth: int, num_classes: int, width: int = 16) -> None:
        super().__init__(depth, width)
        self.head = nn.Linear(self.out_channels, num_classes)
        _initialise(self)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW = self.blocks(self.stem(images_BCHW))
        return self.head(features_BCHW.mean(dim=(2, 3)))


def cifar_resnet(cfg: CifarResNetConfig, num_classes: int) -> CifarResNet:
    """See CifarResNet."""
    return CifarResNet(cfg.depth, num_classes, cfg.width)


class BasicBlock(nn.Module):
    """y = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), both convolutions 3x3."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def dilate(self, *, first: bool) -> None:
        """Replace a stride by a dilation of 2 in all convolutions that would have followed it."""
        self.stride = 1
        self.conv1.stride = (1, 1)
        for conv in (self.conv2,) if first else (self.conv1, self.conv2):
            conv.dilation, conv.padding = (2, 2), (2, 2)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)), inplace=True)
        y_BCHW = self.norm2(self.conv2(y_BCHW))
        if self.stride != 1:
            x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            x_BCHW = F.pad(x_BCHW, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(y_BCHW + x_BCHW, inplace=True)


def _initialise(model: nn.Module) -> None:
    """Convolutions as in He et al. 2015, arXiv:1502.01852, by fan-out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
