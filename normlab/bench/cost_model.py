"""Time on paper of the collectives of a training step: latency, bandwidth, and how many of each.

A message of n bytes between two ranks takes alpha + n beta (Hockney's model). A collective of p ranks sends
messages in rounds, all ranks at once:

    ring  all-gather of m bytes a rank    (p - 1) alpha + (p - 1) m beta
          all-reduce of n bytes           2 (p - 1) alpha + 2 (p - 1) / p n beta
    tree  all-gather                      log2(p) alpha + (p - 1) m beta
          all-reduce                      2 log2(p) alpha + 2 (p - 1) / p n beta

The ring's neighbours pass blocks on; "tree" is recursive doubling and halving, whose partners are a binomial
tree's, with log2(p) rounded up where p is no power of two. beta of an all-reduce holds the additions too.
Source: Thakur, Rabenseifner & Gropp 2005, Int. J. High Performance Computing Applications 19(1), 49-66; the
ring's all-reduce: Patarasuk & Yuan 2009, J. Parallel and Distributed Computing 69(2), 117-124.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Terms = tuple[float, float]
"""How often a collective pays alpha (its rounds), and for how many bytes beta."""


def ring_all_gather(ranks: int, message_bytes: float) -> Terms:
    return ranks - 1, (ranks - 1) * message_bytes


def ring_all_reduce(ranks: int, message_bytes: float) -> Terms:
    return 2 * (ranks - 1), 2 * (ranks - 1) / ranks * message_bytes


def tree_all_gather(ranks: int, message_bytes: float) -> Terms:
    return math.ceil(math.log2(ranks)), (ranks - 1) * message_bytes


def tree_all_reduce(ranks: int, message_bytes: float) -> Terms:
    return 2 * math.ceil(math.log2(ranks)), 2 * (ranks - 1) / ranks * message_bytes


ALGORITHMS: Mapping[str, Mapping[str, Callable[[int, float], Terms]]] = {
    "ring": {"all_gather": ring_all_gather, "all_reduce": ring_all_reduce},
    "tree": {"all_gather": tree_all_gather, "all_reduce": tree_all_reduce},
}


@dataclass(frozen=True)
class Link:
    """What a message costs, in one kind of collective."""

    alpha_s: float
    """Of each round."""

    beta_s_per_byte: float
    """1 / bandwidth."""

    def seconds(self, terms: Terms) -> float:
        rounds, on_the_way_bytes = terms
        return rounds * self.alpha_s + on_the_way_bytes * self.beta_s_per_byte


@dataclass(frozen=True)
class Point:
    """A collective that was measured."""

    collective: str
    ranks: int
    message_bytes: int
    seconds: float


def fit(points: Sequence[Point]) -> Link:
    """alpha and beta of one collective's points: least squares of log(model / measured), by Gauss-Newton.

    In logarithms a point counts the same whether it is short or long, and twice as much the same as half.
    gloo's all-gather and all-reduce are rings (gloo/allgather.cc, gloo/allreduce.cc), so the ring's terms.
    """
    terms_P2 = np.array([ALGORITHMS["ring"][p.collective](p.ranks, p.message_bytes) for p in points])
    seconds_P = np.array([p.seconds for p in points])
    # Each parameter begins where it alone explains the points that it can explain.
    log_2 = np.log([(seconds_P / terms_P2[:, i]).min() for i in range(2)])
    for _ in range(100):
        parts_P2 = terms_P2 * np.exp(log_2)
        model_P = parts_P2.sum(1)
        step_2, *_ = np.linalg.lstsq(parts_P2 / model_P[:, None], np.log(seconds_P / model_P), rcond=None)
        log_2 += step_2.clip(-1, 1)
    alpha, beta = np.exp(log_2)
    return Link(float(alpha), float(beta))


@dataclass(frozen=True)
class Network:
    """What a step of data-parallel training of a network sends."""

    name: str
    norm_channels: tuple[int, ...]
    """Of each norm layer."""

    gradient_bytes: int
    """Of all parameters."""

    def sync_batch_norm_s(self, links: Mapping[str, Link], algorithm: str, ranks: int) -> float:
        """Of all layers: an all-gather of [mean, variance, count] forward, an all-reduce of two sums backward.

        2 C + 1 and 2 C floats of 4 bytes. Nothing of it can be done beside other work: the next layer waits.
        """
        if ranks == 1:
            return 0.0
        way = ALGORITHMS[algorithm]
        gather, reduce = links["all_gather"], links["all_reduce"]
        return sum(
            gather.seconds(way["all_gather"](ranks, 4 * (2 * channels + 1)))
            + reduce.seconds(way["all_reduce"](ranks, 4 * 2 * channels))
            for channels in self.norm_channels
        )

    def gradients_s(self, links: Mapping[str, Link], algorithm: str, ranks: int) -> float:
        """One all-reduce of all gradients, none of it beside the backward: DDP's buckets can only do better."""
        if ranks == 1:
            return 0.0
        return links["all_reduce"].seconds(ALGORITHMS[algorithm]["all_reduce"](ranks, self.gradient_bytes))
