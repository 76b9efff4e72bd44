"""``m2d-hub tag``."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from m2d_hub.cli.options import (
    SOME_FAILED,
    batch_size_option,
    device_option,
    find_files,
    json_option,
    paths_argument,
    with_progress,
)
from m2d_hub.errors import AudioError
from m2d_hub.pretrained.registry import DEFAULT_TAGGER

if TYPE_CHECKING:
    from m2d_hub.results import Tag

DEFAULT_TEXT_TAGGER = "m2d-clap-2024"


class _SeveralTexts(click.Command):
    """Takes all words after ``--texts``, up to the next option, as its values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        in_texts = False
        for word in args:
            if in_texts and not word.startswith("-"):
                spread += ["--texts", word]
                continue
            in_texts = word == "--texts"
            if not in_texts:
                spread.append(word)
        return super().parse_args(ctx, spread)


@click.command(cls=_SeveralTexts)
@paths_argument
@click.option(
    "--model",
    metavar="NAME",
    help="Name of `m2d-hub list`, a folder or file on disk, or hf-hub:org/repo.  "
    f"[default: {DEFAULT_TAGGER}; with --texts {DEFAULT_TEXT_TAGGER}]",
)
@click.option(
    "--texts", multiple=True, metavar="TEXT...", help="Choose among these instead of the model's own labels."
)
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="K", help="Tags a file."
)
@batch_size_option
@device_option
@json_option
def tag(
    paths: tuple[str, ...],
    model: str | None,
    texts: tuple[str, ...],
    top: int,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Say what is heard: the likeliest labels of each file, with scores from 0 to 1.

    The model needs a classification head: m2d-mini-tags knows 44 everyday sounds, is inside the package and
    free for any use; those of `m2d-hub list '*-as2m'` are better and have AudioSet's 527 labels. With --texts
    it needs a text space instead, and any words will do; the scores of all texts sum to 1.

    \b
    Examples:
      m2d-hub tag dog.wav --top 3
      m2d-hub tag dog.wav --texts "a dog barking" "rain on a roof"
      m2d-hub tag recordings/ --json > tags.json
    """
    from m2d_hub.audio.ahead import ReadAhead
    from m2d_hub.corpus.reading import opened_ahead
    from m2d_hub.hub import load_model
    from m2d_hub.zero_shot import classify_by_text

    sources = find_files(paths)
    loaded = load_model(model or (DEFAULT_TEXT_TAGGER if texts else DEFAULT_TAGGER), device=device)
    answers: list[dict[str, Any]] = []
    failed = 0
    with ReadAhead(device=loaded.device) as reader:
        files = opened_ahead(([source] for source in sources), loaded.sample_rate, reader)
        for source, file in zip(with_progress(sources), files, strict=True):
            try:
                if file.failed:
                    raise AudioError(file.failed[0][1])
                if texts:
                    found = classify_by_text(
                        loaded, file.clips, list(texts), top_k=top, batch_size=batch_size
                    )
                else:
                    found = loaded.classify(file.clips, top_k=top, batch_size=batch_size)
            except AudioError as error:
                failed += 1
                click.echo(f"Error: {error}", err=True)
                continue
            answers.append({"file": source.file, "tags": [dataclasses.asdict(scored) for scored in found[0]]})
            if not as_json:
                _print_tags(source.file, found[0])
    if as_json:
        click.echo(json.dumps(answers, indent=2))
    if failed:
        sys.exit(SOME_FAILED)


def _print_tags(file: str, tags: list[Tag]) -> None:
    click.echo(file)
    for scored in tags:
        click.echo(f"  {scored.score:.3f}  {scored.label}")
