"""The constants of the communication model: where each comes from, and which were fitted.

Compute, memory and overlap take theirs from tutelage_advisor.estimates.calibration.
"""

from typing import Final

NVLINK_HOP: Final = 3.4e-6
"Seconds: NCCL's own table of latencies (NVIDIA/nccl src/graph/tuning.cc, ring, protocol Simple, NVLink)."
RDMA_HOP: Final = 14.0e-6
"The same, over the network."
ETHERNET_HOP: Final = 39e-6
"""Seconds. All-reduce of 8 bytes over 4 and 8 nodes of AWS p3dn (100 Gb/s, first EFA) took 319 and 631 microseconds,
and the larger ring has 8 more hops between nodes (gist.github.com/jacobkahn, nccl-tests, 2019-07-23)."""
START: Final = 8.4e-6
"Seconds to start an operation: the same table of NCCL's, ring, Simple."
BUCKET_BYTES: Final = 25 * 2**20
"Of DistributedDataParallel's buckets (its `bucket_cap_mb`)."
NETWORK_SHARE: Final = 0.6
"What collectives reach of the network's rated bandwidth. Fitted (fitting.py)."
WAITING: Final = 0.007
"Share of its arithmetic's time that a GPU waits for the slowest, for each doubling of the nodes. Fitted."
