"""SPRSound: respiratory events of children, in the split of the challenge of 2022."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

from m2d_hub.errors import ConfigError
from m2d_hub.io import reading_file

from .dataset import ALL, ListRow, PublicDataset, Request, Variant

NORMAL, ADVENTITIOUS = "Normal", "Adventitious"
TRAIN_EVENTS = 6_656


def _rows(request: Request, test: str, binary: bool) -> Iterator[ListRow]:
    """Training events, and those of one of the two tests."""
    annotations = _annotations(request, "train")
    train_patients = {_patient(path) for path in annotations}
    yield from _events(request, annotations, "train", binary)
    chosen = [path for path in _annotations(request, "test") if _test_of(path, train_patients) == test]
    yield from _events(request, chosen, "test", binary)


def _training_events(request: Request) -> Iterator[ListRow]:
    for row in _events(request, _annotations(request, "train"), "train", binary=False):
        yield ListRow(row.file, start_s=row.start_s, end_s=row.end_s)


def _folder(request: Request, split: str, kind: str) -> Path:
    names = (f"{split}_{kind}", f"{split}2022_{kind}")
    return request.find(*names, *(f"BioCAS2022/{name}" for name in names))


def _annotations(request: Request, split: str) -> list[Path]:
    return sorted(_folder(request, split, "json").rglob("*.json"))


def _patient(annotation: Path) -> str:
    return annotation.stem.partition("_")[0]


def _test_of(annotation: Path, train_patients: set[str]) -> str:
    """Which test a recording belongs to: its folder says, or whether its patient is one of the training's."""
    folder = annotation.parent.name
    if folder in ("inter_test_json", "intra_test_json"):
        return folder.partition("_")[0]
    return "intra" if _patient(annotation) in train_patients else "inter"


def _events(request: Request, annotations: list[Path], split: str, binary: bool) -> Iterator[ListRow]:
    audio = _folder(request, split, "wav")
    for path in annotations:
        kind = "annotations (event_annotation with start, end and type)"
        with reading_file(path, kind, "Fetch it again from its publisher.", ConfigError):
            events = json.loads(path.read_text(encoding="utf-8"))["event_annotation"]
            found = [(event["type"], float(event["start"]), float(event["end"])) for event in events]
        for label, start_ms, end_ms in found:
            name = ADVENTITIOUS if binary and label != NORMAL else label
            file = str(audio / f"{path.stem}.wav")
            yield ListRow(file, name, split, start_ms / 1_000, end_ms / 1_000)


def _variant(test: str, binary: bool) -> Variant:
    patients = {"inter": "other patients", "intra": "the training's patients"}[test]
    classes = f"{NORMAL} or {ADVENTITIOUS.lower()}" if binary else "7 types of events"
    rows = functools.partial(_rows, test=test, binary=binary)
    return Variant(rows, f"{classes}, tested on {patients}", {"train": TRAIN_EVENTS}, 2 if binary else 7)


SPRSOUND = PublicDataset(
    title="SPRSound",
    source="https://github.com/SJTU-YONGFU-RESEARCH-GRP/SPRSound (BioCAS2022)",
    licence="see the repository; Creative Commons Attribution on IEEE DataPort",
    reference="Zhang et al., IEEE TBioCAS 2022",
    layout=(
        "train_json and train_wav (or train2022_json and train2022_wav), test_json and test_wav, the test's "
        "annotations in inter_test_json and intra_test_json"
    ),
    variants={
        "inter": _variant("inter", binary=False),
        "intra": _variant("intra", binary=False),
        "inter-binary": _variant("inter", binary=True),
        "intra-binary": _variant("intra", binary=True),
        "pretrain": Variant(_training_events, "the training events, for pre-training", {ALL: TRAIN_EVENTS}),
    },
)
