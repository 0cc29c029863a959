"""Training of LLaVA models: projector stage, instruction tuning in full or by LoRA."""
