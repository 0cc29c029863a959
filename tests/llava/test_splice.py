"""Visuals in text: which embedding goes where, whatever else is in the batch."""

import pytest
import torch

from codecvit.llava import TEMPLATES, VISUAL_TOKEN, num_visual_tokens
from codecvit.llava.model.splice import supervised_loss

from .conftest import make_visual

IMAGE = make_visual(0)
VIDEO = make_visual(1, frames=6, rows=4, columns=6, keep=50)
SMALL = make_visual(2, frames=2, rows=3, columns=3, keep=7)
ROWS = [
    [5, 6, IMAGE, 7, 8, 9],
    [10, 11, 12],
    [VIDEO, 13],
    [14, SMALL, 15, IMAGE, 16, 17],
]
PROJECTORS = [
    {"projector": "mlp2x_gelu"},
    {"projector": "mlp2x_gelu", "pool_level": 2, "pool_first": False},
    {"projector": "3davg+linear", "pool": (3, 2, 2), "position_embedding": "sincos"},
    {"projector": "3dconv+linear", "pool": (3, 2, 2), "pool_empty": "drop", "kind": "qwen3"},
    {"projector": "attentive+linear", "pool": (3, 2, 2), "kind": "llama"},
    {"projector": "merger", "kind": "phi3"},
]


def by_name(fields):
    return "-".join(map(str, fields.values()))


@pytest.fixture(scope="module", params=PROJECTORS, ids=by_name)
def any_model(request, make_model):
    return make_model(**request.param)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(projector="3davg+linear", pool=(3, 2, 2))


@torch.no_grad()
def logits(model, arguments):
    return model(**arguments).logits


def test_golden_ids_without_bos_and_with_several_turns(tokenizer, make_config, batch):
    """Bytes are ids 0..255 in the order of the byte alphabet; 257 and 258 open and close a turn."""
    turns = [
        {"from": "human", "value": "<image>a"},
        {"from": "gpt", "value": "b"},
        {"from": "human", "value": "c<image>"},
    ]
    config = make_config(projector="merger")
    row = []
    for number, text in enumerate(TEMPLATES["chatml"].prompt(turns, "s").split("<image>")):
        row += [IMAGE] if number else []
        row += tokenizer.encode(text, add_special_tokens=False)
    ids = batch(config, [row])["input_ids"][0].tolist()

    def text(letters):
        return tokenizer.convert_tokens_to_ids([{"\n": "Ċ"}.get(c, c) for c in letters])

    visual = [VISUAL_TOKEN] * 4
    assert ids == [
        *[257, *text("system\ns"), 258, *text("\n")],
        *[257, *text("user\n"), *visual, *text("a"), 258, *text("\n")],
        *[257, *text("assistant\nb"), 258, *text("\n")],
        *[257, *text("user\nc"), *visual, 258, *text("\n")],
        *[257, *text("assistant\n")],
    ]


def test_a_batch_of_text_images_and_videos_equals_its_rows_alone(any_model, batch):
    config = any_model.config
    together = batch(config, ROWS)
    got = logits(any_model, together)
    for i, row in enumerate(ROWS):
        alone = logits(any_model, batch(config, [row]))[0]
        torch.testing.assert_close(got[i, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_left_and_right_padding_give_the_same_logits(any_model, batch):
    config = any_model.config
    right, left = (batch(config, ROWS, left=side) for side in (False, True))
    from_right = logits(any_model, right)[right["attention_mask"].bool()]
    from_left = logits(any_model, left)[left["attention_mask"].bool()]
    torch.testing.assert_close(from_left, from_right, rtol=1e-4, atol=1e-5)


def test_generation_of_a_batch_equals_generation_of_its_rows(any_model, batch):
    config = any_model.config
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 299}
    together = any_model.generate(**batch(config, ROWS, left=True), **options)
    for ids, row in zip(together.tolist(), ROWS, strict=True):
        alone = any_model.generate(**batch(config, [row]), **options)[0].tolist()
        assert ids == alone + [256] * (len(ids) - len(alone))
    assert len({tuple(ids) for ids in together.tolist()}) > 1


def test_generation_is_the_greedy_continuation_of_forward(model, batch):
    row = list(ROWS[0])
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 299}
    got = model.generate(**batch(model.config, [row]), **options)[0].tolist()
    for expected in got:
        row.append(int(logits(model, batch(model.config, [row]))[0, -1].argmax()))
        assert row[-1] == expected


def test_generation_stops_where_the_model_says_so(model, batch):
    row = batch(model.config, [ROWS[0]])
    first = model.generate(**row, max_new_tokens=3, do_sample=False, eos_token_id=299)[0, 0]
    short = model.generate(**row, max_new_tokens=3, do_sample=False, eos_token_id=int(first))
    assert short.tolist() == [[int(first)]]


def test_visuals_go_to_their_own_places(model, batch):
    """Exchanging two images of a row changes it; exchanging their places as well does not."""
    other = make_visual(7)
    config = model.config
    one = logits(model, batch(config, [[1, IMAGE, 2, other, 3]]))
    two = logits(model, batch(config, [[1, other, 2, IMAGE, 3]]))
    assert (one - two).abs().max() > 1e-3
    embeds, _ = model.embed(
        **{
            k: v
            for k, v in batch(config, [[1, IMAGE, 2, other, 3]]).items()
            if k != "attention_mask"
        }
    )
    tokens, counts = model.project_visuals(
        model.encode_visuals(other[0], other[1], torch.tensor([16])),
        other[1],
        torch.tensor([16]),
        torch.tensor([[4, 4]]),
    )
    assert counts.tolist() == [4]
    torch.testing.assert_close(embeds[0, 6:10], tokens)
    text = model.get_input_embeddings()(torch.tensor([1, 2, 3]))
    assert torch.equal(embeds[0, [0, 5, 10]], text)


def test_pixels_and_times_reach_the_text(model, batch):
    """Other pixels, or the same patches at other times, change the logits behind them."""
    arguments = batch(model.config, [[1, VIDEO, 2]])
    base = logits(model, arguments)[0, -1]
    pixels = {**arguments, "patches": 255 - arguments["patches"]}
    assert (logits(model, pixels)[0, -1] - base).abs().max() > 1e-3
    times = arguments["positions"].clone()
    times[:, 0] = 5 - times[:, 0]
    assert (logits(model, {**arguments, "positions": times})[0, -1] - base).abs().max() > 1e-4


def test_the_loss_is_that_of_the_language_model_with_all_logits(any_model, batch):
    arguments = batch(any_model.config, ROWS, labels=True)
    arguments["labels"][0, :2] = -100
    out = any_model(**arguments)
    every = logits(any_model, {k: v for k, v in arguments.items() if k != "labels"})
    reference = any_model.language_model.loss_function(
        logits=every, labels=arguments["labels"], vocab_size=300
    )
    torch.testing.assert_close(out.loss, reference)
    torch.testing.assert_close(out.logits, every[:, out.logit_positions], rtol=1e-4, atol=1e-5)
    # Only columns before a supervised token have logits.
    assert 0 < len(out.logit_positions) < every.shape[1]


def test_visual_and_padding_tokens_do_not_count_in_the_loss(model, batch):
    """The number of supervised tokens is that of the text, and the loss divides by it or by what
    a step of several batches says."""
    arguments = batch(model.config, ROWS, labels=True)
    supervised = int((arguments["labels"][:, 1:] != -100).sum())
    assert supervised == 4 + 2 + 1 + 3
    mean = model(**arguments).loss
    torch.testing.assert_close(model(**arguments, num_items_in_batch=2 * supervised).loss, mean / 2)


def test_accumulated_batches_weigh_by_their_tokens(model, batch):
    """Two steps of one row, each divided by the tokens of both, make the loss of the batch."""
    rows = [ROWS[0], ROWS[3]]
    both = batch(model.config, rows, labels=True)
    total = (both["labels"][:, 1:] != -100).sum()
    parts = [
        model(**batch(model.config, [row], labels=True), num_items_in_batch=total).loss
        for row in rows
    ]
    torch.testing.assert_close(sum(parts), model(**both).loss)


def test_the_loss_without_any_supervised_token_is_zero_and_has_gradients():
    logits = torch.randn(2, 0, 5, requires_grad=True)
    loss = supervised_loss(logits, torch.zeros(2, 0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


def test_wrong_numbers_of_visual_tokens_are_refused(model, batch):
    arguments = batch(model.config, ROWS)
    short = {**arguments, "input_ids": arguments["input_ids"].clone()}
    short["input_ids"][0, 2] = 5
    with pytest.raises(ValueError, match="25 visual tokens .-200., but the 4 visuals make 26"):
        model(**short)
    # The sum fits, but a visual would be cut by the end of its row.
    shifted = {**arguments, "input_ids": arguments["input_ids"].clone()}
    shifted["input_ids"][0, 2], shifted["input_ids"][1, 0] = 5, VISUAL_TOKEN
    with pytest.raises(ValueError, match="row 0 of input_ids has 3 visual tokens .*make 4"):
        model(**shifted)
    text_only = {k: arguments[k] for k in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="26 visual tokens .-200., but there are no visuals"):
        model(**text_only)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": lambda x: x[:-1]}, "positions has 88 rows for 89 patches"),
        ({"lengths": lambda x: x + 1}, r"lengths = \[17, 51, 8, 17\] add up to other than 89"),
        ({"grids": lambda x: x - 1}, r"positions\[\d+\] = .* outside of its visual's grid"),
        ({"grids": lambda x: x[:2]}, r"grids must be \[4, 2\]"),
        ({"patches": lambda x: x[:, :27]}, r"\[89, 27\]; the encoder has patches of 4 x 4 .*48\]"),
        ({"positions": lambda _: None}, "visuals need positions"),
        ({"labels": lambda _: torch.zeros(4, 2, dtype=torch.long)}, r"labels are \[4, 2\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message, model, batch):
    arguments = batch(model.config, ROWS)
    ((name, function),) = change.items()
    with pytest.raises(ValueError, match=message):
        model(**{**arguments, name: function(arguments.get(name))})


def test_rows_beyond_the_context_are_refused(model, batch):
    row = batch(model.config, [[1] * 500])
    assert logits(model, row).shape == (1, 500, 300)
    with pytest.raises(ValueError, match="520 tokens .* context of 512"):
        model.generate(**row, max_new_tokens=20)
    with pytest.raises(ValueError, match="518 tokens .* context of 512"):
        model(**batch(model.config, [[1] * 500, [IMAGE, VIDEO, *[1] * 502]]))


def test_generation_with_padding_on_the_right_is_refused(model, batch):
    with pytest.raises(ValueError, match="padding on the left"):
        model.generate(**batch(model.config, ROWS), max_new_tokens=2)


def test_cached_features_stand_in_for_patches(any_model, batch):
    arguments = batch(any_model.config, ROWS)
    with torch.no_grad():
        features = any_model.encode_visuals(
            arguments["patches"], arguments["positions"], arguments["lengths"]
        )
    cached = {k: v for k, v in arguments.items() if k != "patches"}
    expected = logits(any_model, arguments)
    assert torch.equal(logits(any_model, {**cached, "visual_features": features}), expected)
    with pytest.raises(ValueError, match="visual_features has 88 rows for 89 positions"):
        any_model(**cached, visual_features=features[1:])


def test_counts_of_the_data_side_are_those_of_the_model(any_model):
    """What expands a placeholder and what fills it must agree for every visual."""
    for seed in range(5):
        patches, positions, grid = make_visual(
            seed, frames=5, rows=5, columns=7, keep=20 + 9 * seed
        )
        features = any_model.encode_visuals(patches, positions, torch.tensor([len(patches)]))
        tokens, counts = any_model.project_visuals(
            features, positions, torch.tensor([len(patches)]), torch.tensor([grid])
        )
        wanted = num_visual_tokens(any_model.config, positions.numpy(), grid)
        assert len(tokens) == int(counts) == wanted
