"""`tfds:DIR`: a TFDS folder of ArrayRecord files, read without TensorFlow (extra `tfds`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .columns import Columns
from .source import Entry, PairError, PairSource, file_stamp


class TfdsPairs(PairSource):
    """The examples of one split.

    Args:
      folder: folder of one version of one data set (that with features.json in it).
      split: name of the split, also as `train[:1000]`.
      columns: which are what; of a class label the name of the class is the text.

    Raises:
      ValueError: tensorflow_datasets is not installed, or the folder is none of ArrayRecords.
    """

    def __init__(self, folder: str, split: str, columns: Columns) -> None:
        super().__init__(f"tfds:{folder}", columns)
        self._folder, self._split = folder, split
        self._open()
        count = len(self._source)
        self._keys = [f"{split}-{number:08d}" for number in range(count)]

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def stamp(self) -> str:
        # It holds the number of examples and of bytes of every shard.
        return f"{self._split} {file_stamp(Path(self._folder) / 'dataset_info.json')}"

    def entry(self, index: int, columns: Sequence[str], media: bool = True) -> Entry:
        key = self._keys[index]
        try:
            row = self._source[index]
        except (ValueError, RuntimeError) as error:
            raise PairError(key, "undecodable", str(error)) from error
        fields = {name: row[name] for name in columns if name in row}
        for name in fields.keys() & self._classes.keys():
            fields[name] = self._classes[name](int(fields[name]))
        return Entry(key, fields, self._image(key, row) if media else None)

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes open the files anew."""
        return {n: v for n, v in self.__dict__.items() if n not in ("_source", "_classes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ValueError(
                f"{self.name} needs tensorflow_datasets ({error}): pip install 'codecvit[tfds]'"
            ) from error
        try:
            builder = tfds.builder_from_directory(self._folder)
            features = builder.info.features
            pictures = [n for n, f in features.items() if isinstance(f, tfds.features.Image)]
            self._picture = next((n for n in (*self.columns.image, *pictures) if n in pictures), "")
            decoders = {name: tfds.decode.SkipDecoding() for name in pictures}
            self._source = builder.as_data_source(split=self._split, decoders=decoders)
        except (OSError, ValueError, NotImplementedError, KeyError) as error:
            raise ValueError(
                f"{self.name}, split {self._split}: {error} (only folders that were written with "
                "file_format=array_record can be read)"
            ) from error
        labels = {n: f for n, f in features.items() if isinstance(f, tfds.features.ClassLabel)}
        self._classes = {name: label.int2str for name, label in labels.items()}

    def _image(self, key: str, row: Mapping[str, Any]) -> bytes:
        image = row.get(self._picture)
        if not isinstance(image, bytes) or not image:
            raise PairError(key, "dead", "there is no picture, or an empty one")
        return image
