"""Where numbers go: everything into the files, what matters onto the terminal."""

import pytest

from codecvit.metrics import MetricWriter, read_metrics


@pytest.mark.parametrize("unreadable", [0.0, 2.0])
def test_counts_of_an_evaluation_are_shown_when_some_could_not_be_read(
    tmp_path, capsys, unreadable
):
    counts = {"images": 32.0, "captions": 64.0, "unreadable": unreadable}
    values = {f"retrieval/coco/{name}": count for name, count in counts.items()}
    whole = {"zero_shot/digits/top1": 0.5, "zero_shot/digits/count": 9.0}
    values |= {"retrieval/coco/image_to_text_r1": 0.25, "zero_shot/digits/unreadable": 0.0, **whole}
    writer = MetricWriter(tmp_path, 10)
    writer.write(3, values)
    writer.close()
    line = capsys.readouterr().out.strip()
    assert "retrieval/coco/image_to_text_r1 0.25" in line and "zero_shot/digits/top1 0.5" in line
    for name in counts:
        assert (f"retrieval/coco/{name} " in line) == (unreadable > 0)
    assert "zero_shot/digits/count" not in line and "zero_shot/digits/unreadable" not in line
    (row,) = read_metrics(tmp_path)
    assert {key: row[key] for key in values} == values
