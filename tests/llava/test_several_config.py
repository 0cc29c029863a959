"""What a configuration of several encoders says: token counts, groups, and what it refuses."""

import numpy as np
import pytest
import torch

from codecvit.llava import LlavaConfig
from codecvit.llava.data.collate import collate
from codecvit.llava.model.token_counts import num_visual_tokens, visual_token_groups

from .conftest import language_config, vision_config
from .several import (
    COUNT,
    SIZE,
    as_example,
    made_visual,
    make_several,
    siglip_config,
)


def test_a_place_that_is_never_shown_needs_a_learned_cell(encoders):
    visual = made_visual(1)
    seen = visual.positions[:, 1] < 2  # the lower half of the picture never comes
    positions = np.ascontiguousarray(visual.positions[seen])
    visual = type(visual)(
        visual.patches[seen],
        positions,
        visual.groups[seen],
        None,
        (4, 4),
        visual.frames,
    )
    with pytest.raises(ValueError, match="pool_empty = 'learned'"):
        as_example(make_several(encoders).config, 1, visual)
    model = make_several(encoders, pool_empty="learned")
    assert len(as_example(model.config, 1, visual)) == 9
    batch = collate([as_example(model.config, 1, visual)], 256)
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


def entries(**changes):
    image = {"name": "image", "kind": "siglip", "config": siglip_dict(), "frames": COUNT}
    video = {"name": "video", "kind": "onevision_encoder", "config": vision_config()}
    return [video, {**image, **changes}]


def siglip_dict():
    return siglip_config().to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_config": vision_config()}, "in place of vision_config, not both"),
        ({"encoders": entries(name="video")}, "each needs one of its own"),
        ({"encoders": entries(name="Big")}, "small letters"),
        ({"encoders": entries(name="half")}, "name = 'half', which torch takes"),
        ({"encoders": entries(kind="sigclip")}, "encoder image: .*must be one of"),
        ({"encoders": entries(frame=4)}, "encoder image: has no field 'frame'"),
        ({"encoders": entries(select_layer=9)}, "select_layer = 9"),
        ({"encoders": entries(frames=0)}, "frames = 0"),
        ({"encoders": entries(frames=65)}, "65 time steps"),
        ({"encoders": entries(resize="fit")}, "resize = 'fit'"),
        ({"encoders": entries(image_size=4)}, "image_size = 4"),
        ({"encoders": [*entries(), *entries(name="third", frames=3)[1:]]}, "3 does not divide 4"),
        ({"encoders": [*entries(), *entries(name="third", resize="crop")[1:]]}, "give all one"),
        ({"encoders": [entries()[0], {**entries()[0], "name": "b"}]}, "only one of them may"),
        ({"encoders": [{**entries()[0], "frames": 4}]}, "frames has no effect on an encoder that"),
        ({"fusion": "sum"}, "fusion = 'sum' must be one of"),
        ({"fusion": "scalar", "fusion_bias": True}, "fusion_bias has no effect"),
        ({"fusion_query": 8}, "fusion_query has no effect"),
        ({"projector": "linear"}, "must pool, as 3davg"),
        ({"pool_level": 2}, "set pool, not pool_level = 2"),
        ({"pool_empty": "drop"}, "leaves cells out"),
        ({"vision_select_layer": -1}, "vision_select_layer has no effect beside encoders"),
        ({"fusion": "concat", "timestamps": True}, "timestamps has no effect on fusion"),
        ({"encoders": entries()[1:], "timestamps": True}, "where no encoder reads patches"),
        ({"encoders": entries()[1:], "fusion_bias": True}, "of 1 encoders"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    fields = {"encoders": entries(), "projector": "3davg+linear", **fields}
    with pytest.raises(ValueError, match=message):
        LlavaConfig(text_config=language_config(), **fields)


def test_names_of_sources(encoders, encoder_dir):
    for text in ("siglip:folder", "image=siglip", "image"):
        with pytest.raises(ValueError, match="must be NAME=KIND:FOLDER"):
            make_several([text])
    for text in ("?", "?frames=3", "?chunk", "?chunk=2&"):
        with pytest.raises(ValueError, match="must set one of select_layer, image_size"):
            make_several([encoders[1] + text])
    entry = make_several([f"{encoders[1]}?image_size=8&select_layer=norm"]).config.entry("image")
    assert (entry.frames, entry.image_size, entry.select_layer) == (COUNT, 8, "norm")
    model = make_several(encoders, resize="crop")
    assert model.config.entry("image").resize == "crop"
    assert model.config.frame_rule == type(model.config.frame_rule)(COUNT, SIZE, "crop")
    source = {"name": "image", "kind": "siglip", "folder": encoders[1].split(":")[1][:-2]}
    entry = make_several([{**source, "frames": 2, "select_layer": -1}]).config.entry("image")
    assert (entry.frames, entry.select_layer) == (2, -1)


def test_token_table_of_videogpt_plus():
    """Facts of its fork: 16 frames of 24 x 24 and 16 x 16, pooled by one level."""
    image = {**siglip_dict(), "image_size": 336, "patch_size": 14}
    video = {**siglip_dict(), "image_size": 224, "patch_size": 14}
    table = {1: 13312, 2: 3328, 3: 1424, 4: 832, 5: 544, 8: 208, 12: 80, 16: 80, 24: 32}
    for level, expected in table.items():
        config = LlavaConfig(
            text_config=language_config(),
            encoders=[
                {"name": "image", "kind": "siglip", "config": image, "frames": 16},
                {"name": "video", "kind": "siglip", "config": video, "frames": 16, "chunk": 4},
            ],
            fusion="dual_stream",
            projector="mlp2x_gelu",
            pool_level=level,
            pool_first=False,
        )
        assert num_visual_tokens(config, np.zeros((0, 3), int), (0, 0), 16) == expected


def test_published_merv_has_1024_tokens():
    one = {"kind": "siglip", "config": {**siglip_dict(), "image_size": 224, "patch_size": 14}}
    config = LlavaConfig(
        text_config=language_config(),
        encoders=[{**one, "name": "a", "frames": 16}, {**one, "name": "b", "frames": 16}],
        projector="3davg+linear",
    )
    assert num_visual_tokens(config, np.zeros((0, 3), int), (0, 0), 16) == 1024
    assert num_visual_tokens(config, np.zeros((0, 3), int), (0, 0), 1) == 64


def test_groups_of_mosaics_follow_the_patches(encoders):
    """Of fused tokens those of a time cell's patches; in turn all are of the first."""

    visual = made_visual(1, steps=8, keep=40)
    slots = visual.positions[:, 0]
    groups = (slots >= 32).astype(int)
    config = make_several(encoders, pool=(4, 1, 1)).config
    got = visual_token_groups(config, visual.positions, groups, (4, 4), COUNT)
    assert got.tolist() == [0, 0, 1, 1]
    early = slots < 16  # nothing after the first quarter: carried cells stay with it
    got = visual_token_groups(config, visual.positions[early], groups[early], (4, 4), COUNT)
    assert got.tolist() == [0] * 4
    config = make_several(encoders, pool=(4, 1, 1), fusion="concat").config
    got = visual_token_groups(config, visual.positions, groups, (4, 4), COUNT)
    assert got.tolist() == [0] * 8
