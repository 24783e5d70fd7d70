"""Which experts each layer's prompt and decode rows activate, counted on the device without a sync."""

from sglang_layered_kernels.expert_traffic.counter import ExpertTrafficCounter
from sglang_layered_kernels.expert_traffic.layout import ExpertTraffic

__all__ = ["ExpertTraffic", "ExpertTrafficCounter"]
