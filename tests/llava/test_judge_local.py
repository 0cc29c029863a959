"""A local chat model as a judge: greedy, with the same messages, or a clear refusal."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codecvit.__main__ import main
from codecvit.llava.mcq.merge import merge
from codecvit.llava.mcq.records import whole_lines
from codecvit.llava.open_ended.figures import judged_figures
from codecvit.llava.open_ended.local_judge import LocalJudge
from codecvit.llava.open_ended.predictions import read_jobs
from codecvit.llava.open_ended.prompts import messages
from codecvit.llava.open_ended.rate import describe_run, rate

from .judge_made import qa_rows, write_predictions
from .mcq_made import write_clip

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(lm_dir, tmp_path_factory):
    """A tiny chat model."""
    folder = tmp_path_factory.mktemp("judge") / "chat"
    shutil.copytree(lm_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_replies_are_greedy_and_stored(folder, tmp_path):
    judge = LocalJudge(folder, "cpu", "float32", max_new_tokens=5)
    jobs, name = read_jobs(write_predictions(tmp_path / "p.jsonl", qa_rows(3)))
    reply = judge.ask(jobs[1])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    system, user = messages(jobs[1])
    text = f"<|im_start|>system\n{system['content']}<|im_end|>\n"
    text += f"<|im_start|>user\n{user['content']}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    new = []
    with torch.no_grad():
        for _ in range(5):
            logits = model(torch.cat([ids, torch.tensor([new], dtype=torch.int64)], 1)).logits
            new.append(int(logits[0, -1].argmax()))
            if new[-1] == model.generation_config.eos_token_id:
                break
    assert reply.text == tokenizer.decode(new, skip_special_tokens=True)
    assert reply.tokens == (ids.shape[1], len(new))

    run = describe_run(jobs, name, "made", judge)
    rate(jobs, judge, tmp_path / "out", run, tries=1)
    figures = merge(tmp_path / "out", judged_figures)
    assert figures["statuses"]["unparsed"] == 3  # its weights are noise
    records, _ = whole_lines(tmp_path / "out" / "results.jsonl")
    assert records[1]["reply"] == reply.text and records[1]["judge"] == "hf:chat"
    assert len(run["judge"]["fingerprint"]) == 16


def test_from_a_download_to_an_accuracy(make_model, tokenizer, tmp_path, capsys):
    """prepare, assets, answer, judge: every verb's output is the next one's input."""
    root, bench, out = tmp_path / "MSVD", tmp_path / "bench", tmp_path / "out"
    saved = tmp_path / "model"
    make_model(pool_level=2).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    rows = [
        {"id": i, "video_id": 1 + i % 2, "question": f"what {i}?", "answer": "x"} for i in range(4)
    ]
    write_clip(root / "YouTubeClips" / "name_one.mp4")
    (root / "test_qa.json").write_text(json.dumps(rows))
    (root / "youtube_mapping.txt").write_text("name_one vid1\nname_two vid2\n")
    packing = ["--num-frames", "16", "--num-images", "3", "--size", "64"]

    def call(*words):
        return main(["llava", *map(str, words)])

    assert call("prepare", "msvd", "--root", root, "--out", bench) == 0
    videos, assets = tmp_path / "videos.jsonl", tmp_path / "assets"
    assert call("answer", "--benchmark", bench, "--list-videos", videos) == 0
    # One video is missing: it is listed, and costs its questions.
    assert call("assets", "--jsonl", videos, "--root", bench, "--out", assets, *packing) == 0
    command = ["answer", "--model", saved, "--benchmark", bench, "--out", out, "--dtype", "float32"]
    command += ["--assets", assets, "--device", "cpu", "--max-new-tokens", 4]
    assert call(*command, "--chunk", "0/2") == 0 and call(*command, "--chunk", "1/2") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["statuses"] == {"ok": 2, "decode_error": 2, "gen_error": 0}
    assert summary["visuals"]["asset"] == 2 and summary["tokens"]["visual"] > 0
    assert call("judge", out, "--judge", "exact", "--out", tmp_path / "judged") == 0
    assert "score 0.00 of 4" in capsys.readouterr().out


def test_no_chat_model_is_refused(lm_dir, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match="takes no system prompt: no system role"):
        LocalJudge(other, "cpu")
    with pytest.raises(ValueError, match="no chat template"):
        LocalJudge(lm_dir, "cpu")
    with pytest.raises(ValueError, match="no config.json"):
        LocalJudge(tmp_path, "cpu")
