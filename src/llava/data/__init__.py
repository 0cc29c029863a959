"""What a model is shown: pixels, patches and tokens of rows, and batches of these.

`visuals` is one image or video, `examples` a conversation about some, `dataset` a whole mixture.
"""
