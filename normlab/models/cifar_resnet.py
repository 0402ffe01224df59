"""The CIFAR ResNets."""

import torch
import torch.nn.functional as F
from torch import nn


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for small images, built with BatchNorm.

    A 3x3 convolution of `width` channels; three stages of n basic blocks at `width`, 2 `width` and 4 `width`
    channels and 1, 1/2 and 1/4 of the resolution; mean over pixels; one linear layer. Shortcuts that change
    the shape take every second pixel and pad the new channels with zeros, so they have no parameters.

    Shape: images (B, 3, H, W) -> logits (B, num_classes).
    Train and eval differ by the norm layers alone.
    Source: He et al. 2015, arXiv:1512.03385, section 4.2 and option A of section 3.3.
    """

    def __init__(self, depth: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        assert (depth - 2) % 6 == 0, depth
        blocks_per_stage = (depth - 2) // 6
        self.conv = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        in_channels = width
        for stage in range(3):
            out_channels = width * 2**stage
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(in_channels, out_channels, stride))
                in_channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features_BCHW = self.blocks(F.relu(self.norm(self.conv(images_BCHW)), inplace=True))
        return self.head(features_BCHW.mean(dim=(2, 3)))


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

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)), inplace=True)
        y_BCHW = self.norm2(self.conv2(y_BCHW))
        if self.stride != 1:
            x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            x_BCHW = F.pad(x_BCHW, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(y_BCHW + x_BCHW, inplace=True)
