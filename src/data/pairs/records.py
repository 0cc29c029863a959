"""`records:DIR`: pairs of a record set whose records carry texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ..record import PICTURE, RecordError, decode_record, read_header, stored_image
from ..records import RecordSet
from .columns import Columns
from .source import Entry, PairError, PairSource


class RecordPairs(PairSource):
    """The records of a set, of pictures or of patches.

    Its columns are the texts of a record and its given labels.

    Args:
      record_set: the set.
      columns: which are what; None: the texts of a record are those of the pair.

    Attributes:
      record_set: as given.
      pictures: whether it holds pictures.
    """

    def __init__(self, record_set: RecordSet, columns: Columns | None = None) -> None:
        super().__init__(f"records:{record_set.path}", columns or Columns(texts={}))
        self.record_set = record_set
        self.pictures = record_set.manifest.get("storage") == PICTURE

    @functools.cached_property
    def keys(self) -> Sequence[str]:
        return self.record_set.keys

    def __len__(self) -> int:
        return len(self.record_set)

    @property
    def stamp(self) -> str:
        return self.record_set.shard_hash

    def entry(self, index: int, columns: Sequence[str], media: bool = True) -> Entry:
        image = record = None
        try:
            data = self.record_set.read(index)
            if self.pictures:
                header, image = stored_image(data)
            else:
                header = read_header(data)
                record = decode_record(data) if media else None
        except RecordError as error:
            raise PairError(f"record {index}", "undecodable", str(error)) from error
        fields = {**header["labels"], **header.get("texts", {})}
        return Entry(header["key"], fields, image, record)

    def texts_of(self, key: str, fields: Mapping[str, Any]) -> dict[str, str]:
        if self.columns.texts:
            return super().texts_of(key, fields)
        return {name: text for name, text in fields.items() if name.startswith("text_")}
