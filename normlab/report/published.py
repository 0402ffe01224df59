"""Published results to compare with."""

GN_PAPER_ERROR_PERCENT = {
    "bn": {2: 34.7, 4: 27.3, 8: 24.8, 16: 23.7, 32: 23.6},
    "gn": {2: 24.1, 4: 24.2, 8: 24.0, 16: 24.2, 32: 24.1},
}
"""Validation error of ResNet-50 on ImageNet, 8 GPUs, by images per GPU.

Source: Wu & He 2018, "Group Normalization", arXiv:1803.08494, table 2.
"""
