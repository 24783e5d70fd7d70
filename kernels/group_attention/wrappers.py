"""FlashInfer's four wrappers, made for group attention; loads FlashInfer when the first one is made."""

from __future__ import annotations

from typing import Any, Protocol

import torch

LAYOUT = "NHD"  # [page, token in the page, kv head, head_dim], SGLang's layout


class WrapperFactory(Protocol):
    """Makes the wrappers; tests put one in that computes in plain torch."""

    def prefill(self) -> Any:
        """A BatchPrefillWithPagedKVCacheWrapper."""

    def decode(self) -> Any:
        """A BatchDecodeWithPagedKVCacheWrapper."""

    def pod(self) -> Any:
        """A PODWithPagedKVCacheWrapper: one prompt beside decode rows."""

    def batch_pod(self) -> Any:
        """A BatchPODWithPagedKVCacheWrapper: several prompts beside decode rows."""


class FlashInferWrappers:
    """The real ones. All share `workspace`, so they must run on one stream.

    Args:
        workspace: uint8 [bytes] on the GPU, for what a kernel leaves for its own reduction.
        use_tensor_cores: For decode; FlashInfer gains from four query heads a KV head on.
    """

    def __init__(self, workspace: torch.Tensor, *, use_tensor_cores: bool) -> None:
        self._workspace = workspace
        self._use_tensor_cores = use_tensor_cores

    def prefill(self) -> Any:
        """A BatchPrefillWithPagedKVCacheWrapper."""
        import flashinfer

        return flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace, LAYOUT, backend="fa2")

    def decode(self) -> Any:
        """A BatchDecodeWithPagedKVCacheWrapper."""
        import flashinfer

        return flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace, LAYOUT, use_tensor_cores=self._use_tensor_cores, backend="fa2"
        )

    def pod(self) -> Any:
        """A PODWithPagedKVCacheWrapper."""
        import flashinfer

        return flashinfer.PODWithPagedKVCacheWrapper(self._workspace, LAYOUT)

    def batch_pod(self) -> Any:
        """A BatchPODWithPagedKVCacheWrapper."""
        import flashinfer

        return flashinfer.BatchPODWithPagedKVCacheWrapper(self._workspace, LAYOUT)
