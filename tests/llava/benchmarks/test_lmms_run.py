"""The command that starts an evaluation by lmms-eval."""

from __future__ import annotations

from codecvit.codec.llava.cli import main


def lmms(*arguments):
    return main(["lmms", "--dry-run", "--out", "res", *map(str, arguments)])


def test_an_evaluation_finds_assets_by_task(home, capsys):
    common = ["--model", "m", "--tasks", "nextqa,ai2d"]
    assert lmms(*common) == 2
    assert "`codecvit llava benchmark nextqa_mc_test` makes them" in capsys.readouterr().err
    assert lmms(*common, "--on-miss", "pack") == 0
    assert "assets=" not in capsys.readouterr().err
    (home / "nextqa_mc_test_offline").mkdir()
    assert lmms(*common, "--batch-size", 4, "--processes", 2, "--python", "py", "--limit", "8") == 0
    words = capsys.readouterr().err.split()[1:]
    assert words[:7] == [
        "py",
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "-m",
        "lmms_eval",
    ]
    options = words[words.index("--model_args") + 1]
    assert options == (
        f"pretrained=m,assets={home}/nextqa_mc_test_offline,on_miss=error,results=res/codecvit,"
        "dtype=bfloat16"
    )
    assert words[words.index("--tasks") + 1] == "nextqa_mc_test,ai2d"
    assert words[words.index("--batch_size") + 1] == "4" and words[-2:] == ["--limit", "8"]
    assert words[words.index("--model") + 1] == "codecvit_llava" and "--log_samples" in words
    assert lmms("--model", "a,b", "--tasks", "ai2d") == 2
    assert "cannot take a comma" in capsys.readouterr().err
