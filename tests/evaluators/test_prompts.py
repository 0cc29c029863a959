"""Files of class names and templates, and the texts made of them."""

import json

import pytest

from codecvit.evaluators.prompts import (
    TEMPLATES,
    Classes,
    canonicalise,
    class_prompts,
    read_classes,
    read_templates,
)


def test_lines_with_aliases(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("tench, Tinca tinca\n\ngoldfish\n  black swan ,Cygnus atratus\n")
    assert read_classes(file) == Classes(
        (("tench", "Tinca tinca"), ("goldfish",), ("black swan", "Cygnus atratus"))
    )


def test_a_json_list_keeps_the_commas_of_a_name(tmp_path):
    file = tmp_path / "classes.json"
    file.write_text(json.dumps(["ram, adult male", ["tench", "Tinca tinca"]]))
    assert read_classes(file).names == (("ram, adult male",), ("tench", "Tinca tinca"))


def test_wordnet_ids_order_the_classes(tmp_path):
    file = tmp_path / "LOC_synset_mapping.txt"
    file.write_text("n01443537 goldfish, Carassius auratus\nn01440764 tench, Tinca tinca\n")
    found = read_classes(file)
    assert found.ids == ("n01440764", "n01443537")
    assert found.names == (("tench", "Tinca tinca"), ("goldfish", "Carassius auratus"))
    assert len(found) == 2


def test_a_known_data_set_has_its_number_of_classes(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(f"thing {i}" for i in range(1000)))
    assert len(read_classes(file, "imagenet")) == 1000
    file.write_text("\n".join(f"thing {i}" for i in range(999)))
    with pytest.raises(ValueError, match="names 999 classes, expected 1000"):
        read_classes(file, "imagenet")
    with pytest.raises(ValueError, match="'cifar' is none of imagenet"):
        read_classes(file, "cifar")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "names 0 classes"),
        ("a.txt", "cat\ndog,,hound\n", "class 1 has an empty name"),
        ("a.txt", "n01440764 tench\ngoldfish\n", "'goldfish' has no WordNet id"),
        ("a.txt", "n01440764\nn01443537 goldfish\n", "class 0 has an empty name"),
        ("a.txt", "n01440764 a\nn01440764 b\n", "n01440764 is there twice"),
        ("a.json", "{", "a.json: "),
        ("a.json", '{"0": "cat"}', "holds a dict, expected a list"),
        ("a.json", '["cat", 3]', "entry 1 must be a name"),
        ("a.json", '["cat", []]', "entry 1 must be a name"),
    ],
)
def test_files_of_no_use_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / name)
    with pytest.raises(ValueError, match="no file of class names"):
        read_classes(tmp_path / "missing.txt")


def test_the_templates_of_imagenet():
    """80 and 7 as published, each with one place for the name."""
    assert len(set(TEMPLATES["imagenet"])) == len(TEMPLATES["imagenet"]) == 80
    assert set(TEMPLATES["imagenet-7"]) < set(TEMPLATES["imagenet"])
    for text in ("a photo of many {}.", "graffiti of the {}.", "a origami {}.", "itap of my {}."):
        assert text in read_templates("imagenet")
    assert all(text.count("{}") == 1 for name in TEMPLATES for text in TEMPLATES[name])


def test_templates_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("a {}.\n\nthe {}, drawn\n")
    (tmp_path / "a.json").write_text('["a {}.", "the {}, drawn"]')
    for name in ("a.txt", "a.json"):
        assert read_templates(tmp_path / name) == ("a {}.", "the {}, drawn")
    for content, message in (("a photo", "'a photo' must hold {} once"), ("", "no template")):
        (tmp_path / "b.txt").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_templates(tmp_path / "b.txt")
    with pytest.raises(ValueError, match="known by name: photo, imagenet"):
        read_templates("imagenet-8")


def test_prompts():
    classes = Classes((("T-shirt", "tee"), ("{} brace",)))
    templates = ("a {}.", "the {}!")
    assert class_prompts(classes, templates) == [
        ["a T-shirt.", "the T-shirt!", "a tee.", "the tee!"],
        ["a {} brace.", "the {} brace!"],
    ]
    assert class_prompts(classes, templates, aliases=False)[0] == ["a T-shirt.", "the T-shirt!"]
    assert class_prompts(classes, templates, canonical=True)[0][:2] == ["a tshirt", "the tshirt"]
    assert canonicalise("  A_Photo,  of\tMY cat. ") == "a photo of my cat"
