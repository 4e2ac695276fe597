"""Modes of PyTorch in which a model is measured; each is left as it was found."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def as_written() -> Iterator[None]:
    """Modules computed as they are written: not compiled (`torch.compile`), not by a transformer's fast path."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products in all 24 bits of float32: no TF32 or bf16 inside, whatever the settings; restored afterwards."""
    backends = torch.backends
    kinds = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    kinds += (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set in the newer way, kind by kind, which this older one cannot tell
        before = None
    settings = [kind.fp32_precision for kind in kinds]
    torch.set_float32_matmul_precision("highest")
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)
        for kind, setting in zip(kinds, settings, strict=True):
            kind.fp32_precision = setting


@contextmanager
def uncached_casts() -> Iterator[None]:
    """No casts that autocast has kept from a pass without gradients or from another graph: they would end this one."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Attention from matrix products in half precision; PyTorch would copy their inputs to float32."""
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # not of CUDA alone, whatever it is called
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


def plain(device: torch.device) -> AbstractContextManager:
    """Context without gradients and without autocast."""
    if not torch.is_autocast_enabled(device.type):
        return torch.no_grad()  # entered at every call, so nothing more than is needed
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    stack.enter_context(torch.autocast(device.type, enabled=False))
    return stack
