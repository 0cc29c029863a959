"""The model: encoders' features, projectors, their fusion, and the language model behind them.

`config` has every field, `modeling` the forward pass, `parts` how a new one is put together.
"""
