"""How long messages and multiplications take, on paper: bandwidth, latency, peak.

A collective is a ring: each of its ``n - 1`` hops costs a latency, and the whole tensor passes the
narrowest link once (a reduction to all ranks: twice). Rings that leave a node use all of its
network cards, as NCCL's do. What a fabric really gives has to be measured on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from skyvec_training.rehearsal.collectives import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU, its memory, and the node that it sits in."""

    tera_flops: float
    """Dense bfloat16 peak, 1e12 operations per second."""
    memory_gib: float
    node_gb: float
    """Between the GPUs of a node, 1e9 bytes per second that a ring sees."""
    network_gb: float = 8 * 50 * 0.86
    """Between nodes, all cards of a node together (8 x 400 Gb/s, of which 86% reach a ring)."""
    per_node: int = 8
    hop_us: float = 4.0


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "a100": Gpu(tera_flops=312, memory_gib=80, node_gb=240, network_gb=8 * 25 * 0.86),
        "h100": Gpu(tera_flops=989, memory_gib=80, node_gb=360),
        "h200": Gpu(tera_flops=989, memory_gib=141, node_gb=360),
        "b200": Gpu(tera_flops=2250, memory_gib=180, node_gb=720),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Delay:
    """Seconds of messages."""

    bandwidth: float = 0.0
    latency: float = 0.0

    @property
    def seconds(self) -> float:
        """Both."""
        return self.bandwidth + self.latency


def delay_of(messages: Mapping[Message, int], gpu: Gpu, *, shard: int) -> Delay:
    """Time of all messages, one after another.

    Parameters
    ----------
    shard
        Ranks that share a copy of the state; they are neighbours, their copies are further apart.
    """
    bandwidth = latency = 0.0
    for message, times in messages.items():
        passes = 2 if message.kind == "all-reduce" else 1
        hops = passes * (message.ranks - 1)
        bandwidth += times * hops / message.ranks * message.size / _rate(message, gpu, shard)
        latency += times * hops * gpu.hop_us * 1e-6
    return Delay(bandwidth=bandwidth, latency=latency)


def _rate(message: Message, gpu: Gpu, shard: int) -> float:
    """Bytes per second of a ring of this group."""
    if message.kind == "all-reduce" and message.ranks > 1 and shard > 1:
        # One of the node's ranks in each ring: the rings of its neighbours share the cards.
        sharers = min(shard, gpu.per_node)
        return min(gpu.node_gb, gpu.network_gb / sharers) * 1e9
    inside = message.ranks <= gpu.per_node
    return (gpu.node_gb if inside else min(gpu.node_gb, gpu.network_gb)) * 1e9
