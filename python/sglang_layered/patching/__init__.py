"""The patch tool: puts the seams into an installed SGLang, takes them out, and proves the state by hash."""

from sglang_layered.patching.engine import apply, revert, status, verify, verify_patched
from sglang_layered.patching.site import Site, locate

__all__ = ["Site", "apply", "locate", "revert", "status", "verify", "verify_patched"]
