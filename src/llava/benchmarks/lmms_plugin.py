"""The entry point `lmms_eval.models`: lmms-eval 0.7 finds our model as `codecvit_llava`."""

from __future__ import annotations

from typing import Any

MODEL_ID = "codecvit_llava"
CLASS_PATH = "codecvit.llava.benchmarks.lmms_model.CodecVitLlava"


def manifest() -> Any:
    """The `ModelManifest` of our model; called by lmms-eval, which is imported here alone."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, simple_class_path=CLASS_PATH)
