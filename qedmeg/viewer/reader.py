"""An SQLite file that is only read, while others may write it."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from qedmeg.errors import UserError

LOCK_SECONDS = 30.0


class Reader:
    """A file with certain tables. Used from one thread at a time."""

    def __init__(self, path: Path, kind: str, tables: Sequence[str]) -> None:
        """`kind` says in words what the file should be. Raises UserError where it is not."""
        self._path, self._kind = path, kind
        self._version = -1
        try:
            uri = f"{path.absolute().as_uri()}?mode=ro"
            self._database = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, check_same_thread=False)
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be read as {kind}: {error}") from None
        try:
            found = {name for (name,) in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
            missing = [name for name in tables if name not in found]
            if missing:
                raise UserError(f"{path}: no table '{missing[0]}', so that it is not {kind}; give another path")
        except BaseException:
            self._database.close()
            raise

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query. Raises UserError where the file cannot be read."""
        try:
            with closing(self._database.execute(statement, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._path}: cannot be read as {self._kind}: {error}") from None

    def changed(self) -> bool:
        """Whether somebody wrote to the file since this was last asked; the first answer is yes."""
        ((version,),) = self.rows("PRAGMA data_version")
        before, self._version = self._version, version
        return bool(before != version)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
