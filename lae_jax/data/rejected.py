"""Rows that a reader refused: a list that stays small in memory, even with millions of rows."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

_BATCH_ROWS = 1 << 13
_SCHEMA = pa.schema([("name", pa.string()), ("reason", pa.string())])


class Rejected(Sequence):
    """A list of (name, reason) that grows by `append` and keeps its rows as Arrow text."""

    def __init__(self):
        self._batches: list[pa.RecordBatch] = []
        self._pending: list[tuple[str, str]] = []

    def append(self, row: tuple[str, str]) -> None:
        """Adds a (name, reason)."""
        self._pending.append(row)
        if len(self._pending) == _BATCH_ROWS:
            columns = zip(*self._pending, strict=True)
            self._batches.append(pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=_SCHEMA))
            self._pending = []

    def __len__(self) -> int:
        return _BATCH_ROWS * len(self._batches) + len(self._pending)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for batch in self._batches:
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
        yield from self._pending

    def __getitem__(self, at: int) -> tuple[str, str]:
        batch, row = divmod(range(len(self))[at], _BATCH_ROWS)
        if batch == len(self._batches):
            return self._pending[row]
        return tuple(column[row].as_py() for column in self._batches[batch].columns)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other)
