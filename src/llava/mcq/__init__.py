"""Multiple-choice evaluation: questions, strict answers, chunks that resume, honest scores.

Only `answer` imports torch, and only when a model is loaded.
"""
