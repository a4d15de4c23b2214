"""When the steps of a run of TRL ended; TRL's programs beside this file import it as scripts do."""

import time

from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Seconds since the epoch at the start of the first step and at the end of each."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *_: object, **__: object) -> None:
        if not self.times:
            self.times.append(time.time())

    def on_step_end(self, *_: object, **__: object) -> None:
        self.times.append(time.time())
