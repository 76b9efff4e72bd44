"""The ``m2d-hub`` command. Modules that import torch are imported by the commands that need them."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2d_hub.cli.embed import embed
from m2d_hub.cli.export import export
from m2d_hub.cli.options import (
    DEFAULT_MODEL,
    SOME_FAILED,
    Group,
    batch_size_option,
    device_option,
    find_files,
    json_option,
    model_option,
    paths_argument,
    window_option,
    with_progress,
)
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.pretrained.registry import find_model, list_models

if TYPE_CHECKING:
    from m2d_hub.results import Tag

DEFAULT_TAGGER = "m2d-as-0.7-as2m"
DEFAULT_TEXT_TAGGER = "m2d-clap-2024"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="m2d-hub", prog_name="m2d-hub")
def main() -> None:
    """Masked Modeling Duo (M2D): embeddings and tags of audio files.

    \b
    Examples:
      m2d-hub embed recordings/ --out embeddings.parquet
      m2d-hub list 'm2d-as-*'
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


main.add_command(embed)
main.add_command(export)


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


@main.command(cls=_SeveralTexts)
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

    The model needs a classification head: those of `m2d-hub list '*-as2m'` have AudioSet's 527 labels. With
    --texts it needs a text space instead, and any words will do; the scores of all texts sum to 1.

    \b
    Examples:
      m2d-hub tag dog.wav --top 3
      m2d-hub tag dog.wav --texts "a dog barking" "rain on a roof"
      m2d-hub tag recordings/ --json > tags.json
    """
    from m2d_hub.hub import load_model
    from m2d_hub.zero_shot import classify_by_text

    sources = find_files(paths)
    loaded = load_model(model or (DEFAULT_TEXT_TAGGER if texts else DEFAULT_TAGGER), device=device)
    answers: list[dict[str, Any]] = []
    failed = 0
    for source in with_progress(sources):
        try:
            if texts:
                tags = classify_by_text(loaded, source.path, list(texts), top_k=top, batch_size=batch_size)[0]
            else:
                tags = loaded.classify(source.path, top_k=top, batch_size=batch_size)[0]
        except AudioError as error:
            failed += 1
            click.echo(f"Error: {error}", err=True)
            continue
        answers.append({"file": source.file, "tags": [dataclasses.asdict(one) for one in tags]})
        if not as_json:
            _print_tags(source.file, tags)
    if as_json:
        click.echo(json.dumps(answers, indent=2, ensure_ascii=False))
    if failed:
        sys.exit(SOME_FAILED)


@main.command("list")
@click.argument("pattern", default="*")
@json_option
def list_(pattern: str, as_json: bool) -> None:
    """List the models that load by name.

    \b
    Examples:
      m2d-hub list
      m2d-hub list 'm2d-as-*' --json
    """
    from m2d_hub.pretrained.cache import model_info

    names = list_models(pattern)
    if as_json:
        click.echo(json.dumps(names))
        return
    if not names:
        raise ConfigError(f"no model is named like {pattern!r}; see m2d-hub list.")
    width = max(map(len, names))
    for name in names:
        info = model_info(name)
        where = "on disk" if info.on_disk else "to download"
        click.echo(f"{name:{width}}  {where:11}  {info.contents}; {info.license}")


@main.command()
@click.argument("name")
@json_option
def info(name: str, as_json: bool) -> None:
    """Show what is known about a model: licence, source, sizes, reported figures, whether it is on disk.

    \b
    Examples:
      m2d-hub info m2d-as-0.7
      m2d-hub info m2d-mini --json
    """
    from m2d_hub.pretrained.cache import model_info

    known = model_info(name)
    values = {**dataclasses.asdict(known), "source": known.source}
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    width = max(map(len, values))
    for field, value in values.items():
        click.echo(f"{field:{width}}  {_readable(value)}")


@main.command()
@click.argument("name")
def download(name: str) -> None:
    """Fetch a model's weights now, so that it loads without a network later; prints where they are.

    NAME is one of `m2d-hub list`, or hf-hub:org/repo[@revision]. The cache is in $HF_HOME; M2D_HUB_MIRROR may
    name another address than the authors' release. A download that was stopped goes on where it was.

    \b
    Examples:
      m2d-hub download m2d-as-0.7
      HF_HOME=/data/hf m2d-hub download hf-hub:org/repo@v1
    """
    from m2d_hub.pretrained.release import fetch
    from m2d_hub.pretrained.repository import PREFIX, fetch_repository

    if name.startswith(PREFIX):
        click.echo(fetch_repository(name))
        return
    info = find_model(name)
    click.echo(f"{name}: {info.license}; {info.source}", err=True)
    click.echo(fetch(info))


@main.command()
@click.argument("path", metavar="PATH")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.")
@click.option("--sample-rate", type=click.IntRange(min=1), metavar="HZ", help="If the file does not say it.")
def convert(path: str, out: Path, sample_rate: int | None) -> None:
    """Convert published weights (.pth) into a folder that loads faster, and safely, everywhere.

    DIR gets model.safetensors, config.json and a model card: all that embedding and tagging need. Parts that
    only pre-training uses (predictor, target encoder) stay in PATH.

    \b
    Examples:
      m2d-hub convert m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth --out m2d-0.7
      m2d-hub convert renamed.pth --sample-rate 16000 --out my-model
    """
    from m2d_hub.hub import load_model
    from m2d_hub.pretrained.locate import as_argument

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists and is not an empty folder; give another one.")
    model = load_model(path, device="cpu", sample_rate=sample_rate)
    model.save_pretrained(out)
    click.echo(f"Wrote {out}; load it with m2d_hub.load_model({as_argument(out)!r}).")


@main.command()
@click.argument("path", metavar="PATH")
@model_option(DEFAULT_MODEL)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="PNG", help="Picture to write."
)
@batch_size_option
@device_option
@window_option
def plot(path: str, model: str, out: Path, batch_size: int, device: str | None, window: float | None) -> None:
    """Draw a clip's spectrogram over the similarity of its frames, as the model sees them.

    \b
    Example:
      m2d-hub plot dog.wav --out dog.png
    """
    from m2d_hub.hub import load_model
    from m2d_hub.plots import plot_clip

    plot_clip(load_model(model, device=device, window_s=window), path, out, batch_size=batch_size)
    click.echo(f"Wrote {out}.")


def _print_tags(file: str, tags: list[Tag]) -> None:
    click.echo(file)
    for one in tags:
        click.echo(f"  {one.score:.3f}  {one.label}")


def _readable(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "x".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
