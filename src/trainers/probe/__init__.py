"""Probes of a frozen encoder: attentive (`__main__`), k-NN and linear (`records`)."""
