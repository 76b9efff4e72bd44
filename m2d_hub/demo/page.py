"""The page itself: its tabs, what they call, and how it is served."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2d_hub.corpus.library import Library
from m2d_hub.demo.cards import brief_card, comparison, error_card, match_list, sound_card, tag_list
from m2d_hub.demo.listening import MOST_S, listen
from m2d_hub.errors import ConfigError, M2DError
from m2d_hub.io import importing
from m2d_hub.model import M2D
from m2d_hub.zero_shot import classify_by_text

MOST_UPLOAD = "50mb"  # a file
SIMILAR = 5  # sounds of the folder
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Answers:
    """What the page's buttons answer, as HTML; errors are sentences."""

    model: M2D
    library: Library | None

    def one(self, path: str | None) -> tuple[str, str]:
        """A sound, and the folder's most similar ones."""
        if not path:
            return "", ""
        return self._told(path, self._one) or ("", "")

    def two(self, path: str | None, other: str | None) -> str:
        """Two sounds compared."""
        if not path or not other:
            return error_card("Two sounds are needed: give one on each side.")
        return self._told(path, lambda _: (self._two(path, other), ""), other)[0]

    def words(self, path: str | None, text: str) -> str:
        """Which of the lines of ``text`` fits a sound best."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not path or not lines:
            return error_card("Give a sound, and at least one line of words.")

        def answer(path: str) -> tuple[str, str]:
            heard = listen(self.model, path)
            tags = classify_by_text(self.model, heard.waveform, lines, top_k=len(lines))[0]
            return tag_list(tags), ""

        return self._told(path, answer)[0]

    def _one(self, path: str) -> tuple[str, str]:
        heard = listen(self.model, path)
        card = sound_card(heard, self.model.config.frontend)
        if self.library is None:
            return card, ""
        matches = self.library.nearest(heard.waveform, self.model, SIMILAR)
        return card, match_list(matches, self.library.paths, self.model.sample_rate, self.library.folder)

    def _two(self, path: str, other: str) -> str:
        heard = [listen(self.model, sound) for sound in (path, other)]
        return comparison(*heard) + "".join(brief_card(one, self.model.config.frontend) for one in heard)

    def _told(self, path: str, answer: Callable[[str], tuple[str, str]], *others: str) -> tuple[str, str]:
        """An answer, or what is wrong, in which files have the names that the user knows."""
        try:
            return answer(path)
        except M2DError as error:
            message = str(error)
            for given in (path, *others):
                message = message.replace(given, Path(given).name)
            return error_card(message), ""


def serve(
    model: M2D,
    name: str,
    library: Library | None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    wait: bool = True,
) -> Any:
    """Serves the page.

    Args:
        model: What it shows.
        name: The model's, for the heading.
        library: Sounds to search among, or None.
        host: Address to listen at.
        port: None: the first free one from 7860.
        wait: Until Ctrl-C; else the page is closed by the ``close`` of what is returned.

    Raises:
        ConfigError: Gradio is not installed, or the port is taken.
    """
    gradio = _gradio()
    page = _build(gradio, Answers(model, library), name)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MOST_UPLOAD,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            theme=gradio.themes.Base(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css_paths=_HERE / "page.css",
            head=f"<script>{(_HERE / 'page.js').read_text('utf-8')}</script>",
        )
    except OSError as error:
        where = f"{host}, port {port}" if port else f"{host}, ports 7860 to 7959"
        raise ConfigError(
            f"{where}: cannot be listened at, since the port is taken or the address is not this computer's; "
            "give another port or host."
        ) from error
    if wait:
        page.block_thread()
    return page


def _gradio() -> Any:
    # Before it is imported: nothing is sent anywhere, not even the question for a newer version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with importing("gradio and matplotlib", "the demo page", "demo"):
        import gradio
        import matplotlib  # noqa: F401 - the pictures' colours
    return gradio


def _build(gradio: Any, answers: Answers, name: str) -> Any:
    sound = functools.partial(
        gradio.Audio, type="filepath", sources=["upload", "microphone"], editable=False, buttons=[]
    )
    listening = {"concurrency_limit": 1, "concurrency_id": "model", "api_name": False}
    page = gradio.Blocks(title=f"m2d_hub: {name}", analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        gradio.Markdown(f"## What `{name}` hears\n{_introduction(answers)}")
        with gradio.Tabs():
            with gradio.Tab("One sound"):
                given = sound(label="A sound", elem_id="one")
                shown, similar = gradio.HTML(elem_id="shown"), gradio.HTML(elem_id="similar")
                given.change(answers.one, given, [shown, similar], **listening)
            with gradio.Tab("Two sounds"):
                with gradio.Row():
                    pair = [sound(label="One", elem_id="left"), sound(label="The other", elem_id="right")]
                button = gradio.Button("Compare", variant="primary", elem_id="compare")
                button.click(answers.two, pair, gradio.HTML(elem_id="compared"), **listening)
            if answers.model.clap is not None:
                with gradio.Tab("In words"):
                    given = sound(label="A sound", elem_id="worded")
                    text = gradio.Textbox(
                        "a dog barks\nrain falls\nsomebody speaks", lines=4, label="Words, a line each"
                    )
                    button = gradio.Button("Which fits?", variant="primary")
                    button.click(answers.words, [given, text], gradio.HTML(elem_id="words"), **listening)
    return page


def _introduction(answers: Answers) -> str:
    tagged = "tags over time" if answers.model.head is not None else "how alike its moments are"
    folder = answers.library and f", and the sounds of `{answers.library.folder.name}` most like it"
    return (
        f"Drop a file or record: you see its spectrogram and {tagged}{folder or ''}. "
        f"At most {MOST_UPLOAD[:-2]} MB a file, of which {MOST_S} s are shown. Nothing is sent elsewhere."
    )
