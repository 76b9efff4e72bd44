"""``m2d-train linear-eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m2d_hub.cli.options import batch_size_option, device_option, json_option, model_option

from .options import answer, exit_status, logging_to

EXAMPLE = """\b
Examples:
  m2d-train linear-eval --model m2d-mini --data labelled.csv --out runs/eval
  m2d-train linear-eval --model m2d-0.7 --data esc50.csv --out runs/esc50 --lr 3e-5
  m2d-train linear-eval --model m2d-0.7 --data labelled.csv --out runs/layers --layer all
  m2d-hub tag dog.wav --model runs/eval/model
"""


class _NumberOr(click.ParamType):
    """A number, or one of some words."""

    def __init__(self, kind: type[int] | type[float], *words: str):
        self.kind, self.words = kind, words
        self.name = "number"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "|".join((*self.words, "N"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.words:
            return value
        try:
            return self.kind(value)
        except ValueError:
            self.fail(f"{value!r} is none of {', '.join(self.words)}, and no number.", param, ctx)


@click.command("linear-eval", epilog=EXAMPLE)
@model_option()
@click.option("--data", required=True, help="CSV with file, label and split (train, valid, test, or folds).")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the answer.")
@click.option(
    "--layer",
    type=_NumberOr(int, "last", "all", "mix"),
    default="last",
    show_default=True,
    help="Block whose features are used, from 1; all compares each; mix weighs all, as SUPERB does.",
)
@click.option(
    "--pooling",
    metavar="mean|max|mean+max|mean+std",
    default="mean",
    show_default=True,
    help="How frames become a clip's feature.",
)
@click.option(
    "--duration",
    type=_NumberOr(float, "mean", "none"),
    default="mean",
    show_default=True,
    help="Seconds that clips are cropped or zero-padded to: the training clips' mean, as the paper; none "
    "takes clips whole.",
)
@click.option(
    "--lr",
    "learning_rate",
    type=_NumberOr(float, "auto"),
    default="auto",
    show_default=True,
    help="Of Adam; auto takes the paper's 3e-5, and where that does not converge, what is best on valid.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=6, show_default=True, help="Trainings.")
@click.option("--epochs", type=click.IntRange(min=1), default=200, show_default=True, help="At most.")
@click.option(
    "--multi-label/--single-label",
    default=None,
    help="Whether a clip may have several labels.  [default: whether one has]",
)
@click.option(
    "--valid-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Of the training clips, held out to stop by; folds then train on all others. 0: the valid split.",
)
@click.option("--window", type=float, metavar="S", help="Seconds encoded as a whole.  [default: as trained]")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of features that runs share.  [default: OUT/features]",
)
@device_option
@batch_size_option
@click.option(
    "--num-workers",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Threads that read audio.",
)
@json_option
def linear_eval(
    out: Path,
    learning_rate: float | str,
    epochs: int,
    window: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Tells how well one linear layer tells classes apart on frozen features of NAME.

    The paper's protocol (section IV-B): clip features, standardised, one linear layer trained with Adam,
    stopped early by the valid clips; the mean over six seeds. The answer is accuracy, or mAP of multi-label
    lists, with its 95 % interval over test clips and seeds.

    OUT/report.json, worst.csv and the pictures beside them say more; OUT/model is the encoder with the linear
    layer, for `m2d-hub tag` and load_model. Features are kept: run again, they are not computed again. Clips
    that cannot be read are listed in OUT/errors.csv and left out (exit status 3 then).
    """
    from ..evaluation.report import require_own
    from ..linear.report import METHOD
    from ..linear.run import linear_eval as run_evaluation

    require_own(out, METHOD)
    with logging_to(out / "eval.log"):
        result = run_evaluation(
            out=out,
            learning_rate=None if isinstance(learning_rate, str) else learning_rate,
            max_epochs=epochs,
            window_s=window,
            **options,
        )
    figures = {name: result.report[name] for name in ("metric", "value", "low", "high", "layer")}
    places = {"run": str(out), "model": None if result.model is None else str(result.model)}
    text = f"{result.metric} {result.interval} on the test clips, layer {result.report['layer']}. See {out}."
    text = "\n".join([*_layer_lines(result.report), text])
    click.echo(answer({**places, **figures, "left_out": result.left_out}, as_json, text))
    exit_status(result.left_out)


def _layer_lines(report: dict[str, Any]) -> list[str]:
    """A table of the layers that were compared, or the weights of their mix."""
    if "layers" in report:
        rows = [
            f"{row['layer']:5d}  {100 * row['valid_score']:5.1f}  {100 * row['value']:5.1f}  "
            f"{100 * row['low']:.1f}-{100 * row['high']:.1f}"
            for row in report["layers"]
        ]
        return ["layer  valid   test  95 %", *rows]
    if "mix_weights" in report:
        return ["weights of the layers: " + " ".join(f"{weight:.3f}" for weight in report["mix_weights"])]
    return []
