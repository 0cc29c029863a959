"""The models that MERV has published, and where a model's folder is; nothing is imported for it.

Ids and names are those of github.com/princetonvisualai/merv. Their weights are a checkpoint of its
own form, which `codecvit llava import merv` turns into a folder of ours.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

HUB = "tyleryzhu/merv"
"""The repository on the Hugging Face hub with a folder per id."""

CHECKPOINT = Path("checkpoints", "latest-checkpoint.pt")
CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
      name: as the registry has it.
      encoders: name -> where its weights are, in the order of the checkpoint's projectors.
      stages: how it was trained.
    """

    name: str
    encoders: dict[str, str]
    stages: str


_WEIGHTS = {
    "languagebind": "LanguageBind/LanguageBind_Video_merge",
    "dinov2": "facebook/dinov2-with-registers-large",
    "vivit": "google/vivit-b-16x2-kinetics400",
    "siglip": "google/siglip-base-patch16-224",
}
_ONE = "instructions only"

PUBLISHED: dict[str, Published] = {
    "merv-frozen": Published("MERV Frozen", _WEIGHTS, _ONE),
    "merv-full": Published("MERV Full", _WEIGHTS, "captions, then instructions"),
    "languagebind-single": Published(
        "LanguageBind Single Encoder", {"languagebind": _WEIGHTS["languagebind"]}, _ONE
    ),
    "dinov2-single": Published("DINOv2 Single Encoder", {"dinov2": _WEIGHTS["dinov2"]}, _ONE),
    "vivit-single": Published("ViViT Single Encoder", {"vivit": _WEIGHTS["vivit"]}, _ONE),
    "siglip-single": Published("SigLIP Single Encoder", {"siglip": _WEIGHTS["siglip"]}, _ONE),
}


def available_models() -> list[str]:
    """The published ids."""
    return list(PUBLISHED)


def available_model_names() -> list[tuple[str, dict[str, Any]]]:
    """(id or name, what is known of the model), of every id and every name."""
    return [
        (key, _entry(model_id))
        for model_id, model in PUBLISHED.items()
        for key in (model_id, model.name)
    ]


def get_model_description(model_id_or_name: str) -> dict[str, Any]:
    """Prints what is known of a published model, and returns it.

    Raises:
      ValueError: no model is called so.
    """
    description = _entry(_id_of(model_id_or_name))["description"]
    print(json.dumps(description, indent=2))
    return description


def find_model(
    model: str | os.PathLike[str],
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder of a model: a folder, a published id or a name on the hub; see `load_vid`.

    Raises:
      ValueError: it is not there, or is MERV's own checkpoint; the message says what to do.
    """
    named = str(model)
    known = {key for key, _ in available_model_names()}
    folder = Path(model)
    if named in known and (cache_dir is not None or not folder.is_dir()):
        folder = Path(cache_dir or ".", _id_of(named))
        if not folder.is_dir():
            raise ValueError(how_to_get(_id_of(named), folder))
    if folder.is_dir():
        if (folder / CHECKPOINT).is_file():
            raise ValueError(
                f"{folder} holds a checkpoint of MERV, not a model of this package. Turn it into "
                f"one:\n{_import(folder, _id_in(folder), f'{folder}-imported')}"
            )
        if not (folder / CONFIG).is_file():
            raise ValueError(f"{folder} holds no {CONFIG}: it is no folder of a saved model")
        return folder
    if named.count("/") != 1 or named.startswith((".", "/")):
        raise ValueError(
            f"{named!r} is no folder, no owner/name of the hub, and none of the published ids "
            f"{', '.join(PUBLISHED)}"
        )
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(named, token=token, cache_dir=cache_dir))


def how_to_get(model_id: str, folder: str | os.PathLike[str]) -> str:
    """What to download and to import so that `folder` holds a published model."""
    raw = f"merv-checkpoints/{model_id}"
    files = " ".join(f'"{model_id}/{name}"' for name in (CONFIG, CHECKPOINT.as_posix()))
    towers = "\n".join(
        f"  hf download {repo} --local-dir {repo.rpartition('/')[2]}"
        for repo in PUBLISHED[model_id].encoders.values()
    )
    return (
        f"{model_id} is not in {os.fspath(folder)}. Its weights are not part of this package; get "
        "them, the encoders and the language model, and turn them into a model (the licence of "
        "Llama 2 has to be accepted on the hub first):\n"
        f"  hf download {HUB} {files} --local-dir merv-checkpoints\n{towers}\n"
        "  hf download meta-llama/Llama-2-7b-hf --exclude '*.bin' '*.safetensors' --local-dir "
        f"Llama-2-7b-hf\n{_import(raw, model_id, folder)}"
    )


def _import(raw: str | os.PathLike[str], model_id: str | None, out: str | os.PathLike[str]) -> str:
    encoders = PUBLISHED[model_id].encoders if model_id else {"NAME": "FOLDER"}
    towers = " ".join(f"--encoder {n}={r.rpartition('/')[2]}" for n, r in encoders.items())
    lm = "Llama-2-7b-hf" if model_id else "FOLDER"
    return f"  codecvit llava import merv {raw} {towers} --lm {lm} --out {os.fspath(out)}"


def _id_in(folder: Path) -> str | None:
    return folder.name if folder.name in PUBLISHED else None


def _id_of(name: str) -> str:
    for model_id, model in PUBLISHED.items():
        if name in (model_id, model.name):
            return model_id
    raise ValueError(f"no published model is called {name!r}: there are {', '.join(PUBLISHED)}")


def _entry(model_id: str) -> dict[str, Any]:
    model = PUBLISHED[model_id]
    description = {
        "name": model.name,
        "encoders": dict(model.encoders),
        "language_model": "meta-llama/Llama-2-7b-hf",
        "training": model.stages,
        "checkpoint": f"https://huggingface.co/{HUB}/tree/main/{model_id}",
    }
    return {"model_id": model_id, "names": [model.name], "description": description}
