"""The published ids: what is known of them, and where models are looked for."""

from __future__ import annotations

import shlex

import huggingface_hub
import pytest

from codecvit.llava import available_model_names, available_models, get_model_description
from codecvit.llava.merv.published import CHECKPOINT, PUBLISHED, find_model


def test_the_published_ids():
    assert available_models() == ["merv-frozen", "merv-full"] + [
        f"{name}-single" for name in ("languagebind", "dinov2", "vivit", "siglip")
    ]
    names = dict(available_model_names())
    assert set(names) == {*PUBLISHED, *(model.name for model in PUBLISHED.values())}
    assert names["MERV Full"] == names["merv-full"]


def test_descriptions_are_printed_and_returned(capsys):
    description = get_model_description("MERV Frozen")
    assert description == get_model_description("merv-frozen")
    assert list(description["encoders"]) == ["languagebind", "dinov2", "vivit", "siglip"]
    assert capsys.readouterr().out.count("LanguageBind_Video_merge") == 2
    with pytest.raises(ValueError, match="no published model is called 'llava'"):
        get_model_description("llava")


@pytest.mark.parametrize("name", ["merv-full", "MERV Full", "siglip-single"])
def test_an_id_without_a_folder_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is not in") as error:
        find_model(name)
    told = str(error.value)
    model_id = "siglip-single" if "siglip" in name else "merv-full"
    last = shlex.split(told.splitlines()[-1])
    assert last[:5] == ["codecvit", "llava", "import", "merv", f"merv-checkpoints/{model_id}"]
    towers = [last[i + 1].partition("=") for i, word in enumerate(last) if word == "--encoder"]
    for (tower, _, folder), (wanted, repo) in zip(
        towers, PUBLISHED[model_id].encoders.items(), strict=True
    ):
        assert tower == wanted and f"hf download {repo} --local-dir {folder}" in told
    (tmp_path / model_id).mkdir()
    (tmp_path / model_id / "config.json").write_text("{}")
    assert find_model(name).resolve() == tmp_path / model_id
    assert find_model(name, cache_dir=tmp_path) == tmp_path / model_id


def test_a_folder_is_taken_as_it_is_and_a_checkpoint_of_merv_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        find_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert find_model(str(tmp_path)) == tmp_path
    (tmp_path / CHECKPOINT).parent.mkdir()
    (tmp_path / CHECKPOINT).write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds a checkpoint of MERV.*(?s:.)*import merv"):
        find_model(tmp_path)


def test_names_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(name, token=None, cache_dir=None):
        asked.append((name, token, cache_dir))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("owner/model", "secret", "cache") == tmp_path
    assert asked == [("owner/model", "secret", "cache")]
    for name in ("model", "./owner/model", "/owner/model", "a/b/c"):
        with pytest.raises(ValueError, match="none of the published ids"):
            find_model(name)
