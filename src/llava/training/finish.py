"""What a run leaves behind: a complete model folder, and with LoRA the adapter beside it.

Both are made of the newest checkpoint and of what the run began with, on the CPU: a checkpoint
from which the model could not be made would show here, and not when somebody needs it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from .lora import has_lora, merge_lora, save_adapter
from .start import ADAPTER, MODEL, load_run, start_tokenizer


def finish_run(workdir: Path) -> Path:
    """Writes WORKDIR/model and, of a LoRA run, WORKDIR/adapter; returns the first."""
    return write_model(workdir, workdir / MODEL, adapter=workdir / ADAPTER)


def write_model(
    run: Path, out: Path, dtype: str | None = None, adapter: Path | None = None
) -> Path:
    """Writes the model of a run's newest checkpoint, its adapter merged, with its tokenizer.

    Args:
      run: the run's folder.
      out: appears at once and whole; replaces an earlier one.
      dtype: of the weights; None takes `config.save_dtype`.
      adapter: with LoRA, also write the adapter there.

    Raises:
      ValueError: the run has no checkpoint, or its base is not there any more.
    """
    config, model, trained = load_run(run)
    if has_lora(model):
        if adapter is not None:
            save_adapter(model, config.lora, trained, adapter)
        merge_lora(model)
    temporary = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(getattr(torch, dtype or config.save_dtype)).save_pretrained(temporary)
    start_tokenizer(config).save_pretrained(temporary)
    if out.exists():
        shutil.rmtree(out)
    temporary.rename(out)
    return out
