"""Errors that are the user's to mend, and how every command ends."""

import difflib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterable

EXIT_DIFFERS = 1  # the command worked and found what should be equal to differ
EXIT_FAILED = 1  # what was begun failed: an engine, a grader, a diverging loss
EXIT_USER_ERROR = 2  # the user's to mend: bad input, before anything is begun, or a full disk
SECONDS_FOR_RANK_0 = 3.0
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
EXIT_REQUEUE = 75  # stopped by SIGTERM after a save (EX_TEMPFAIL): the same command goes on from there


class UserError(Exception):
    """A mistake in what the user gave: one message naming the file, the field, the value and the remedy.

    Raised before training or conversion begins, or where a disk is full. Commands print it without a traceback and exit
    with status 2.
    """


class RunFailed(Exception):
    """What ended a run that had begun, for a reason outside this program: one message naming what failed, and why.

    Commands print it without a traceback and exit with status 1.
    """


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first of all that the tasks of a group raised."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def near_miss(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known name nearest to `name`, or an empty string when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _main_with_user_errors(main: Callable[[], int]) -> int:
    try:
        return main()
    except (PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        if error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; give another path, or mend its permissions") from error
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror}; make room, and run the same command again") from error


def run_command(main: Callable[[], int]) -> None:
    """Run a command's `main` and exit with its status; a `UserError` becomes one line on stderr and status 2, and a
    `RunFailed` one and status 1."""
    try:
        status = _main_with_user_errors(main)
    except (UserError, RunFailed) as error:
        rank = os.environ.get("LOCAL_RANK", "0")
        if rank != "0":
            # Under torchrun: mostly rank 0 has the same error, and torchrun ends this rank when rank 0 has told it.
            time.sleep(SECONDS_FOR_RANK_0)
        print(f"error: {error}" if rank == "0" else f"error on rank {rank}: {error}", file=sys.stderr, flush=True)
        status = EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status)
