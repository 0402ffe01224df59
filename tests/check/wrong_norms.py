"""Norms with one mistake each."""

import torch
import torch.distributed as dist
from torch import nn

from tests.norms.own_norms import EvaluatesTheBatch, HidesTheBatch  # noqa: F401


class Affine(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x):
        return (x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(x.dtype)


class OtherShape(Affine):
    def forward(self, x):
        return super().forward(x)[1:]


class StopsAGradient(Affine):
    def forward(self, x):
        y = super().forward(x)
        return y / (1 + y.square().mean((1, 2, 3), keepdim=True)).sqrt().detach()


class WrongInEvaluation(Affine):
    def forward(self, x):
        return super().forward(x) if self.training else super().forward(x) + x.square().detach()


class LeavesOutAParameter(Affine):
    def __init__(self, num_features):
        super().__init__(num_features)
        self.gate = nn.Parameter(torch.ones(num_features))


class DeclaresNoParameter(Affine):
    def no_weight_decay(self):
        return {"gate"}


class ChangesInEvaluation(Affine):
    def __init__(self, num_features):
        super().__init__(num_features)
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x):
        self.batches += 1
        return super().forward(x)


class TalksInEvaluation(Affine):
    def forward(self, x):
        y = super().forward(x)
        if dist.is_initialized() and not self.training:
            dist.all_reduce(y.detach().clone())
        return y


class HidesACollective(Affine):
    needs_batch = True

    def forward(self, x):
        y = super().forward(x)
        if dist.is_initialized() and self.training:
            dist.all_reduce(torch.zeros(1))
        return y


class SumsNoGradient(Affine):
    """Its forward is over all ranks, its backward is not."""

    needs_ranks = True

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        mean = x.mean()
        if dist.is_initialized():
            of_all = mean.detach().clone()
            dist.all_reduce(of_all)
            mean = mean + (of_all / dist.get_world_size() - mean.detach())
        return super().forward(x - mean)


class Forgets(Affine):
    """Evaluates with a mean that no state dict has."""

    needs_batch = True

    def __init__(self, num_features):
        super().__init__(num_features)
        self.mean = torch.zeros(())

    def forward(self, x):
        if self.training:
            self.mean = x.detach().mean()
            return super().forward(x)
        return super().forward(x) - self.mean


class Counts(Affine):
    """Its first batch is another, and it counts by itself."""

    needs_batch = True

    def __init__(self, num_features):
        super().__init__(num_features)
        self.batches = 0

    def forward(self, x):
        self.batches += self.training
        return super().forward(x * min(self.batches, 3) if self.training else x)


class GivesFloat32(Affine):
    def forward(self, x):
        return super().forward(x.to(torch.promote_types(x.dtype, torch.float32)))


class RoundsMuch(Affine):
    def forward(self, x):
        y = super().forward(x).to(x.dtype)
        return y if x.dtype != torch.bfloat16 else y.round()


class NeedsStrides(Affine):
    def forward(self, x):
        return super().forward(x.view(len(x), 2, -1).view(x.shape))
