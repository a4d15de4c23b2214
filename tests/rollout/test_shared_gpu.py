"""Which GPUs engines are started on, which of them share one with the trainer, and what follows from it."""

import pytest

from qedmeg import device
from qedmeg.config_rl import RolloutConfig
from qedmeg.errors import UserError
from qedmeg.rollout.engine import rollout_options
from qedmeg.rollout.fleet import Place, places
from qedmeg.rollout.weight_transfer import over_host_memory


@pytest.mark.parametrize(
    ("settings", "seen", "trainer", "found"),
    [
        ({}, "0", 1, [Place(("0",), True)]),
        ({}, "0 1", 1, [Place(("1",), False)]),
        ({"devices": (0,)}, "0 1", 1, [Place(("0",), True)]),
        ({"tp": 2}, "0 1 2", 2, [Place(("2", "0"), True)]),
        ({"start": 2}, "0 1 2 3", 2, [Place(("2",), False), Place(("3",), False)]),
        ({"start": 2}, "4 GPU-a GPU-b", 2, [Place(("GPU-b",), False), Place(("4",), True)]),
        ({"start": 2, "devices": (7, 6)}, "6 7", 1, [Place(("7",), False), Place(("6",), True)]),
    ],
)
def test_engines_get_the_trainers_gpus_last(settings, seen, trainer, found):
    assert places(RolloutConfig(**settings), seen.split(), trainer) == found


def test_too_few_gpus():
    with pytest.raises(UserError, match=r"start 2 × tp 2 GPUs are needed, and there are 3; lower one of them"):
        places(RolloutConfig(start=2, tp=2), ["0", "1", "2"], 1)


@pytest.mark.parametrize(
    ("engine", "trainer", "found"),
    [((), None, True), (("a",), "a", True), (("b", "a"), "a", True), (("b",), "a", False), ((), "a", False)],
)
def test_weights_go_over_host_memory_where_nccl_would_refuse(engine, trainer, found):
    assert over_host_memory(engine, trainer) is found


@pytest.mark.parametrize(
    ("kv_cache_gib", "shares_gpu", "found"),
    [
        (None, False, {}),  # vLLM's own share of a GPU
        (None, True, {"gpu_memory_utilization": 0.3}),
        # vLLM starts only where its share is free, whatever is asked of it for keys and values
        (2.0, True, {"gpu_memory_utilization": 0.01, "kv_cache_memory_bytes": 2 << 30}),
        (2.0, False, {"gpu_memory_utilization": 0.01, "kv_cache_memory_bytes": 2 << 30}),
    ],
)
def test_memory_of_an_engine_on_a_gpu(monkeypatch, kv_cache_gib, shares_gpu, found):
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    options = rollout_options(64, 1, 8, kv_cache_gib, shares_gpu=shares_gpu)
    memory = ("gpu_memory_utilization", "kv_cache_memory_bytes")
    assert {name: options[name] for name in memory if name in options} == found
    assert "enforce_eager" not in options
