"""Names of classes and prompt templates: the texts of zero-shot classification.

The templates "imagenet" and "imagenet-7" are those of CLIP (Radford et al. 2021, section 3.1.4, and
the notebook on prompts in its repository); their embeddings are averaged, so their order does not
matter, and they are written here as the patterns that they are.
"""

from __future__ import annotations

import dataclasses
import json
import re
import string
from collections.abc import Sequence
from pathlib import Path

_WORDNET = re.compile(r"n\d{8}\b")
# Data sets that are known by name: their number of classes.
KNOWN = {"imagenet": 1000}


def _imagenet_templates() -> tuple[str, ...]:
    looks = (
        "bad",
        "good",
        "blurry",
        "bright",
        "dark",
        "pixelated",
        "cropped",
        "close-up",
        "low resolution",
        "black and white",
        "jpeg corrupted",
    )
    things = ("hard to see", "clean", "dirty", "cool", "nice", "weird", "large", "small")
    arts = ("sculpture", "rendering", "rendition", "drawing", "painting", "sketch", "doodle")
    made_of = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")
    found = ["a photo of many {}.", "a photo of one {}.", "a photo of my {}.", "itap of my {}."]
    for article in ("a", "the"):
        found += [f"a photo of {article} {{}}.", f"{article} {{}} in a video game."]
        found += [f"a {look} photo of {article} {{}}." for look in looks]
        found += [f"a photo of {article} {thing} {{}}." for thing in things]
        found += [f"a {art} of {article} {{}}." for art in (*arts, "tattoo")]
        found += [f"{art} of {article} {{}}." for art in ("art", "graffiti", "itap")]
        found += [f"{article} {material} {{}}." for material in made_of]
    return tuple(found)


TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}.",),
    "imagenet": _imagenet_templates(),
    "imagenet-7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a data set, in the order of their numbers.

    Attributes:
      names: the names of each class, the first of which is what it is called; the others are
        aliases.
      ids: its WordNet id, as ImageNet calls its folders; None where the file has none.
    """

    names: tuple[tuple[str, ...], ...]
    ids: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)


def read_classes(path: str | Path, dataset: str | None = None) -> Classes:
    """Names of classes from a file.

    Args:
      path: a text file with one class a line, aliases separated by commas; or a `.json` list whose
        entries are a name (kept whole, commas too) or a list of names. A line or a first name
        may begin with a WordNet id ("n01440764 tench, Tinca tinca"), in every entry or in none;
        classes are then numbered in the order of the ids, as folders of ImageNet are.
      dataset: "imagenet" checks that there are its 1,000 classes. None takes any number.

    Raises:
      ValueError: the file is missing, holds something else, a name or id is missing or double, or
        the number of classes is not that of the data set.
    """
    path = Path(path)
    if dataset is not None and dataset not in KNOWN:
        raise ValueError(f"data set {dataset!r} is none of {', '.join(KNOWN)}")
    entries = _entries(path)
    ids = [_WORDNET.match(names[0]) for names in entries]
    if any(ids) and not all(ids):
        without = entries[[bool(found) for found in ids].index(False)]
        raise ValueError(f"{path}: {without[0]!r} has no WordNet id, other classes do")
    numbered = None
    if entries and all(ids):
        stripped = [
            [names[0][found.end() :].strip(), *names[1:]]
            for names, found in zip(entries, ids, strict=True)
        ]
        pairs = sorted(zip([found.group() for found in ids], stripped, strict=True))
        numbered = tuple(number for number, _ in pairs)
        if len(set(numbered)) < len(numbered):
            double = next(a for a, b in zip(numbered, numbered[1:], strict=False) if a == b)
            raise ValueError(f"{path}: {double} is there twice")
        entries = [names for _, names in pairs]
    for place, names in enumerate(entries):
        if not all(names):
            raise ValueError(f"{path}: class {place} has an empty name among {names}")
    expected = KNOWN.get(dataset, len(entries))
    if not entries or len(entries) != expected:
        raise ValueError(f"{path} names {len(entries)} classes, expected {expected or 'some'}")
    return Classes(tuple(tuple(names) for names in entries), numbered)


def _entries(path: Path) -> list[list[str]]:
    """The names of each class, stripped."""
    text = _text(path, "class names")
    if path.suffix != ".json":
        lines = [line for line in text.splitlines() if line.strip()]
        return [[name.strip() for name in line.split(",")] for line in lines]
    found = _json_list(path, text)
    entries = [[entry] if isinstance(entry, str) else entry for entry in found]
    for place, names in enumerate(entries):
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise ValueError(f"{path}: entry {place} must be a name or a list of names")
    return [[name.strip() for name in names] for names in entries]


def read_templates(source: str | Path) -> tuple[str, ...]:
    """Prompt templates by name, or from a file.

    Args:
      source: a key of TEMPLATES, or a file with one template a line, or a `.json` list of them;
        the name of the class replaces the one `{}`.

    Raises:
      ValueError: there is no such name or file, it holds none, or one of them has not one `{}`.
    """
    if str(source) in TEMPLATES:
        return TEMPLATES[str(source)]
    path = Path(source)
    text = _text(path, f"templates (known by name: {', '.join(TEMPLATES)})")
    if path.suffix == ".json":
        found = _json_list(path, text)
    else:
        found = [line.strip() for line in text.splitlines() if line.strip()]
    for template in found:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(f"{path}: template {template!r} must hold {{}} once, for the name")
    if not found:
        raise ValueError(f"{path} holds no template")
    return tuple(found)


def class_prompts(
    classes: Classes, templates: Sequence[str], *, aliases: bool = True, canonical: bool = False
) -> list[list[str]]:
    """All texts of each class: its names, each in every template.

    Args:
      classes: the classes.
      templates: each with one `{}`.
      aliases: all names of a class, or the first alone.
      canonical: lower case without punctuation, as `canonicalise`.
    """
    prompts = [
        [
            template.replace("{}", name)
            for name in (names if aliases else names[:1])
            for template in templates
        ]
        for names in classes.names
    ]
    return [[canonicalise(p) for p in texts] for texts in prompts] if canonical else prompts


def canonicalise(text: str) -> str:
    """Lower case, no punctuation, single spaces; an underscore is a space.

    The form of prompts in the evaluations of LiT (arXiv 2111.07991) and its successors.
    """
    kept = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(kept.lower().split())


def _text(path: Path, what: str) -> str:
    if not path.is_file():
        raise ValueError(f"{path} is no file of {what}")
    return path.read_text(encoding="utf-8-sig")


def _json_list(path: Path, text: str) -> list:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(found, list):
        raise ValueError(f"{path}: holds a {type(found).__name__}, expected a list")
    return found
