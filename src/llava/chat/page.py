"""The page of `codecvit llava web`: drop a video, see what is read of it, ask, go on asking.

A file that is dropped is read at once and removed; frames reach the page inside of it, so that the
server has no file to serve. What was said is kept here, by session, and not taken from the browser.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .frames import CSS as FRAMES_CSS
from .frames import frames_html
from .guard import is_below
from .session import Conversation, Decoding
from .uploads import ENDINGS, Limits, check_upload, sweep

if TYPE_CHECKING:
    import gradio as gr

    from .sight import Reader

Messages = list[dict[str, str]]

FRAMES = 64
CSS = f"""{FRAMES_CSS}
.gradio-container {{ max-width: 1240px !important; margin: 0 auto !important; }}
#cv-head {{ margin: 0; }}
#cv-head p {{ color: var(--body-text-color-subdued); margin: 2px 0 0; }}
footer {{ display: none !important; }}
"""

_EMPTY = '<p class="cv-told">The frames of what you drop appear here, and what is read of them.</p>'
_WORK = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
_QUICK = {"concurrency_id": "quick", "concurrency_limit": 4, "api_visibility": "private"}
_LEFT_OVER = 600.0  # seconds; uploads that nobody asked to read
_STATE_SECONDS = 3600


class Page:
    """The page and what it does.

    Args:
      reader: reads uploads for the model.
      model: how the page calls it.
      decoding: what answers begin with; `max_new_tokens` is also the most that may be asked for.
      limits: of uploads.
      uploads: folder that the server keeps uploads in.
    """

    def __init__(
        self, reader: Reader, model: str, decoding: Decoding, limits: Limits, uploads: Path
    ) -> None:
        self._reader, self._model, self._decoding = reader, model, decoding
        self._limits, self._uploads = limits, uploads.resolve()

    def drop(self, path: str | None) -> tuple[Any, ...]:
        """Reads an upload and removes it.

        Returns:
          For the drop zone (empty again), the session, the frames, the chat.
        """
        if path is None:
            raise _told(ValueError("there is no file"))
        file = Path(path)
        if not is_below(path, self._uploads):
            raise _told(ValueError("the file is no upload"))
        try:
            check_upload(file, self._limits)
            sight = self._reader.read(path)
            picture = self._reader.picture(sight, FRAMES)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            raise _told(error, str(file.parent)) from error
        finally:
            file.unlink(missing_ok=True)
            sweep(self._uploads, _LEFT_OVER)
        shown = frames_html(file.name, sight.describe(), picture)
        return None, self._reader.converse(sight), shown, []

    def ask(
        self, question: str, conversation: Conversation | None, temperature: float, tokens: int
    ) -> Iterator[tuple[str, Messages]]:
        """Asks; gives the question (empty again) and the chat, as the answer comes."""
        if conversation is None:
            raise _told(ValueError("drop a video or an image first"))
        try:
            decoding = dataclasses.replace(
                self._decoding,
                temperature=temperature,
                max_new_tokens=min(int(tokens), self._decoding.max_new_tokens),
            )
            before = messages(conversation)
            asked = {"role": "user", "content": question.strip()}
            with contextlib.closing(conversation.ask(question, decoding)) as answer:
                for text in answer:
                    yield "", [*before, asked, {"role": "assistant", "content": text}]
        except (ValueError, RuntimeError, MemoryError) as error:
            raise _told(error) from error
        yield "", messages(conversation)

    def begin_anew(self, conversation: Conversation | None) -> tuple[Conversation | None, Messages]:
        """The same video, nothing said about it."""
        if conversation is None:
            return None, []
        conversation.stop()
        return self._reader.converse(conversation.sight), []

    def build(self) -> gr.Blocks:
        """The page, not yet served."""
        import gradio as gr

        limits = self._limits
        most = f"up to {limits.bytes / 1e6:.0f} MB, {limits.seconds / 60:.0f} minutes"
        with gr.Blocks(
            title=f"{self._model} · CodecViT",
            analytics_enabled=False,
            delete_cache=(60, int(_LEFT_OVER)),
        ) as blocks:
            gr.Markdown(
                f"## Ask about a video\n{html.escape(self._model)}: drop a clip, see what is read "
                "of it, ask",
                elem_id="cv-head",
            )
            session = gr.State(None, time_to_live=_STATE_SECONDS)
            with gr.Row():
                with gr.Column(scale=1, min_width=360):
                    dropped = gr.File(
                        label=f"Video or image ({most})",
                        file_types=list(ENDINGS),
                        height=170,
                        elem_id="cv-drop",
                    )
                    frames = gr.HTML(_EMPTY, js_on_load=None, elem_id="cv-frames")
                with gr.Column(scale=1, min_width=360):
                    chat = gr.Chatbot(
                        label="Conversation",
                        height=400,
                        render_markdown=False,
                        feedback_options=None,
                        buttons=[],
                        elem_id="cv-chat",
                    )
                    question = gr.Textbox(
                        show_label=False,
                        placeholder="Ask about it, Enter sends",
                        max_length=8000,
                        elem_id="cv-question",
                    )
                    with gr.Row():
                        send = gr.Button("Ask", variant="primary", min_width=90)
                        stop = gr.Button("Stop", min_width=90)
                        anew = gr.Button("Start over", min_width=90)
                    with gr.Accordion("Settings", open=False):
                        temperature = gr.Slider(
                            0, 2, self._decoding.temperature, step=0.05, label="Temperature"
                        )
                        tokens = gr.Slider(
                            1,
                            self._decoding.max_new_tokens,
                            self._decoding.max_new_tokens,
                            step=1,
                            label="Most tokens of an answer",
                        )
            dropped.upload(self.drop, [dropped], [dropped, session, frames, chat], **_WORK)
            gr.on(
                [question.submit, send.click],
                self.ask,
                [question, session, temperature, tokens],
                [question, chat],
                **_WORK,
            )
            stop.click(_stop, [session], [], show_progress="hidden", **_QUICK)
            # The chat has a bin of its own, which would empty no more than what is shown.
            gr.on([anew.click, chat.clear], self.begin_anew, [session], [session, chat], **_QUICK)
        return blocks


def messages(conversation: Conversation) -> Messages:
    """What was said, as the page shows it."""
    roles = {"human": "user", "gpt": "assistant"}
    return [{"role": roles[t["from"]], "content": t["value"]} for t in conversation.said()]


def _stop(conversation: Conversation | None) -> None:
    if conversation is not None:
        conversation.stop()


def _told(error: Exception, folder: str | None = None) -> gr.Error:
    """An error as the page shows it: without places of the server, and as text, not as HTML."""
    import gradio as gr

    text = str(error) or type(error).__name__
    if folder is not None:
        text = text.replace(f"{folder}/", "")
    return gr.Error(html.escape(text), print_exception=False)
