"""The entry point that lmms-eval finds the model by."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint


def test_the_entry_point_gives_the_manifest_and_imports_lmms_eval_only_then(plugin, root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    value = project["entry-points"]["lmms_eval.models"]["codecvit_llava"]
    found = EntryPoint("codecvit_llava", value, "lmms_eval.models").load()()
    assert found.model_id == "codecvit_llava" and found.chat_class_path is None
    module, name = found.simple_class_path.rsplit(".", 1)
    model = getattr(importlib.import_module(module), name)
    base = sys.modules["lmms_eval.api.model"].lmms
    assert issubclass(model, base) and model.is_simple and not model.__abstractmethods__
    code = (
        "import sys, codecvit.llava.benchmarks.lmms_plugin; "
        "assert not {'lmms_eval', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
