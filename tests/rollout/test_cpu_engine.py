"""What replaces methods of vLLM's does what they do."""

import numpy as np
import pytest
import torch

from qedmeg.rollout.engine import Request, sampling_settings
from qedmeg.rollout.sample import Sampling


def _generators(count: int) -> dict[int, torch.Generator]:
    # not in the order of the rows, as after requests have ended
    return {row: torch.Generator().manual_seed(7 * row) for row in reversed(range(count))}


def test_seeded_rows_get_vllms_tokens_and_logprobs():
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    from qedmeg.rollout import cpu_engine

    sampler = TopKTopPSampler("processed_logprobs")
    ours, theirs = _generators(5), _generators(5)
    draw = torch.Generator().manual_seed(0)
    for step in range(2 * cpu_engine.SEEDS_AT_A_TIME + 3):
        if step == 40:  # a request ends, and the last row takes its place
            for generators in (ours, theirs):
                generators[1] = generators.pop(4)
        logits = torch.randn(len(ours), 300, generator=draw)
        tokens, logprobs = cpu_engine.sample(sampler, logits.clone(), ours, None, None)
        expected, expected_logprobs = cpu_engine.sample_by_vllm(sampler, logits.clone(), theirs, None, None)
        assert tokens.tolist() == expected.tolist()
        assert torch.equal(logprobs, expected_logprobs)


def test_rows_with_and_without_seeds_get_vllms_tokens():
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    from qedmeg.rollout import cpu_engine

    sampler, k_B = TopKTopPSampler("raw_logprobs"), torch.tensor([3, 300, 20, 300])
    found = []
    for sample in (cpu_engine.sample, cpu_engine.sample_by_vllm):
        generators, draw, tokens = _generators(4), torch.Generator().manual_seed(0), []
        for without in (None, 2, None):  # a row without a seed comes and goes
            given = {row: generator for row, generator in generators.items() if row != without}
            tokens.append(sample(sampler, torch.randn(4, 300, generator=draw), given, k_B, None)[0].tolist())
        found.append(tokens)
    for ours, theirs, seeded in zip(*found, ([0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3]), strict=True):
        assert [ours[row] for row in seeded] == [theirs[row] for row in seeded]


@pytest.mark.parametrize("flat", [True, False])
def test_logprobs_of_many_tokens_are_kept_as_vllm_keeps_them(flat):
    from vllm.logprobs import create_sample_logprobs
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists

    from qedmeg.rollout import cpu_engine

    kept = []
    for update in (cpu_engine.add_logprobs, cpu_engine.add_logprobs_by_vllm):
        processor = LogprobsProcessor(
            tokenizer=None,
            logprobs=create_sample_logprobs(flat),
            prompt_logprobs=None,
            cumulative_logprob=0.0,
            num_logprobs=0,
            num_prompt_logprobs=None,
        )
        for count in (3, 1, 2):
            ids, values = np.arange(count)[:, None] + 10, -np.arange(1, count + 1, dtype=np.float32)[:, None] / 3
            update(processor, LogprobsLists(ids, values, np.arange(count) + 1))
        assert len(processor.logprobs) == 6
        kept.append((list(processor.logprobs), processor.logprobs, processor.cumulative_logprob))
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("changed", "plain"),
    [
        ({}, True),
        ({"temperature": 0.7, "stop_token_ids": [1, 2]}, True),
        ({"temperature": 0.0}, False),
        ({"seed": None}, False),
        ({"top_p": 0.9}, False),
        ({"top_k": 5}, False),
        ({"min_p": 0.1}, False),
        ({"min_tokens": 3}, False),
        ({"logprobs": 2}, False),
        ({"logprobs": None}, False),
        ({"prompt_logprobs": 0}, False),
        ({"logit_bias": {3: 1.0}}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"presence_penalty": 0.1}, False),
        ({"bad_words": ["a"]}, False),
        ({"allowed_token_ids": [1, 2]}, False),
    ],
)
def test_bursts_are_of_requests_that_nothing_but_a_temperature_changes(changed, plain):
    from vllm import SamplingParams

    from qedmeg.rollout.decode_worker import is_plain

    asked = sampling_settings(Sampling(1.0, 100, (7,), 0), Request(np.array([1], dtype=np.int32), 3))
    assert is_plain(SamplingParams(**(asked | changed))) == plain
