"""The process in which answers are compared: one JSON line in, one out. Whoever started it ends it at the deadline.

python -m qedmeg.grading.answer_worker SECONDS MEGABYTES
"""

import json
import resource
import signal
import sys

from qedmeg.grading.answer_equality import compare_answers
from qedmeg.grading.answer_text import Comparison


def main() -> None:
    """Answer until the input ends."""
    seconds, megabytes = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        signal.alarm(2 * seconds)  # ends it where nobody is left to do so
        try:
            found = compare_answers(question["reference"], question["answer"], question["statement"])
        except Exception as error:  # whatever sympy does with hostile input, MemoryError and RecursionError included
            found = Comparison(None, f"the comparison failed: {type(error).__name__}")
        signal.alarm(0)
        print(json.dumps([found.same, found.reason]), flush=True)


if __name__ == "__main__":
    main()
