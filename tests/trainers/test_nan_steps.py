"""Which step and which source was not finite, also between two log lines."""

import jax.numpy as jnp

from codecvit.trainers.nan_steps import NanSteps

NAN, INF = float("nan"), float("inf")


def metrics(image=1.0, video=2.0, encoder=3.0, head=4.0):
    values = {"image/loss": image, "video/loss": video, "loss": image + video, "lr/encoder": NAN}
    values |= {"grad_norm/encoder": encoder, "grad_norm/head_main": head}
    return {name: jnp.float32(value) for name, value in values.items()}


def test_the_step_and_its_source_are_named():
    steps = NanSteps(3)
    steps.stepped(50, metrics())
    assert steps.look(3) == ""
    steps.stepped(51, metrics())
    steps.stepped(52, metrics(video=NAN, encoder=NAN))
    steps.stepped(53, metrics(encoder=INF))
    steps.stepped(54, metrics() | {"loss": jnp.float32(INF)})
    steps.stepped(100, metrics())
    assert steps.look(6) == (
        "step 52: loss of video; step 53: gradient of encoder; step 54: sum of the losses"
    )
    assert steps.look(6) == ""
    steps.stepped(101, metrics(head=NAN))
    assert steps.look(7) == "step 101: gradient of head_main"


def test_long_lists_are_cut():
    steps = NanSteps(0)
    for step in range(1, 9):
        steps.stepped(step, metrics(image=INF, video=NAN))
    told = steps.look(8)
    assert told.startswith("step 1: loss of image, video; step 2: ")
    assert told.endswith("step 5: loss of image, video (+3 more)")
