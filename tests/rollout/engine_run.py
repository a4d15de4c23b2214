"""Another run of two engines, with vLLM's own scheduler: `python -m tests.rollout.engine_run FOLDER` prints the digest
of the samples of `policies.batch()`."""

import asyncio
import sys
from pathlib import Path

from qedmeg.rollout.fleet import LocalFleet
from tests.rollout import policies


async def main(folder: Path) -> None:
    options = policies.options(scheduler_cls="vllm.v1.core.sched.scheduler.Scheduler")
    fleet = LocalFleet(folder / "1", options, engines=2)
    await fleet.start()
    await policies.send(fleet, policies.load(folder, 1), 1)
    print(policies.digest(await policies.generate(fleet, policies.batch(), policies.sampling())))
    await fleet.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
