"""Record sets of hand-made records, for tests of all that reads them."""

from __future__ import annotations

from pathlib import Path

from codecvit.data.records import RecordSet, write_set
from codecvit.data.shards import ShardWriter, shard_name


class RecordWriter:
    """Writes one record set; its shards are those of the plan, whatever is left out.

    Args:
      folder: of the set.
      plan: per shard the range of places that it covers.
    """

    def __init__(self, folder, plan):
        self._folder, self._plan = Path(folder), plan
        self._rows = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, place, data, entry):
        """Bytes of `encode_record`, and the line of the index: key, length, labels."""
        self._rows[place] = (data, dict(entry))

    def finish(self, description, failures):
        """The set, opened; arguments as for `write_set`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        shards, index = [], []
        for number, places in enumerate(self._plan):
            rows = [self._rows[place] for place in places if place in self._rows]
            with ShardWriter(self._folder, shard_name(number, len(self._plan))) as shard:
                for data, _ in rows:
                    shard.write(data)
                shards.append(shard.close())
            index += [entry for _, entry in rows]
        write_set(self._folder, description, shards, index, failures)
        return RecordSet(self._folder)
