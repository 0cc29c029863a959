"""Open-ended evaluation: free answers of a model, and a judge that compares them with references.

Only a model that answers (`..mcq.answer`) and a local judge (`local_judge`) import torch.
"""
