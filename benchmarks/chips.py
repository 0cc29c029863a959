"""Public figures of accelerators, each with its source; used by scaling.py and chip_hours.py."""

from __future__ import annotations

import dataclasses

_GOOGLE = "https://docs.cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as its maker calls it.
      tflops: dense bfloat16 peak, TFLOP/s.
      hbm_gb: size of its memory, GB (10^9 bytes).
      hbm_gbs: bandwidth of its memory, GB/s.
      link_gbs: what it can send over its fast links (ICI, NVLink) at once, one way, GB/s: half of
        what is called bidirectional.
      group: chips that the fast links join: the largest slice, or the GPUs of a host.
      network_gbs: what it can send beyond its group (data-centre network, InfiniBand), one way,
        GB/s: its share of the host's cards.
      sources: where the figures stand.
    """

    name: str
    tflops: float
    hbm_gb: float
    hbm_gbs: float
    link_gbs: float
    group: int
    network_gbs: float
    sources: tuple[str, ...]


CHIPS = {
    chip.name: chip
    for chip in (
        # 32 GiB. Links: 6 of 50 GB/s each way (the paper). A slice may have all 4,096 chips.
        Chip(
            "TPU v4",
            275.0,
            34.4,
            1200.0,
            300.0,
            4096,
            0.0,
            (f"{_GOOGLE}/v4", "https://arxiv.org/abs/2304.01433"),
        ),
        # 400 GB/s both ways; 2 cards of 100 Gb/s for the 8 chips of a host.
        Chip("TPU v5e", 197.0, 16.0, 819.0, 200.0, 256, 3.125, (f"{_GOOGLE}/v5e",)),
        # 1,200 GB/s both ways; 50 Gb/s of network a chip; the largest job has 6,144 chips.
        Chip("TPU v5p", 459.0, 95.0, 2765.0, 600.0, 6144, 6.25, (f"{_GOOGLE}/v5p",)),
        # 800 GB/s both ways; 4 cards of 200 Gb/s for the 8 chips of a host.
        Chip("TPU v6e", 918.0, 32.0, 1638.0, 400.0, 256, 12.5, (f"{_GOOGLE}/v6e",)),
        # 900 GB/s both ways; a 400 Gb/s card for each GPU, as in a DGX.
        Chip(
            "H100",
            989.5,
            80.0,
            3350.0,
            450.0,
            8,
            50.0,
            (f"{_NVIDIA}/h100/", f"{_NVIDIA}/dgx-h100/"),
        ),
        Chip(
            "H200",
            989.5,
            141.0,
            4800.0,
            450.0,
            8,
            50.0,
            (f"{_NVIDIA}/h200/", f"{_NVIDIA}/dgx-h200/"),
        ),
    )
}
"""The chips of the tables in docs/scaling.md."""
