"""Where a run keeps what it has found: in a file that outlives it, or in memory.

    page 0            facts about the run, JSON: a run is continued only by one of the same facts
    page 1            progress: what is done, and how much of that the disk has confirmed
    limits [n]        float64, the outlier limits of this rank's rows
    home [n]          records of this rank's rows
    away [m]          what this rank has found for the rows that visit it in the current step
    ranked 0, 1 [n]   each row's nearest negatives, [K] RANKED: one holds those of the last step's end

Records are written before the progress that counts them. Updates commute and repeating one changes nothing,
so work that was recorded and not counted is done again without harm. A record never straddles a page, so no
kill tears one; lists of negatives may, and are written where no counted work is kept. After a power cut only
confirmed progress counts.
"""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from minerlib import files
from minerlib._whole_files import fcntl, replacing
from minerlib.offline._bests import RANKED, RECORD, no_records

_PAGE = 4096
_PROGRESS = struct.Struct("<36s4q")  # boot, step, done; confirmed step, done
_SYNC_SECONDS = 5.0
_WRITTEN = 1 << 16  # records at a time


class Memory:
    """The state of a run that leaves none."""

    path: Path | None = None

    def __init__(self, rows: int, visitors: int, ranked: int) -> None:
        self.step, self.done = 0, 0
        self._ranked = [no_ranked(rows, ranked), no_ranked(rows, ranked)]
        self._limits = np.full(rows, np.inf)
        self._records = {"home": no_records(rows), "away": no_records(visitors)}

    def limits(self, first: int, last: int) -> np.ndarray:
        return self._limits[first:last]

    def set_limits(self, first: int, values: np.ndarray) -> None:
        self._limits[first : first + len(values)] = values

    def records(self, where: str, first: int, last: int) -> np.ndarray:
        return self._records[where][first:last].copy()

    def set_records(self, where: str, first: int, records: np.ndarray) -> None:
        self._records[where][first : first + len(records)] = records

    def ranked(self, turn: int, first: int, last: int) -> np.ndarray:
        return self._ranked[turn % 2][first:last].copy()

    def set_ranked(self, turn: int, first: int, values: np.ndarray) -> None:
        self._ranked[turn % 2][first : first + len(values)] = values

    def forget_visitors(self) -> None:
        self._records["away"]["id"] = -1

    def advance(self, step: int, done: int) -> None:
        self.step, self.done = step, done

    def sync(self) -> None:
        pass

    def close(self, remove: bool = False) -> None:
        pass


class StateFile:
    """The state of a run in a file, which it creates or continues."""

    def __init__(self, path: Path, facts: dict[str, Any], rows: int, visitors: int, ranked: int) -> None:
        self.path, self.step, self.done = path, 0, 0
        self._confirmed = (0, 0)
        self._rows, self._visitors, self._k = rows, visitors, ranked
        self._places = {"limits": 2 * _PAGE}
        self._places["home"] = 2 * _PAGE + -(-rows * 8 // _PAGE) * _PAGE
        self._places["away"] = self._places["home"] + rows * RECORD.itemsize
        self._places["0"] = self._places["away"] + visitors * RECORD.itemsize
        self._places["1"] = self._places["0"] + rows * ranked * RANKED.itemsize
        self._size = self._places["1"] + rows * ranked * RANKED.itemsize
        try:
            if not path.exists():
                self._create(facts)
            self._file = os.open(path, os.O_RDWR)
        except OSError as error:
            self._fail(error)
        try:
            self._lock()
            self._check(facts)
            self._restore()
        except BaseException:
            os.close(self._file)
            raise
        self._synced = time.monotonic()

    def limits(self, first: int, last: int) -> np.ndarray:
        return np.frombuffer(self._read("limits", first * 8, (last - first) * 8), np.float64)

    def set_limits(self, first: int, values: np.ndarray) -> None:
        self._write("limits", first * 8, np.ascontiguousarray(values, np.float64))

    def records(self, where: str, first: int, last: int) -> np.ndarray:
        size = RECORD.itemsize
        return np.frombuffer(bytearray(self._read(where, first * size, (last - first) * size)), RECORD)

    def set_records(self, where: str, first: int, records: np.ndarray) -> None:
        self._write(where, first * RECORD.itemsize, records)

    def ranked(self, turn: int, first: int, last: int) -> np.ndarray:
        size = self._k * RANKED.itemsize
        data = self._read(str(turn % 2), first * size, (last - first) * size)
        return np.frombuffer(bytearray(data), RANKED).reshape(last - first, self._k)

    def set_ranked(self, turn: int, first: int, values: np.ndarray) -> None:
        flat = np.ascontiguousarray(values).reshape(-1)
        self._write(str(turn % 2), first * self._k * RANKED.itemsize, flat)

    def forget_visitors(self) -> None:
        for first in range(0, self._visitors, _WRITTEN):
            self.set_records("away", first, no_records(min(_WRITTEN, self._visitors - first)))

    def advance(self, step: int, done: int) -> None:
        """Count everything recorded so far as done."""
        self.step, self.done = step, done
        self._write_progress()
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Have the disk confirm what is recorded and counted."""
        try:
            os.fsync(self._file)
        except OSError as error:
            self._fail(error)
        self._confirmed = (self.step, self.done)
        self._write_progress()
        self._synced = time.monotonic()

    def close(self, remove: bool = False) -> None:
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def _create(self, facts: dict[str, Any]) -> None:
        """All of its room is taken now: a full disk is found before the work and not after."""
        text = json.dumps(facts).encode()
        assert len(text) < _PAGE, "facts are few"
        with replacing(self.path) as stream:
            stream.write(text.ljust(_PAGE))
            stream.write(_PROGRESS.pack(_boot(), 0, 0, 0, 0).ljust(_PAGE, b"\0"))
            for first in range(0, self._rows, _WRITTEN):
                count = min(_WRITTEN, self._rows - first)
                stream.write(np.full(count, np.inf).tobytes())
            stream.seek(self._places["home"])
            rows = self._rows + self._visitors
            for first in range(0, rows, _WRITTEN):
                stream.write(no_records(min(_WRITTEN, rows - first)).tobytes())
            step = max(1, _WRITTEN // max(1, self._k))
            for first in range(0, 2 * self._rows if self._k else 0, step):
                stream.write(no_ranked(min(step, 2 * self._rows - first), self._k).tobytes())

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise files.FileError(f"{self.path}: another run is at work on this output") from None
        except OSError:  # a file system without locks
            pass

    def _check(self, facts: dict[str, Any]) -> None:
        advice = "remove it to mine anew, or choose another output"
        try:
            found = json.loads(os.pread(self._file, _PAGE, 0))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise files.FileError(f"{self.path}: expected the state of an unfinished run; {advice}")
        for name, value in facts.items():
            if found.get(name) != value:
                raise files.FileError(
                    f"{self.path}: left by an unfinished run with {name} {found.get(name)!r}, not {value!r}; "
                    f"run that again to finish it, {advice}"
                )
        if os.fstat(self._file).st_size < self._size:
            raise files.FileError(f"{self.path}: the state of an unfinished run was cut short; {advice}")

    def _restore(self) -> None:
        boot, step, done, *confirmed = _PROGRESS.unpack(os.pread(self._file, _PROGRESS.size, _PAGE))
        self._confirmed = (confirmed[0], confirmed[1])
        self.step, self.done = (step, done) if boot == _boot() else self._confirmed

    def _write_progress(self) -> None:
        self._put(_PAGE, _PROGRESS.pack(_boot(), self.step, self.done, *self._confirmed))

    def _read(self, where: str, start: int, size: int) -> bytes:
        parts, place = [], self._places[where] + start
        while size:
            part = os.pread(self._file, min(size, 1 << 28), place)
            if not part:
                raise files.FileError(f"{self.path}: cut short while it was used")
            parts.append(part)
            size, place = size - len(part), place + len(part)
        return b"".join(parts)

    def _write(self, where: str, start: int, values: np.ndarray) -> None:
        self._put(self._places[where] + start, values.tobytes())

    def _put(self, place: int, data: bytes) -> None:
        try:
            while data:
                written = os.pwrite(self._file, data, place)
                data, place = data[written:], place + written
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> NoReturn:
        raise files.FileError(f"{self.path}: cannot be written ({error.strerror or error})") from None


def no_ranked(rows: int, k: int) -> np.ndarray:  # [n, K] RANKED
    ranked = np.zeros((rows, k), dtype=RANKED)
    ranked["value"], ranked["id"] = np.inf, -1
    return ranked


def _boot() -> bytes:
    """What changes when the machine starts anew; without it, only confirmed progress counts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36].ljust(36)
    except OSError:
        return os.urandom(18).hex().encode()
