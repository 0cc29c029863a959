"""Images and their captions as COCO and Flickr30k hand them out.

Layouts: the annotation files of COCO (cocodataset.org), `results_20130124.token` of Flickr30k, and
the splits of Karpathy and Fei-Fei (arXiv 1412.2306), `dataset_coco.json` and
`dataset_flickr30k.json`. Images may lie in any of the usual folders; docs/image_text_evaluation.md
shows them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from .listing import Files, annotation_file, read_json, text_lines

_PAGE = "docs/image_text_evaluation.md"
SPLITS = ("train", "restval", "val", "test")


@dataclasses.dataclass(frozen=True)
class CaptionedImages:
    """Images in the order of the annotation file, each with its captions.

    Attributes:
      keys: name of each image's file.
      paths: where it lies; of a missing image, where it was looked for first.
      captions: one or more of each image.
      missing: keys of the images that are not there, or empty.
      unusable: what is wrong with entries that gave no image or no caption.
    """

    keys: tuple[str, ...]
    paths: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...]
    unusable: tuple[str, ...]


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


def read_captions(
    dataset: str, root: str | Path, *, split: str | None = None, per_image: int | None = None
) -> CaptionedImages:
    """The images and captions of a data set.

    Args:
      dataset: a key of READERS.
      root: folder of the download.
      split: of the Karpathy splits and of `flickr30k-token`; see there. None takes the usual one.
      per_image: captions of an image to keep, the first ones; all by default. (COCO has five to
        seven.)

    Returns:
      The images that have captions; missing files are among them and named.

    Raises:
      ValueError: an unknown data set or split, an annotation file that is missing or no such file,
        or no image in it.
    """
    if dataset not in READERS:
        raise ValueError(f"data set {dataset!r} is none of {', '.join(READERS)}")
    if per_image is not None and per_image < 1:
        raise ValueError(f"per_image = {per_image} must be 1 or more")
    root = Path(root)
    read, folders = READERS[dataset]
    entries = read(root, split)
    files = Files(root)
    keys, paths, captions, missing = [], [], [], []
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
        found = files.find(candidates)
        keys.append(name)
        paths.append(root / (found[0] if found else candidates[0]))
        captions.append(tuple(texts[:per_image]))
        if found is None:
            missing.append(name)
    if not keys:
        raise ValueError(f"{root}: {dataset} has no image with a caption, see {_PAGE}")
    return CaptionedImages(
        tuple(keys), tuple(paths), tuple(captions), tuple(missing), tuple(entries.unusable)
    )


def _coco(year: int) -> Callable[[Path, str | None], _Entries]:
    """captions_val2014.json or captions_val2017.json: the whole validation set."""

    def read(root: Path, split: str | None) -> _Entries:
        if split is not None:
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


def _karpathy(name: str) -> Callable[[Path, str | None], _Entries]:
    """dataset_coco.json or dataset_flickr30k.json, whose usual split is test."""

    def read(root: Path, split: str | None) -> _Entries:
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


def _flickr30k_token(root: Path, split: str | None) -> _Entries:
    """results_20130124.token: lines `1000092795.jpg#0<TAB>caption`; it has no splits.

    The split is a file of names, one a line with or without extension, for example `test.txt`;
    None takes all images.
    """
    wanted = None
    if split is not None:
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
READERS: dict[str, tuple[Callable[[Path, str | None], _Entries], tuple[str, ...]]] = {
    "coco2014": (_coco(2014), ("", "images")),
    "coco2017": (_coco(2017), ("", "images")),
    "coco-karpathy": (_karpathy("coco"), ("", "images")),
    "flickr30k": (_karpathy("flickr30k"), ("flickr30k-images", "flickr30k_images", "images", "")),
    "flickr30k-token": (
        _flickr30k_token,
        ("flickr30k-images", "flickr30k_images", "images", ""),
    ),
}
