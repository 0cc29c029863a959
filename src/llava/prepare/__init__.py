"""Benchmarks as their authors hand them out -> folders that the runners read."""
