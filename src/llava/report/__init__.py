"""`codecvit llava report`: answers, verdicts and what the model saw, as one page."""
