"""``m2d-hub tag`` and ``plot``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from m2d_hub.cli import options
from m2d_hub.errors import AudioError
from m2d_hub.pretrained.registry import DEFAULT_MODEL, DEFAULT_TAGGER

DEFAULT_TEXT_TAGGER = "m2d-clap-2024"


@click.command()
@options.paths_argument
@click.option(
    "--model",
    metavar="NAME",
    help="Name from `m2d-hub list`, folder or file on disk, or hf-hub:org/repo.  "
    f"[default: {DEFAULT_TAGGER}; with --texts {DEFAULT_TEXT_TAGGER}]",
)
@click.option(
    "--texts",
    multiple=True,
    metavar="TEXT",
    help="Description to use instead of the model's labels; give the option once per text.",
)
@options.top_option("Number of tags per file.", "top_k")
@options.batch_size_option
@options.device_option
@options.json_option
def tag(
    paths: tuple[str, ...],
    model: str | None,
    texts: tuple[str, ...],
    device: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Tag audio files: most likely labels with scores from 0 to 1.

    The model needs a classification head: m2d-mini-tags has 44 labels, is part of the package and free for
    any use; the models of `m2d-hub list '*-as2m'` are better and have AudioSet's 527 labels. With --texts,
    the model needs a text encoder instead; the scores of all texts sum to 1.

    \b
    Examples:
      m2d-hub tag dog.wav --top 3
      m2d-hub tag dog.wav --texts "a dog barking" --texts "rain on a roof"
      m2d-hub tag recordings/ --json > tags.json
    """
    from tqdm import tqdm

    from m2d_hub.audio.prefetch import Prefetcher
    from m2d_hub.corpus.embed_files import opened_ahead
    from m2d_hub.hub import load_model
    from m2d_hub.zero_shot import classify_by_text

    sources = options.find_files(paths)
    loaded = load_model(model or (DEFAULT_TEXT_TAGGER if texts else DEFAULT_TAGGER), device=device)
    results: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with Prefetcher() as reader:
        files = opened_ahead(([source] for source in sources), loaded.sample_rate, reader)
        bar = tqdm(sources, unit="file", disable=True if sys.stderr is None else None)  # None: on a terminal
        for source, file in zip(bar, files, strict=True):
            try:
                if file.failed:
                    raise AudioError(file.failed[0][1])
                if texts:
                    [tags] = classify_by_text(loaded, file.clips, list(texts), **settings)
                else:
                    [tags] = loaded.classify(file.clips, **settings)
            except AudioError as error:
                failed[source.file] = str(error)
                continue
            results.append({"file": source.file, "tags": [dataclasses.asdict(tag) for tag in tags]})
            if not as_json:
                options.echo(source.file)
                for tag in tags:
                    options.echo(f"  {tag.score:.3f}  {tag.label}")
    if as_json:
        options.echo_json(results)
    options.echo_skipped(failed)


@click.command()
@click.argument("path", type=click.Path(exists=True), metavar="PATH")
@options.model_option(DEFAULT_MODEL)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="PNG", help="File to write.")
@options.batch_size_option
@options.device_option
@options.window_option
def plot(path: str, model: str, out: Path, batch_size: int, device: str | None, window: float | None) -> None:
    """Plot a clip's spectrogram, tag scores and frame similarity.

    \b
    Example:
      m2d-hub plot dog.wav --out dog.png
    """
    from m2d_hub.hub import load_model
    from m2d_hub.plots import plot_clip

    plot_clip(load_model(model, device=device, window_s=window), path, out, batch_size=batch_size)
    options.echo(f"Wrote {out}.")
