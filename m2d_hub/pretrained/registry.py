"""The table of models that load by name, and lookups in it."""

from __future__ import annotations

import difflib
import fnmatch
import re
from dataclasses import dataclass
from typing import Any

from m2d_hub.errors import UnknownModelError

DEFAULT_MODEL = "m2d-mini"  # inside this package, as is the next
DEFAULT_TAGGER = "m2d-mini-tags"
NTT_LICENSE = "NTT evaluation licence (non-commercial)"
RELEASES = "https://github.com/nttcslab/m2d/releases"
EVALUATION_RELEASES = (
    "https://github.com/nttcslab/eval-audio-repr/releases"  # the authors' evaluation platform
)


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a named model: those known before its download, and its state on this machine."""

    name: str  # alias that load_model takes
    contents: str  # parts of the published file
    reported: str | None = None  # figure that the authors published for it
    sample_rate: int = 16_000  # Hz
    input_size: tuple[int, int] = (80, 608)  # (mels, frames)
    patch_size: tuple[int, int] = (16, 16)  # (mels, frames)
    num_classes: int | None = None  # outputs of the head; None: no head
    text_space: bool = False  # has projections into a space shared with text
    pretraining: bool = False  # has a target encoder and a predictor too
    release: str | None = None  # tag of the authors' release; None: the weights are inside this package
    releases: str = RELEASES  # address of the releases of the repository that holds this one
    folder: str | None = None  # name of the release's zip and of the folder inside it
    filename: str | None = "checkpoint-300.pth"  # file to use if the folder holds several
    embed_dim: int = 768  # D
    depth: int = 12  # blocks, L
    license: str = NTT_LICENSE
    sha256: str | None = None  # of the zip, recorded at the first download; the authors publish none
    download_bytes: int | None = None  # size of the zip, where the authors state it or after the download
    disk_bytes: int | None = None  # size of the converted weights, once on disk
    on_disk: bool = False  # loads without a network

    @property
    def source(self) -> str:
        """Page where the weights were published, with their licence."""
        return "inside the package" if self.is_packaged else f"{self.releases}/tag/{self.release}"

    @property
    def is_packaged(self) -> bool:
        """Whether the weights are inside this package."""
        return self.release is None

    @property
    def url_path(self) -> str:
        """Path of the zip below the releases' download address, or below a mirror of it."""
        return f"{self.release}/{self.folder}.zip"


_FULL = "full (encoder, target encoder, predictor): fine-tuning and further pre-training"
_LONG = (80, 1001)  # 10 s
# fmt: off
_MINI: dict[str, Any] = {"input_size": (80, 208), "patch_size": (10, 16), "embed_dim": 192, "depth": 3,
         "filename": "model.safetensors", "license": "Apache-2.0"}  # inside the package
_ROWS = (
    ModelInfo("m2d-mini", "encoder only", "mean of seven small tasks 77.4 (MODEL_CARD.md)", **_MINI),
    ModelInfo("m2d-mini-tags", "a head trained on free clips: tags of 44 everyday sounds",
              "mAP 0.558 on packages that gave no training clip (MODEL_CARD.md)", num_classes=44, **_MINI),
    ModelInfo("m2d-0.7", _FULL, "linear-evaluation mean 80.2 (M2D/0.7)", pretraining=True,
              release="v0.1.0", folder="m2d_vit_base-80x608p16x16-221006-mr7"),
    ModelInfo("m2d-0.7-encoder", "encoder only", "same encoder as m2d-0.7",
              release="v0.1.0", folder="m2d_vit_base-80x608p16x16-221006-mr7_enconly"),
    ModelInfo("m2d-0.7-220930-encoder", "encoder only", "a second M2D/0.7 run",
              release="v0.1.0", folder="m2d_vit_base-80x608p16x16-220930-mr7_enconly"),
    ModelInfo("m2d-0.6", "full", "M2D/0.6", pretraining=True,
              release="v0.1.0", folder="m2d_vit_base-80x608p16x16-221006-mr6"),
    ModelInfo("m2d-0.7-16x4", "full", "M2D/0.7 with 40 ms frames", pretraining=True,
              input_size=(80, 200), patch_size=(16, 4),
              release="v0.1.0", folder="m2d_vit_base-80x200p16x4-230529"),
    ModelInfo("m2d-as-0.7", "full + offline network (527 labels)", "linear-evaluation mean 80.6 (M2D-AS)",
              pretraining=True, release="v0.1.0", folder="m2d_as_vit_base-80x608p16x16-240213"),
    ModelInfo("m2d-as-0.7-32k", "encoder only", sample_rate=32_000,
              release="v0.1.0", folder="m2d_as_vit_base-80x608p16x16p32k-240413_enconly"),
    ModelInfo("m2d-clap-2024", "full + audio projection (text encoder GTE-base)",
              "linear-evaluation mean 80.8", pretraining=True, text_space=True, download_bytes=1_558_023_261,
              release="v0.1.0", folder="m2d_clap_vit_base-80x608p16x16-240128"),
    # Its log-mel statistics, in the file, are -7.2618 and 4.3512.
    ModelInfo("m2d-clap-2025", "encoder + projection + text encoder (BERT-base)",
              "linear-evaluation mean 78.8; fine-tuned AudioSet-2M mAP 0.490", text_space=True,
              input_size=_LONG, release="v0.5.0", folder="m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025",
              filename="checkpoint-30.pth"),
    ModelInfo("m2d-resp-0.7", "encoder only (341,660,351 bytes)",
              "m2d-0.7 further pre-trained for 50 epochs on AudioSet and 400,000 respiratory sounds",
              releases=EVALUATION_RELEASES, release="0.1.0",
              folder="m2d_vit_base-80x608p16x16p16k-250826-AS+Resp400K", filename="checkpoint-50.pth"),
    ModelInfo("m2d-0.7-as2m", "encoder + 527-label head", "AudioSet-2M mAP 0.479",
              input_size=_LONG, num_classes=527, download_bytes=319_076_219,
              release="v0.3.0", folder="m2d_vit_base-80x1001p16x16-221006-mr7_as_46ab246d",
              filename="weights_ep69it3124-0.47929.pth"),
    ModelInfo("m2d-as-0.7-as2m", "encoder + 527-label head", "AudioSet-2M mAP 0.485",
              input_size=_LONG, num_classes=527,
              release="v0.3.0", folder="m2d_as_vit_base-80x1001p16x16-240213_AS-FT_enconly",
              filename="weights_ep69it3124-0.48494.pth"),
    ModelInfo("m2d-clap-2024-as2m", "encoder + 527-label head", "AudioSet-2M mAP 0.485",
              input_size=_LONG, num_classes=527,
              release="v0.3.0", folder="m2d_clap_vit_base-80x1001p16x16-240128_AS-FT_enconly",
              filename="weights_ep67it3124-0.48558.pth"),
    ModelInfo("m2d-as-0.7-32k-as2m", "encoder + 527-label head", "AudioSet-2M mAP 0.480", sample_rate=32_000,
              input_size=_LONG, num_classes=527, filename=None,
              release="v0.3.0", folder="m2d_as_vit_base-80x1001p16x16p32k-240413_AS-FT_enconly"),
    ModelInfo("m2d-s-0.6-6s", "full + offline network (768-d)", "M2D-S 6 s", pretraining=True,
              patch_size=(80, 2), filename="checkpoint-1000.pth",
              release="v0.2.0", folder="m2d_s_vit_base-80x608p80x2-230220"),
    ModelInfo("m2d-s-0.6-5s", "full + offline network (768-d)", "M2D-S 5 s", pretraining=True,
              input_size=(80, 512), patch_size=(80, 2), filename="checkpoint-1000.pth",
              release="v0.2.0", folder="m2d_s_vit_base-80x512p80x2-230301"),
    ModelInfo("m2d-s-0.6-4s", "full + offline network (768-d)", "M2D-S 4 s", pretraining=True,
              input_size=(80, 400), patch_size=(80, 2), filename="checkpoint-1000.pth",
              release="v0.2.0", folder="m2d_s_vit_base-80x400p80x2-230201"),
)
# fmt: on

MODELS: dict[str, ModelInfo] = {row.name: row for row in _ROWS}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell-style pattern, in natural order (numbers sorted as numbers).

    Args:
        pattern: For example ``"m2d-as-*"``; case is ignored.
    """
    matching = (name for name in MODELS if fnmatch.fnmatch(name.lower(), pattern.lower()))
    return sorted(matching, key=natural_key)


def find_model(name: str) -> ModelInfo:
    """Return the table's row of a name.

    Raises:
        UnknownModelError: The name is not in the table; the message lists all names, likely ones first.
    """
    if name in MODELS:
        return MODELS[name]
    likely = difflib.get_close_matches(name.lower(), MODELS, n=4, cutoff=0.6)
    names = likely + [other for other in list_models() if other not in likely]
    raise UnknownModelError(
        f"Unknown model {name!r}. Available: {', '.join(names)}. See list_models(). "
        "A file, a folder, or 'hf-hub:org/repo[@revision]' is accepted as well."
    )


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that sorts the numbers within names as numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
