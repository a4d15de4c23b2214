"""fp32 matrix products by oneDNN, which torch has and does not use for them.

torch takes MKL's, and on CPUs that are not Intel's MKL leaves AVX-512 alone: there oneDNN's take half the time
(tests/benchmarks/matrix_products.py).
"""

import functools
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import library

FEWEST_PRODUCTS = 2**21
"""Of smaller matrices (rows × columns × inner dimension) the way through Python costs more than oneDNN gains."""


@functools.cache  # the override lives as long as what is returned
def use_onednn() -> library.Library | None:
    """Let oneDNN multiply fp32 matrices in this process, forward and backward. Where that is no faster nothing is
    changed, and it returns None."""
    if not _is_faster():
        return None
    override = library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")  # that one is overridden
        override.impl("mm", _mm, "CPU")
    return override


def _is_faster() -> bool:
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()


def _mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if (
        left.dtype == right.dtype == torch.float32
        and left.shape[0] * left.shape[1] * right.shape[1] >= FEWEST_PRODUCTS
        and 1 in left.stride()
        and 1 in right.stride()
    ):
        return product(left, right)
    return torch.mm(left, right, out=left.new_empty(left.shape[0], right.shape[1]))  # not overridden in this form


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [M, K] times right [K, N], both fp32 and dense in one dimension, by oneDNN."""
    operators: Any = torch.ops.mkldnn
    result: torch.Tensor = operators._linear_pointwise(left, right.t(), None, "none", [], "")
    return result
