"""A causal language model on this machine as a judge."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from ..mcq.answer import fingerprint
from .judges import JudgeError, Reply
from .predictions import Job
from .prompts import messages


class LocalJudge:
    """Greedy replies of a chat model; one at a time, so threads wait for each other.

    Args:
      folder: of a transformers model and its tokenizer, with a chat template.
      device: None takes a GPU if there is one.
      dtype: name of a torch dtype.
      max_new_tokens: of a reply.

    Raises:
      ValueError, OSError: the folder does not hold these.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str | None = None,
        dtype: str = "bfloat16",
        max_new_tokens: int = 64,
    ) -> None:
        from jinja2 import TemplateError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no config.json: it is no folder of a model")
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        if self._tokenizer.chat_template is None:
            raise ValueError(f"{folder} has no chat template: a judge has to be a chat model")
        try:
            self._prompt([{"role": role, "content": "x"} for role in ("system", "user")])
        except TemplateError as error:
            raise ValueError(
                f"{folder}: its chat template takes no system prompt: {error}"
            ) from error
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._model = model.to(device).eval()
        self._lock = threading.Lock()
        self._max_new_tokens = max_new_tokens
        self._told = {
            "id": f"hf:{folder.resolve().name}",
            "path": str(folder.absolute()),
            "fingerprint": fingerprint(folder),
            "dtype": dtype,
            "max_new_tokens": max_new_tokens,
        }

    @torch.inference_mode()
    def ask(self, job: Job) -> Reply:
        """See `Judge.ask`."""
        text = self._prompt(messages(job))
        ids_1S = self._tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with self._lock:
            try:
                out_1S = self._model.generate(
                    input_ids=ids_1S.to(self._model.device),
                    attention_mask=torch.ones_like(ids_1S).to(self._model.device),
                    max_new_tokens=self._max_new_tokens,
                    # The generation defaults of a language model may sample.
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    num_beams=1,
                    pad_token_id=self._tokenizer.pad_token_id,
                )
            except RuntimeError as error:  # such as a GPU out of memory
                raise JudgeError(f"{type(error).__name__}: {error}") from error
        new = out_1S[0, ids_1S.shape[1] :]
        reply = self._tokenizer.decode(new, skip_special_tokens=True)
        return Reply(reply, tokens=(ids_1S.shape[1], len(new)))

    def _prompt(self, told: list[dict[str, str]]) -> str:
        # As text first: what apply_chat_template returns as tokens differs between versions.
        return self._tokenizer.apply_chat_template(
            told,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # of templates that know it: the reply is to be JSON alone
        )

    def describe(self) -> dict[str, Any]:
        """See `Judge.describe`."""
        return dict(self._told)
