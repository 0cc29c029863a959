"""The PyTorch files that ship with an export. They import nothing of codecvit."""
