"""Public benchmarks: their tasks in lmms-eval, their assets, and our model as a plugin of it."""
