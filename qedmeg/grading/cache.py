"""Verdicts that were paid for are kept on disk."""

import asyncio
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from qedmeg.errors import UserError
from qedmeg.grading.grade import Graded

LOCK_SECONDS = 30.0
_GRADED = TypeAdapter(Graded)
logger = logging.getLogger(__name__)


class GradeCache:
    """Grades by key, in an SQLite file that several processes may use. Of two grades for a key the first stays.

    Its work is done in a thread of its own. Trouble with the file after it was opened (a full disk) costs the keeping,
    never a grade: it is logged once. Raises `UserError` when the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grade-cache")
        self._warned = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._thread.submit(_open, path).result()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{path}: cannot be used as a cache of grades: {error}") from None

    async def get(self, key: str) -> Graded | None:
        """The grade kept under the key."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._get, key)

    async def put(self, key: str, graded: Graded) -> None:
        """Keep a grade, unless there is one."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._put, key, graded)

    def close(self) -> None:
        """Close the file, after what is being written."""
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    def _get(self, key: str) -> Graded | None:
        try:
            row = self._database.execute("SELECT graded FROM grades WHERE key = ?", (key,)).fetchone()
            return None if row is None else _GRADED.validate_json(row[0])
        except (sqlite3.Error, ValidationError) as error:
            self._warn(error)
            return None

    def _put(self, key: str, graded: Graded) -> None:
        row = (key, _GRADED.dump_json(graded).decode())
        try:
            with self._database:
                self._database.execute("INSERT OR IGNORE INTO grades VALUES (?, ?)", row)
        except sqlite3.Error as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s: grades are not kept: %s", self.path, error)


def _open(path: Path) -> sqlite3.Connection:
    # SQLite's default journal, not WAL, which a network file system cannot hold.
    database = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
    with database:
        database.execute("CREATE TABLE IF NOT EXISTS grades (key TEXT PRIMARY KEY, graded TEXT NOT NULL)")
    return database
