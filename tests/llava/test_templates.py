"""Templates: byte for byte those of the language models, in training and in inference alike."""

import pytest
import torch
from transformers import GPT2Config

from codecvit.llava import TEMPLATES, template_for
from codecvit.llava.templates import Piece

from .conftest import language_config

NAMES = ["chatml", "llama2", "llama3", "phi3", "pure", "vicuna"]

# The chat templates that the language models' tokenizers carry.
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
OFFICIAL = {"chatml": QWEN2, "llama2": LLAMA2, "llama3": LLAMA3, "phi3": PHI3}
BOS = {"llama2": "<s>", "llama3": "<|begin_of_text|>"}

TURNS = [
    {"from": "human", "value": "<image>\nWhich way does it move?"},
    {"from": "gpt", "value": "To the {left}."},
    {"from": "human", "value": "And <video> here?"},
    {"from": "gpt", "value": 'Up, "up" & 上.'},
]


def as_messages(turns, system=None):
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


@pytest.mark.parametrize("system", [None, "Answer briefly."])
@pytest.mark.parametrize("name", list(OFFICIAL))
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_the_text_is_that_of_the_language_models_own_template(name, system, turns, tokenizer_for):
    tokenizer = tokenizer_for(name)
    tokenizer.bos_token = BOS.get(name)
    template, conversation = TEMPLATES[name], TURNS[:turns]
    ours = "".join(piece.text for piece in template.render(conversation, system))
    official = tokenizer.apply_chat_template(
        as_messages(conversation, system),
        chat_template=OFFICIAL[name],
        tokenize=False,
        add_generation_prompt=turns % 2 == 1,
    )
    assert ours == official


def test_vicuna_pure_and_plain_as_published():
    """FastChat's vicuna_v1.1 with two separators; MERV's of base models, where SentencePiece puts
    the space before an answer; LLaVA's plain of the projector stage."""
    text = "".join(piece.text for piece in TEMPLATES["vicuna"].render(TURNS))
    assert text == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhich way does it move? ASSISTANT: To the {left}.</s>"
        'USER: And <video> here? ASSISTANT: Up, "up" & 上.</s>'
    )
    text = "".join(piece.text for piece in TEMPLATES["pure"].render(TURNS))
    assert text == (
        "<s>In: <image>\nWhich way does it move?\nOut:To the {left}.</s>"
        'In: And <video> here?\nOut:Up, "up" & 上.</s>'
    )
    caption = [{"from": "human", "value": "Describe:\n<image>"}, {"from": "gpt", "value": "A dog."}]
    assert TEMPLATES["plain"].render(caption) == [
        Piece("<image>", False),
        Piece("A dog.\n", True),
    ]
    assert TEMPLATES["plain"].prompt(caption[:1]) == "<image>"


@pytest.mark.parametrize("system", [None, "Answer briefly."])
@pytest.mark.parametrize("name", [*NAMES, "plain"])
def test_training_text_up_to_an_answer_is_the_prompt(name, system):
    template = TEMPLATES[name]
    pieces = template.render(TURNS, system)
    for answer, number in ((1, 0), (3, 1)):
        supervised = [i for i, piece in enumerate(pieces) if piece.supervised]
        before = "".join(piece.text for piece in pieces[: supervised[number]])
        assert before == template.prompt(TURNS[:answer], system)
        # Piece by piece as well: what is tokenised alone in one is so in the other.
        assert pieces[: supervised[number]] == template.render(TURNS[:answer], system)


@pytest.mark.parametrize("name", [*NAMES, "plain"])
def test_answers_and_their_ends_are_supervised_and_nothing_else(name):
    template = TEMPLATES[name]
    supervised = [piece.text for piece in template.render(TURNS) if piece.supervised]
    assert len(supervised) == 2
    for text, turn in zip(supervised, TURNS[1::2], strict=True):
        assert text.strip().startswith(turn["value"])
        assert text.endswith(template.end)
        assert text.strip() in (
            turn["value"],
            *(turn["value"] + s + template.end for s in ("", " ")),
        )


@pytest.mark.parametrize("name", NAMES)
def test_pieces_give_the_tokens_of_the_whole_text(name, tokenizer_for):
    """For byte-level tokenizers a piece ends where a token does."""
    tokenizer = tokenizer_for(name)
    pieces = TEMPLATES[name].render(TURNS)
    one_by_one = [tokenizer.encode(piece.text, add_special_tokens=False) for piece in pieces]
    whole = tokenizer.encode("".join(piece.text for piece in pieces), add_special_tokens=False)
    assert sum(one_by_one, []) == whole
    ends = tokenizer.encode(TEMPLATES[name].end, add_special_tokens=False)
    assert [ids[-1] for ids, p in zip(one_by_one, pieces, strict=True) if p.supervised] == ends * 2


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "empty"),
        ([{"from": "gpt", "value": "a"}], "turn 0 is from 'gpt'"),
        ([TURNS[0], TURNS[0]], "turn 1 is from 'human'"),
        ([TURNS[0], {"from": "observer", "value": "a"}], "turn 1 is from 'observer'"),
        ([{"from": "human"}], "turn 0 has no text"),
        ([{"from": "human", "value": 3}], "turn 0 has no text"),
        ([TURNS[0], TURNS[1], {"from": "system", "value": "a"}], "turn 2 is from 'system'"),
    ],
)
def test_malformed_conversations_are_refused(turns, message):
    with pytest.raises(ValueError, match=message):
        TEMPLATES["chatml"].render(turns)


def test_a_prompt_ends_with_a_question():
    for turns in ([], TURNS[:2]):
        with pytest.raises(ValueError, match="ends with a question"):
            TEMPLATES["chatml"].prompt(turns)


def test_a_conversations_own_system_turn_comes_first():
    own = [{"from": "system", "value": "Mine."}, *TURNS[:1]]
    assert TEMPLATES["chatml"].prompt(own, "Theirs.") == TEMPLATES["chatml"].prompt(
        TURNS[:1], "Mine."
    )


@pytest.mark.parametrize("name", NAMES)
def test_tokenizers_of_the_template_pass_and_others_do_not(name, tokenizer_for):
    TEMPLATES[name].check_tokenizer(tokenizer_for(name))
    other = "chatml" if name != "chatml" else "llama3"
    with pytest.raises(ValueError, match=f"{name}.*belongs to another template"):
        TEMPLATES[name].check_tokenizer(tokenizer_for(other))


def test_a_pad_id_of_an_ordinary_token_is_refused(tokenizer_for):
    """Copied settings put the pad id on an ordinary token of another vocabulary."""
    tokenizer = tokenizer_for("chatml")
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no pad token"):
        TEMPLATES["chatml"].check_tokenizer(tokenizer)
    tokenizer.pad_token = "a"
    with pytest.raises(ValueError, match=r"pad id \d+ is that of the ordinary token 'a'"):
        TEMPLATES["chatml"].check_tokenizer(tokenizer)


def test_the_model_type_names_the_template(tokenizer_for, make_config):
    assert template_for(language_config("qwen2")).name == "chatml"
    assert template_for(language_config("qwen3")).name == "chatml"
    assert template_for(language_config("phi3")).name == "phi3"
    assert template_for(language_config("llama"), tokenizer_for("llama3")).name == "llama3"
    assert template_for(make_config(template="vicuna")).name == "vicuna"
    assert TEMPLATES["qwen_1_5"] is TEMPLATES["chatml"]
    for config, tokenizer in (
        (language_config("llama"), None),
        (language_config("llama"), tokenizer_for("llama2")),
        (GPT2Config(), None),
    ):
        with pytest.raises(ValueError, match="set template to one of.*vicuna"):
            template_for(config, tokenizer)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "phi3"])
def test_a_prompt_goes_through_each_language_model(kind, make_model, tokenizer_for, visual, batch):
    """Text to text: template, tokenizer, an image, an answer."""
    name = "llama3" if kind == "llama" else template_for(language_config(kind)).name
    tokenizer = tokenizer_for(name)
    model = make_model(kind, template=name, projector="merger")
    before, after = TEMPLATES[name].prompt(TURNS[:1]).split("<image>")
    row = [
        *tokenizer.encode(before, add_special_tokens=False),
        visual(),
        *tokenizer.encode(after, add_special_tokens=False),
    ]
    ids = model.generate(**batch(model.config, [row]), max_new_tokens=3, do_sample=False)
    assert ids.shape == (1, 3) or ids[0, -1] == 258
    assert isinstance(tokenizer.decode(ids[0]), str)
    assert ids.dtype == torch.int64
