"""Which shard an entity belongs to: the same in every run, on every machine, for any number of workers."""

import zlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from freshet.schemas.view import View


def split(inputs: pa.Table, view: View, shards_count: int) -> dict[int, pa.Table]:
    """Return the events of each shard that has some. Events without an entity belong to none."""
    table = inputs.combine_chunks()
    for column in view.entity_names:
        if table.column(column).null_count:
            table = table.filter(table.column(column).is_valid())
    if shards_count == 1 or table.num_rows == 0:
        return {0: table} if table.num_rows else {}
    shards = hashes(table, view) % shards_count
    counts = np.bincount(shards, minlength=shards_count)
    return {shard: table.filter(pa.array(shards == shard)) for shard in np.flatnonzero(counts).tolist()}


def hashes(table: pa.Table, view: View) -> npt.NDArray[np.int64]:
    """Return one number for the entity of each row, of a table in which all are known."""
    found = np.zeros(table.num_rows, np.int64)
    for column in view.entity_names:
        encoded = table.column(column).combine_chunks().dictionary_encode()
        words = [str(value).encode() for value in encoded.dictionary.to_pylist()]
        crcs = np.array([zlib.crc32(word) for word in words], np.int64)
        found = found * 31 + crcs[encoded.indices.to_numpy(zero_copy_only=False)]
    return found
