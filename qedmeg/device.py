"""The device seam: is there a GPU? Everything else is free of the question.

Megatron-core and NeMo-Aligner take CUDA for granted in places (`device="cuda"`, `torch.cuda.current_device()`,
string comparisons with `torch.cuda.FloatTensor`). On a machine without one, `prepare()` gives those names a meaning on
the CPU; on a machine with one it does nothing. It must run before the first import of either package.
"""

import ctypes
import datetime
import functools
import os
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _device

from qedmeg import onednn

COMMUNICATION_TIMEOUT = datetime.timedelta(minutes=10)

# options of mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_CPU = torch.device("cpu")
_prepared = False


def has_gpu() -> bool:
    """Whether CUDA kernels can run here."""
    return torch.cuda.is_available()


def current() -> torch.device:
    """The device this process computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else _CPU


def gpu_name() -> str | None:
    """The UUID of the GPU that this process computes on, the same in every process of every machine; None on a CPU."""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid) if has_gpu() else None


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which precision to multiply matrices of `dtype`: fp32 for bf16 and fp16 on a CPU without units for bf16, whose
    library functions would take a hundred times as long. The products are the more exact for it."""
    if has_gpu() or dtype == torch.float32:
        return dtype
    cpu: Any = torch.cpu
    fast = dtype == torch.bfloat16 and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return dtype if fast else torch.float32


def init_process_group() -> None:
    """Join the process group that torchrun describes in the environment: NCCL on GPUs, gloo on CPUs."""
    if dist.is_initialized():
        return
    if has_gpu():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("nccl" if has_gpu() else "gloo", timeout=COMMUNICATION_TIMEOUT)


def prepare() -> None:
    """Let Megatron-core and NeMo-Aligner run without CUDA. Does nothing where there is a GPU, or the second time."""
    global _prepared
    if _prepared or has_gpu():
        return
    _prepared = True
    keep_freed_memory()
    onednn.use_onednn()
    # torch looks its constructors up once, when a `with torch.device(...)` is first entered: it must find its own, or
    # that context would have no effect on the wrapped ones, and transformers load models half initialised.
    _device._device_constructors()
    # `python -m qedmeg doctor` says what is missing and why; each import need not
    warnings.filterwarnings("ignore", message=".*(Apex|Transformer Engine).*", module="megatron")
    for name in ("tensor", "as_tensor", "zeros", "ones", "empty", "full", "zeros_like", "empty_like", "arange"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    _patch_tensor_methods()
    _patch_torch_cuda()
    _patch_gloo()
    # Imported late: Megatron-core reads torch.cuda while it is imported. It also hands small functions to
    # torch.compile, which on a CPU costs seconds of import and a C++ compiler, and gains nothing.
    compiler = torch.compile
    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    try:
        from megatron.core import jit
        from megatron.core.tensor_parallel import random
    finally:
        torch.compile = compiler
    jit.disable_jit_fuser()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.default_generator.set_state(state)
    random._get_cuda_rng_state = lambda *_, **__: torch.default_generator.get_state()


def keep_freed_memory() -> None:
    """Let glibc hand freed memory out again instead of giving it back to the system.

    By default each large tensor is new memory, which the system clears page by page when it is first touched: for the
    passes over a chunk of logits, and for weights that an engine receives, that takes longer than the work itself.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:  # else it is another C library
        set_option(_M_MMAP_THRESHOLD, 2**30)
        set_option(_M_TRIM_THRESHOLD, 2**31 - 1)


def _is_cuda(device: object) -> bool:
    return str(device).startswith("cuda") if isinstance(device, str | torch.device) else False


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A tensor factory that takes `device="cuda"` for the CPU and pinned memory for ordinary memory."""

    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


def _patch_tensor_methods() -> None:
    tensor: Any = torch.Tensor  # patched, which the type checker rightly dislikes
    tensor.cuda = lambda self, *_, **__: self
    tensor.pin_memory = lambda self, *_, **__: self
    module: Any = torch.nn.Module
    module.cuda = lambda self, *_, **__: self
    type_of = tensor.type

    def cuda_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # The optimizers sort parameters by comparing type() with 'torch.cuda.FloatTensor' and its like.
        answer = type_of(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    tensor.type = cuda_type


class _Stream:
    """A stream or an event of a device that does everything at once. A class: others annotate with it."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    wait_stream = wait_event = record = synchronize = wait

    def record_event(self, *_: Any) -> "_Stream":
        return self

    def query(self) -> bool:
        return True


def _patch_torch_cuda() -> None:
    cuda: Any = torch.cuda
    cpu_generator = torch.default_generator
    cuda.current_device = lambda: _CPU
    cuda.get_rng_state = lambda *_, **__: cpu_generator.get_state()
    cuda.random.get_rng_state = lambda *_, **__: cpu_generator.get_state()
    cuda.set_rng_state = lambda state, *_, **__: cpu_generator.set_state(state)
    cuda.manual_seed = lambda seed: cpu_generator.manual_seed(seed)
    cuda.Stream = cuda.Event = _Stream
    cuda.FloatTensor, cuda.LongTensor = torch.FloatTensor, torch.LongTensor
    answers: dict[str, Callable[[], Any]] = {
        **dict.fromkeys(("set_device", "synchronize", "empty_cache"), lambda: None),
        **dict.fromkeys(("current_stream", "default_stream"), _Stream),
        **dict.fromkeys(("memory_allocated", "memory_reserved"), lambda: 0),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), lambda: 0),
        "mem_get_info": lambda: (0, 1),
        "get_device_properties": lambda: types.SimpleNamespace(total_memory=1, name="cpu"),
    }
    for name, answer in answers.items():
        # a function of its own for each name: torch.compile refuses to start when two share one
        setattr(cuda, name, lambda *_, _answer=answer, **__: _answer())


def _patch_gloo() -> None:
    """gloo refuses a 0-d input to `all_gather_into_tensor`, which NCCL takes; NeMo-Aligner gives one."""
    module: Any = dist
    gather = module.all_gather_into_tensor

    def all_gather_into_tensor(output: torch.Tensor, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return gather(output, tensor.reshape(1) if tensor.ndim == 0 else tensor, *args, **kwargs)

    module.all_gather_into_tensor = all_gather_into_tensor
