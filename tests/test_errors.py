"""How commands end."""

import errno
import os

import pytest

from qedmeg.errors import EXIT_FAILED, EXIT_USER_ERROR, RunFailed, UserError, run_command

FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a.yaml: lr: -1 is negative"), EXIT_USER_ERROR, "a.yaml: lr: -1 is negative"),
        (RunFailed("the engine died"), EXIT_FAILED, "the engine died"),
        (
            OSError(errno.ENOSPC, FULL, "run/metrics.jsonl"),
            EXIT_USER_ERROR,
            f"run/metrics.jsonl: {FULL}; make room, and run the same command again",
        ),
        (OSError(errno.ENOSPC, FULL), EXIT_USER_ERROR, f"{FULL}; make room, and run the same command again"),
        (
            PermissionError(errno.EACCES, "Permission denied", "out"),
            EXIT_USER_ERROR,
            "out: Permission denied; give another path, or mend its permissions",
        ),
    ],
)
def test_what_is_no_mistake_of_the_program_is_one_line(error, status, line, capsys):
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == status
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.EIO, "Input/output error"), RuntimeError("a bug")])
def test_a_mistake_of_the_program_keeps_its_traceback(error):
    def main() -> int:
        raise error

    with pytest.raises(type(error)):
        run_command(main)
