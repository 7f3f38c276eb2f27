"""The networks between nodes that are compared, and the cluster that a GPU of the catalog makes with one."""

from __future__ import annotations

import msgspec

from bench.scaling import constants
from bench.scaling.collectives import Cluster, Link
from tutelage_advisor.catalog import Gpu
from tutelage_advisor.estimates import calibration as known


class Network(msgspec.Struct, frozen=True):
    """What connects nodes: gigabytes a second of all cards of a node together, in one direction, as rated."""

    name: str
    gb_s: float
    hop: float
    "Seconds."
    source: str


NETWORKS = (
    Network("InfiniBand NDR", 400.0, constants.RDMA_HOP, "8 x 400 Gb/s a node, as in NVIDIA's DGX H100"),
    Network("InfiniBand HDR", 200.0, constants.RDMA_HOP, "8 x 200 Gb/s a node, as in NVIDIA's DGX A100"),
    Network("Ethernet 100 Gb", 12.5, constants.ETHERNET_HOP, "one card a node"),
    Network("Ethernet 25 Gb", 3.125, constants.ETHERNET_HOP, "one card a node"),
)


def network(name: str) -> Network:
    """The network of that name.

    Raises:
        KeyError: when there is none.
    """
    return next(each for each in NETWORKS if each.name == name)


class Fitted(msgspec.Struct, frozen=True):
    """The constants of a cluster that were fitted to measurements."""

    share: float = constants.NETWORK_SHARE
    waiting: float = constants.WAITING


def cluster_of(gpu: Gpu, between: Network, per_node: int = 8, fitted: Fitted | None = None) -> Cluster:
    """Nodes of one kind of GPU: the catalog has its link's rate, both directions together.

    What collectives reach of the link inside a node is the estimator's constant; NVLink and PCIe differ in it.
    """
    fitted = fitted or Fitted()
    reached = known.PCIE_SHARE if gpu.link.kind.startswith("PCIe") else known.NVLINK_SHARE
    inside = Link(gpu.link.gb_s.value / 2 * reached * 1e9, constants.NVLINK_HOP)
    outside = Link(between.gb_s * fitted.share * 1e9, between.hop)
    return Cluster(per_node, inside, outside, constants.START, fitted.waiting)
