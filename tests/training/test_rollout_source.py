"""Weights from a trainer's ranks to a real rollout process, whose engine is scripted to take none."""

import contextlib
import functools
import io
from types import SimpleNamespace
from typing import Any

import pytest

from tests.rollout.collecting import Setting, make_setting
from tests.rollout.scripted import COMMAND, Script


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("setting"))


def publish_and_ask(config: Any) -> tuple[str, str, str, int]:
    """What a batch ended with and its message, what was printed, and how often rank 0 was heard of in the first
    transfer; runs on each rank of a pool."""
    import torch.distributed as dist

    from qedmeg.rollout.client import RolloutClient
    from qedmeg.training import rollout_source
    from tests.rollout.transfer_ends import build

    model, chunks = build(config.model.hf, {})
    heard, broadcast = [], dist.broadcast
    rollout_source.RolloutClient = functools.partial(RolloutClient, command=COMMAND)
    rollout_source.HEARTBEAT_SECONDS = 0.02
    printed = io.StringIO()
    try:
        policy: Any = SimpleNamespace(chunks=chunks, model=model)
        with (
            contextlib.redirect_stderr(printed),
            rollout_source.RolloutSource(config, config.model.hf, policy, []) as it,
        ):
            dist.broadcast = lambda *arguments: (heard.append(0), broadcast(*arguments))
            try:
                it.publish(0)
            finally:
                dist.broadcast = broadcast
            it.batch(0)
    except Exception as error:
        return type(error).__name__, str(error), printed.getvalue(), len(heard)
    finally:
        rollout_source.RolloutClient, rollout_source.HEARTBEAT_SECONDS = RolloutClient, 60.0
    return "", "", printed.getvalue(), len(heard)


def test_where_no_engine_takes_weights_the_run_ends_and_says_why(ranks, setting, tmp_path):
    config = setting.config(tmp_path / "run")
    Script(refuses_weights=True, pause_seconds=0.5).write(config.run_dir)
    (kind, message, printed, _), (other_kind, other_message, _, heard) = ranks(publish_and_ask, 2, config)
    assert (kind, message) == (other_kind, other_message)
    assert kind == "RunFailed"
    assert message.startswith("no engine has received weights, 3 times one after the other, the last time version 0: ")
    assert "scripted: size mismatch: it serves another model; look into" in message
    assert printed.count("engine scripted has not got weight version 0: size mismatch") == 3
    assert heard > 4  # ranks that wait hear of rank 0 while it pauses engines


def test_what_a_transfer_lost_is_told_though_engines_do_not_go_on(ranks, setting, tmp_path):
    config = setting.config(tmp_path / "run")
    Script(refuses_weights=True, resumes=False).write(config.run_dir)
    (kind, message, printed, _), (other_kind, _, _, _) = ranks(publish_and_ask, 2, config)
    assert kind == other_kind == "RolloutFailed"
    assert "it cannot be resumed" in message
    assert printed.count("engine scripted has not got weight version 0: size mismatch") == 1
