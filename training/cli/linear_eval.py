"""``m2d-train linear-eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from m2d_hub.cli.options import batch_size_option, device_option, json_option, model_option

from .options import COUNT, answer, logging_to

EXAMPLE = """\b
Examples:
  m2d-train linear-eval --model m2d-mini --data labelled.csv --out runs/eval
  m2d-train linear-eval --model m2d-0.7 --data esc50.csv --out runs/esc50 --lr auto
  m2d-train linear-eval --model m2d-0.7 --data labelled.csv --out runs/layers --layer all
  m2d-hub tag dog.wav --model runs/eval/model
"""


@click.command("linear-eval", epilog=EXAMPLE)
@model_option()
@click.option("--data", required=True, help="CSV with file, label and split (train, valid, test, or folds).")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option(
    "--layer",
    metavar="last|all|mix|N",
    default="last",
    show_default=True,
    help="Block whose features are used, from 1; all compares them; mix weights all, as SUPERB does.",
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
    metavar="mean|none|SECONDS",
    default="mean",
    show_default=True,
    help="Crop or zero-pad clips to this length: mean of the training clips, as in the paper; none: whole.",
)
@click.option(
    "--lr",
    metavar="auto|RATE",
    default="3e-5",
    show_default=True,
    help="Of Adam, as in the paper; auto: settings that converge, with the rate that is best on valid.",
)
@click.option("--seeds", type=COUNT, default=6, show_default=True, help="Averaged trainings.")
@click.option("--epochs", "max_epochs", type=COUNT, default=200, show_default=True, help="Maximum.")
@click.option(
    "--multi-label/--single-label",
    default=None,
    help="Whether a clip may have several labels.  [default: yes if one has]",
)
@click.option(
    "--valid-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of the training clips held out to stop the training. 0: the valid split.",
)
@click.option("--window", "window_s", type=float, metavar="S", help="Seconds encoded at once.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of features, which runs may share.  [default: OUT/features]",
)
@device_option
@batch_size_option
@click.option("--num-workers", type=COUNT, default=2, show_default=True, help="Threads that read audio.")
@json_option
def linear_eval(out: Path, lr: str, as_json: bool, **options: Any) -> None:
    """Evaluate frozen features of NAME with a linear classifier.

    The paper's protocol (section IV-B): standardised clip features and one linear layer, trained with Adam,
    stopped early by the valid clips; the mean over six seeds. Reports accuracy, or mAP for multi-label lists,
    with its 95 % interval over test clips and seeds. At the paper's rate the layer often stops before it
    converges; for your own data, --lr auto gives higher and steadier results.

    OUT/report.json, worst.csv and the plots show the details; OUT/model is the encoder with the linear layer,
    for `m2d-hub tag` and load_model. Features are cached. Unreadable clips are skipped and listed in
    OUT/errors.csv (exit status 3 then).
    """
    from ..evaluation.report import require_own
    from ..linear.report import METHOD
    from ..linear.run import linear_eval as run_evaluation

    require_own(out, METHOD)
    with logging_to(out / "eval.log"):
        result = run_evaluation(out=out, learning_rate=_rate(lr), **options)
    names = ("metric", "value", "low", "high", "layer", "protocol")
    figures = {name: result.report[name] for name in names}
    places = {"run": str(out), "model": None if result.model is None else str(result.model)}
    text = (
        f"{result.metric} {result.interval} on the test clips, layer {result.report['layer']}, "
        f"{result.report['protocol']}. See {out}."
    )
    text = "\n".join([*_layer_lines(result.report), text])
    answer({**places, **figures, "left_out": result.left_out}, as_json, text, result.left_out)


def _rate(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not 'auto' or a number.", param_hint="--lr") from None


def _layer_lines(report: dict[str, Any]) -> list[str]:
    """Return a table of the layers that were compared, or the weights of their mix."""
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
