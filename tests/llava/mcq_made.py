"""Made benchmarks and stand-ins for models, so that what comes out is known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import av
import numpy as np

from codecvit.codec.llava.span import Span
from codecvit.llava.mcq.parse import strategy_named
from codecvit.llava.mcq.questions import Question
from codecvit.llava.mcq.runner import Answer, describe_run, run_chunk
from codecvit.llava.mcq.sources import VisualError

TASKS = ("Direction", "Digit", "Background")


def made_questions(count: int, options: int = 4) -> list[Question]:
    """Questions of three tasks, the truth spread over the letters."""
    return [
        Question(
            index=i,
            id=f"q{i}",
            task=TASKS[i % 3],
            text=f"Question number {i}?",
            options=tuple(f"option {i}-{k}" for k in range(options)),
            answer=(i * 7) % options,
            video=f"videos/v{i // 2}.mp4",
            span=Span(),
        )
        for i in range(count)
    ]


def write_merv(folder: Path, questions: int = 9, videos: int = 1) -> Path:
    """A benchmark as MERV ships it: 9 questions with 3 options about one video, end_frame 595."""
    (folder / "videos").mkdir(parents=True)
    asked, answers = [], []
    for i in range(questions):
        name = f"video_{10336 + i % videos}"
        options = [f"thing {i}", "I don't know", f"no thing {i}"]
        asked.append(
            {
                "video_name": name,
                "num_option": 3,
                "question_id": f"mcvqa_10336_{i}",
                "options": options,
                "question": f"What is number {i}?",
                "end_frame": 595,
            }
        )
        answers.append(
            {
                "video_name": name,
                "question_id": f"mcvqa_10336_{i}",
                "answer_id": i % 3,
                "answer": options[i % 3],
            }
        )
    (folder / "test_q.json").write_text(json.dumps(asked))
    (folder / "test_a.json").write_text(json.dumps(answers))
    return folder


def write_clip(path: Path, frames: int = 24, rate: int = 12, size=(48, 64)) -> Path:
    """A bright square that goes right over noise; frame i is told by the square's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ground = np.random.default_rng(7).integers(30, 90, (*size, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.qmin, stream.codec_context.qmax = 2, 3
        for i in range(frames):
            picture = ground.copy()
            left = i * (size[1] - 16) // max(frames - 1, 1)
            picture[16:32, left : left + 16] = (240, 220, 40)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


class StandIn:
    """Replies by a rule of (question text, letters); counts calls; may die or fail on cue.

    The questions are recognised by their prompt, which has to hold their text.
    """

    def __init__(self, questions, rule="truth", die_after=None, fails=(), width=None, death=None):
        self.by_prompt = questions
        self.rule, self.die_after, self.fails, self.width = rule, die_after, set(fails), width
        self.death = death
        self.asked: list[str] = []

    def _question(self, asked):
        return next(q for q in self.by_prompt if q.text in asked.prompt)

    def _letter(self, question):
        if self.rule == "truth":
            return question.letters[question.answer]
        if self.rule == "wrong":
            return question.letters[(question.answer + 1) % len(question.options)]
        if self.rule == "hash":
            digest = hashlib.sha256(question.id.encode()).digest()[0]
            return question.letters[digest % len(question.options)]
        return self.rule

    def _each(self, asked):
        if self.width is not None and len(asked) > self.width:
            raise RuntimeError("out of memory")
        for item in asked:
            question = self._question(item)
            if question.id in self.fails:
                raise RuntimeError(f"no answer to {question.id}")
            if self.die_after is not None and len(self.asked) >= self.die_after:
                self.death and self.death()
                raise KeyboardInterrupt
            self.asked.append(question.id)
            yield question

    def generate(self, asked):
        return [Answer(1024, 40, reply=self._letter(q)) for q in self._each(asked)]

    def loglik(self, asked):
        return [
            Answer(1024, 40, scores=tuple(0.0 if x == self._letter(q) else -1.0 for x in q.letters))
            for q in self._each(asked)
        ]

    def describe(self):
        return {"path": "stand-in", "fingerprint": "0", "template": "none", "rule": self.rule}


class Pictures:
    """Visuals of anything, except of some videos."""

    def __init__(self, broken=()):
        self.broken = set(broken)

    def load(self, question):
        if question.video in self.broken:
            raise VisualError(f"{question.video}: does not exist")
        return None, "asset"

    def describe(self):
        return {"config_hash": "abc", "frames_hash": None}


def run_all(questions, answerer, out, strategy="letter", parts=1, pictures=None, **options):
    """Runs every chunk; gives the description of the run."""
    pictures, strategy = pictures or Pictures(), strategy_named(strategy)
    benchmark = {"path": "made", "format": "merv"}
    run = describe_run(questions, benchmark, pictures, answerer, strategy)
    for part in range(parts):
        run_chunk(questions, pictures, answerer, strategy, out, run, (part, parts), **options)
    return run
