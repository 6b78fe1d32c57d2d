"""PyTorch with timm, channels_last, by `torch.compile`; `scripts/bench.py` starts it."""

from __future__ import annotations

from benchmark.protocol import serve
from benchmark.torch_worker import TorchPeer

if __name__ == "__main__":
    serve(lambda setup: TorchPeer(setup, compiled=True))
