"""SHA256SUMS: every file of a folder with its checksum, in the form that `sha256sum --check` reads."""

from pathlib import Path

from qedmeg.errors import UserError
from qedmeg.lineage.files import sha256

SUMS_FILE = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all files of a folder; last, since it is the mark of a whole one."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in _names(folder)]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path) -> None:
    """See that a folder holds the files of its SHA256SUMS, unchanged, and no others.

    Raises:
        UserError: naming the first file that it does not hold so.
    """
    path = folder / SUMS_FILE
    if not path.is_file():
        raise UserError(f"{folder}: holds no {SUMS_FILE}: no whole release; make one with --run")
    stated = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        checksum, gap, name = line.partition("  ")
        if not gap:
            raise UserError(f"{path}:{number}: no checksum and name; make the release again")
        stated[name] = checksum
    present = _names(folder)
    for name in sorted(stated.keys() | set(present)):
        if name not in stated:
            raise UserError(f"{folder / name}: is not in {SUMS_FILE}; remove it, or make the release again")
        if name not in present:
            raise UserError(f"{folder / name}: is in {SUMS_FILE} and not there; make the release again")
        if sha256(folder / name) != stated[name]:
            raise UserError(f"{folder / name}: has not the checksum of {SUMS_FILE}; make the release again")


def _names(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name != SUMS_FILE)
