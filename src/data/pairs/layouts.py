"""`coco-karpathy:ROOT` and the like: images and captions as COCO and Flickr30k hand them out.

Layouts: the annotation files of COCO (cocodataset.org), `results_20130124.token` of Flickr30k, and
the splits of Karpathy and Fei-Fei (arXiv 1412.2306), `dataset_coco.json` and
`dataset_flickr30k.json`. Images may lie in any of the usual folders; docs/image_text_evaluation.md
shows them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..annotation_files import Files, annotation_file, read_json, text_lines
from ..sources import clean_key
from .columns import Columns
from .source import Entry, PairError, PairSource, unique_keys

_PAGE = "docs/image_text_evaluation.md"
_SHOWN = 3
_LOG = logging.getLogger(__name__)
SPLITS = ("train", "restval", "val", "test")


class CaptionedImage(NamedTuple):
    """One image of a data set.

    Attributes:
      name: of its file, as the annotations have it.
      path: where it lies; of a missing image, where it was looked for first.
      size: bytes; 0 if it is not there, or empty.
      captions: in the order of the annotations.
    """

    name: str
    path: str
    size: int
    captions: tuple[str, ...]


class LayoutPairs(PairSource):
    """The images of a data set in the order of its annotation file, each with its captions.

    Its columns are `captions`, all of an image, and `caption_0`, `caption_1`, ...

    Args:
      name: what messages call it.
      columns: which of its columns are what.
      images: the images.
      unusable: what is wrong with entries that gave no image or no caption.

    Attributes:
      unusable: as given.
    """

    def __init__(
        self,
        name: str,
        columns: Columns,
        images: Sequence[CaptionedImage],
        unusable: Sequence[str],
    ) -> None:
        super().__init__(name, columns)
        self._images, self.unusable = tuple(images), tuple(unusable)
        self._keys = unique_keys([clean_key(image.name) for image in images])

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def stamp(self) -> str:
        # Without the folder, so that a download that was moved stays packed.
        known = [[image.name, image.size, image.captions] for image in self._images]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def entry(self, index: int, columns: Sequence[str], media: bool = True) -> Entry:
        key, image = self._keys[index], self._images[index]
        fields: dict[str, Any] = {f"caption_{n}": text for n, text in enumerate(image.captions)}
        fields["captions"] = list(image.captions)
        data = None
        if media:
            try:
                data = Path(image.path).read_bytes()
            except OSError as error:
                raise PairError(key, "dead", f"{image.path} cannot be read ({error})") from error
            if not data:
                raise PairError(key, "dead", f"{image.path} is empty")
        return Entry(key, {name: fields[name] for name in columns if name in fields}, data)


class _Entries:
    """The entries of an annotation file, collected one by one."""

    def __init__(self) -> None:
        self.captions: dict[str, list[str]] = {}  # by the name of the image's file
        self.folders: dict[str, str] = {}
        self.unusable: list[str] = []

    def image(self, name: object, where: str, folder: object = "") -> None:
        if not isinstance(name, str) or not name or not isinstance(folder, str):
            self.unusable.append(f"{where}: has no name of a file")
        elif name in self.captions:
            self.unusable.append(f"{where}: image {name} is there twice")
        else:
            self.captions[name], self.folders[name] = [], folder

    def caption(self, name: object, text: object, where: str) -> None:
        if not isinstance(name, str) or name not in self.captions:
            self.unusable.append(f"{where}: belongs to no image")
        elif not isinstance(text, str) or not text.strip():
            self.unusable.append(f"{where}: has no caption")
        else:
            self.captions[name].append(" ".join(text.split()))


def open_layout(layout: str, root: str, split: str, columns: Columns) -> LayoutPairs:
    """The images and captions of a data set.

    Args:
      layout: a key of LAYOUTS.
      root: folder of the download.
      split: of the Karpathy splits and of `flickr30k-token`; see there. "" takes the usual one.
      columns: which of the columns of `LayoutPairs` are what.

    Returns:
      The images that have captions; those whose file is missing are among them, and dead. What is
      of no use in the annotations is logged.

    Raises:
      ValueError: an unknown split, an annotation file that is missing or no such file, or no image
        in it.
    """
    read, folders = LAYOUTS[layout]
    entries = read(Path(root), split)
    files = Files(Path(root))
    images = []
    for name, texts in entries.captions.items():
        if not texts:
            entries.unusable.append(f"image {name} has no caption")
            continue
        inside = entries.folders[name]
        candidates = [
            "/".join(part for part in (folder, inside, name) if part) for folder in folders
        ]
        # A folder of one split, wherever it was unpacked; the copy of an archive without folders.
        candidates += [f"{folder}/{name}" if folder else name for folder in folders]
        place, size = files.find(candidates) or (candidates[0], 0)
        images.append(CaptionedImage(name, str(Path(root) / place), size, tuple(texts)))
    if not images:
        raise ValueError(f"{root}: {layout} has no image with a caption, see {_PAGE}")
    if entries.unusable:
        first = "; ".join(entries.unusable[:_SHOWN])
        _LOG.warning("%s: %d entries are of no use: %s", root, len(entries.unusable), first)
    name = f"{layout}:{root}" + (f"#{split}" if split else "")
    return LayoutPairs(name, columns, images, entries.unusable)


def _coco(year: int) -> Callable[[Path, str], _Entries]:
    """captions_val2014.json or captions_val2017.json: the whole validation set."""

    def read(root: Path, split: str) -> _Entries:
        if split:
            raise ValueError(
                f"split = {split!r}: coco{year} is the whole validation set; coco-karpathy has "
                "splits"
            )
        file = annotation_file(root, f"captions_val{year}.json", page=_PAGE)
        content = read_json(file, dict)
        entries, names = _Entries(), {}
        for where, entry in _objects(file, content, "images", entries):
            entries.image(entry.get("file_name"), where, f"val{year}")
            names[str(entry.get("id"))] = entry.get("file_name")
        for where, entry in _objects(file, content, "annotations", entries):
            entries.caption(names.get(str(entry.get("image_id"))), entry.get("caption"), where)
        return entries

    return read


def _karpathy(name: str) -> Callable[[Path, str], _Entries]:
    """dataset_coco.json or dataset_flickr30k.json, whose usual split is test."""

    def read(root: Path, split: str) -> _Entries:
        split = split or "test"
        if split not in SPLITS:
            raise ValueError(f"split = {split!r} is none of {', '.join(SPLITS)}")
        file = annotation_file(root, f"dataset_{name}.json", page=_PAGE)
        entries = _Entries()
        for where, entry in _objects(file, read_json(file, dict), "images", entries):
            if entry.get("split") != split:
                continue
            image = entry.get("filename")
            entries.image(image, where, entry.get("filepath", ""))
            sentences = entry.get("sentences")
            for sentence in sentences if isinstance(sentences, list) else ():
                text = sentence.get("raw") if isinstance(sentence, dict) else None
                entries.caption(image, text, where)
        return entries

    return read


def _flickr30k_token(root: Path, split: str) -> _Entries:
    """results_20130124.token: lines `1000092795.jpg#0<TAB>caption`; it has no splits.

    The split is a file of names, one a line with or without extension, for example `test.txt`;
    "" takes all images.
    """
    wanted = None
    if split:
        file = annotation_file(root, split, page=_PAGE)
        wanted = {Path(text).stem for _, text in text_lines(file)}
    file = annotation_file(root, "results_20130124.token", "results.token", page=_PAGE)
    entries = _Entries()
    for where, text in text_lines(file):
        place, tab, caption = text.partition("\t")
        name, mark, _ = place.rpartition("#")
        if not tab or not mark:
            entries.unusable.append(f"{where}: is not NAME#NUMBER, a tab and a caption")
        elif wanted is None or Path(name).stem in wanted:
            if name not in entries.captions:
                entries.image(name, where)
            entries.caption(name, caption, where)
    absent = (wanted or set()) - {Path(name).stem for name in entries.captions}
    entries.unusable += [
        f"{split}: {name} has no caption in {file.name}" for name in sorted(absent)
    ]
    return entries


def _objects(
    file: Path, content: dict, field: str, entries: _Entries
) -> Iterable[tuple[str, dict]]:
    """The objects of a list in a JSON object, as (name of the entry, it)."""
    found = content.get(field)
    if not isinstance(found, list):
        raise ValueError(f"{file}: has no list {field!r}")
    for place, entry in enumerate(found):
        where = f"{file.name}, {field} {place}"
        if isinstance(entry, dict):
            yield where, entry
        else:
            entries.unusable.append(f"{where}: is no object")


# Per data set its reader, and the folders in which its images may lie below the root.
LAYOUTS: dict[str, tuple[Callable[[Path, str], _Entries], tuple[str, ...]]] = {
    "coco2014": (_coco(2014), ("", "images")),
    "coco2017": (_coco(2017), ("", "images")),
    "coco-karpathy": (_karpathy("coco"), ("", "images")),
    "flickr30k": (_karpathy("flickr30k"), ("flickr30k-images", "flickr30k_images", "images", "")),
    "flickr30k-token": (
        _flickr30k_token,
        ("flickr30k-images", "flickr30k_images", "images", ""),
    ),
}
