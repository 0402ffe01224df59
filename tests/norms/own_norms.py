"""Norms as users write them, importable on every rank of the tests."""

import torch
from torch import nn

from normlab.norms import SyncBatchNorm


class Group(nn.Module):
    """GroupNorm, with a parameter and a buffer that it draws itself."""

    def __init__(self, num_features, groups=4, eps=1e-5):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.full((num_features,), 7.0))
        self.bias = nn.Parameter(torch.full((num_features,), 7.0))
        self.offset = nn.Parameter(torch.randn(1))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return nn.functional.group_norm(x, self.groups, self.weight, self.bias, self.eps) + 0 * self.offset


class Batch(nn.BatchNorm2d):
    needs_batch = True


class HalfBatch(nn.Module):
    """BatchNorm of half of the channels, InstanceNorm of the others: IBN-Net's."""

    needs_batch = True

    def __init__(self, num_features):
        super().__init__()
        self.of_batch = nn.BatchNorm2d(num_features // 2)
        self.of_sample = nn.InstanceNorm2d(num_features - num_features // 2, affine=True)

    def forward(self, x):
        half = x.shape[1] // 2
        return torch.cat([self.of_batch(x[:, :half]), self.of_sample(x[:, half:])], 1)


def sync(num_features):
    return SyncBatchNorm(num_features)


sync.needs_ranks = True


def not_a_module(num_features):
    return 3


def raises(num_features):
    return nn.GroupNorm(missing, num_features)  # noqa: F821


def needs_more(num_features, groups):
    return nn.GroupNorm(groups, num_features)


class OtherShape(nn.Module):
    def __init__(self, num_features):
        super().__init__()

    def forward(self, x):
        return x.mean((2, 3))


class OtherDtype(OtherShape):
    def forward(self, x):
        return x.double()


class Nothing(OtherShape):
    def forward(self, x):
        return None


class FailsInTraining(OtherShape):
    def forward(self, x):
        return x.no_such_method() if self.training else x


class FailsWithGradients(OtherShape):
    def forward(self, x):
        return torch.from_numpy(x.numpy())


class Spare(OtherShape):
    def __init__(self, num_features):
        super().__init__(num_features)
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, x):
        return 1 * x


class HidesTheBatch(nn.BatchNorm2d):
    pass


class EvaluatesTheBatch(nn.BatchNorm2d):
    needs_batch = True

    def __init__(self, num_features):
        super().__init__(num_features, track_running_stats=False)


constant = 3
