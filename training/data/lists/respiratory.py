"""Respiratory sounds: breathing cycles of ICBHI 2017 and events of SPRSound."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

from m2d_hub.corpus.sources import files_below
from m2d_hub.errors import ConfigError
from m2d_hub.io import reading_file

from .dataset import ALL, ListRow, PublicDataset, Request, Variant, text_lines

ICBHI_SPLIT = "ICBHI_challenge_train_test.txt"
ICBHI_LABELS = {("0", "0"): "normal", ("1", "0"): "crackle", ("0", "1"): "wheeze", ("1", "1"): "both"}
NORMAL, ADVENTITIOUS = "Normal", "Adventitious"
SPRSOUND_TRAIN_EVENTS = 6_656


def _icbhi_recordings(request: Request) -> Iterator[tuple[Path, str]]:
    """Yield each recording of the official split, and its split."""
    split_file = request.split_file(ICBHI_SPLIT)
    folders = [request.folder, request.folder / "ICBHI_final_database"]
    recordings = {_position(path.stem): path for folder in folders for path in folder.glob("*.wav")}
    if not recordings:
        raise request.lacks("101_1b1_Al_sc_Meditron.wav")
    for number, line in text_lines(split_file):
        name, split, *_ = [*line.split(), ""]
        if split not in ("train", "test"):
            raise ConfigError(f"{split_file}: line {number} is {line!r}, not a recording with train or test.")
        yield recordings.get(_position(name), request.folder / f"{name}.wav"), split


def _position(name: str) -> str:
    """Return a recording's name without its device, which the official split confuses for 226_1b1_Pl_sc."""
    return "_".join(name.split("_")[:4])


def _icbhi_cycles(request: Request) -> Iterator[ListRow]:
    for recording, split in _icbhi_recordings(request):
        annotation = recording.with_suffix(".txt")
        if not recording.is_file():
            yield ListRow(str(recording))  # counted as missing
            continue
        if not annotation.is_file():
            raise request.lacks(annotation.name)
        for number, line in text_lines(annotation):
            try:
                start, end, crackles, wheezes = line.split()
                label = ICBHI_LABELS[crackles, wheezes]
                yield ListRow(str(recording), label, split, float(start), float(end))
            except (ValueError, KeyError) as error:
                raise ConfigError(
                    f"{annotation}: line {number} is {line!r}, not start, end, crackles 0/1 and wheezes 0/1."
                ) from error


def _icbhi_training(request: Request) -> Iterator[ListRow]:
    for recording, split in _icbhi_recordings(request):
        if split == "train":
            yield ListRow(str(recording))


def _sprsound_rows(request: Request, test: str, binary: bool) -> Iterator[ListRow]:
    """Yield training events, and those of one of the two tests of 2022."""
    annotations = _sprsound_annotations(request, "train")
    train_patients = {_patient(path) for path in annotations}
    yield from _sprsound_events(request, annotations, "train", binary)
    chosen = [
        path for path in _sprsound_annotations(request, "test") if _test_of(path, train_patients) == test
    ]
    yield from _sprsound_events(request, chosen, "test", binary)


def _sprsound_training(request: Request) -> Iterator[ListRow]:
    for row in _sprsound_events(request, _sprsound_annotations(request, "train"), "train", binary=False):
        yield ListRow(row.file, start_s=row.start_s, end_s=row.end_s)


def _sprsound_folder(request: Request, split: str, kind: str) -> Path:
    names = (f"{split}_{kind}", f"{split}2022_{kind}")
    return request.find(*names, *(f"BioCAS2022/{name}" for name in names))


def _sprsound_annotations(request: Request, split: str) -> list[Path]:
    files = files_below(_sprsound_folder(request, split, "json"))
    return sorted(path for path in files if path.suffix == ".json")


def _patient(annotation: Path) -> str:
    return annotation.stem.partition("_")[0]


def _test_of(annotation: Path, train_patients: set[str]) -> str:
    """Return the test of a recording, by its folder or by whether its patient is in the training set."""
    folder = annotation.parent.name
    if folder in ("inter_test_json", "intra_test_json"):
        return folder.partition("_")[0]
    return "intra" if _patient(annotation) in train_patients else "inter"


def _sprsound_events(
    request: Request, annotations: list[Path], split: str, binary: bool
) -> Iterator[ListRow]:
    audio = _sprsound_folder(request, split, "wav")
    for path in annotations:
        kind = "annotations (event_annotation with start, end and type)"
        with reading_file(path, kind, "Download it again from its publisher.", ConfigError):
            events = json.loads(path.read_text(encoding="utf-8"))["event_annotation"]
            found = [(event["type"], float(event["start"]), float(event["end"])) for event in events]
        for label, start_ms, end_ms in found:
            name = ADVENTITIOUS if binary and label != NORMAL else label
            file = str(audio / f"{path.stem}.wav")
            yield ListRow(file, name, split, start_ms / 1_000, end_ms / 1_000)


def _sprsound_variant(test: str, binary: bool) -> Variant:
    patients = {"inter": "other patients", "intra": "patients of the training set"}[test]
    classes = f"{NORMAL} or {ADVENTITIOUS.lower()}" if binary else "7 types of events"
    rows = functools.partial(_sprsound_rows, test=test, binary=binary)
    return Variant(
        rows, f"{classes}, tested on {patients}", {"train": SPRSOUND_TRAIN_EVENTS}, 2 if binary else 7
    )


ICBHI2017 = PublicDataset(
    title="ICBHI 2017 Respiratory Sound Database",
    source="https://bhichallenge.med.auth.gr/ICBHI_2017_Challenge",
    licence="free for research",
    reference="Rocha et al., Physiological Measurement 2019, and the official split",
    layout=f"101_1b1_Al_sc_Meditron.wav ..., a .txt of the same name for each, and {ICBHI_SPLIT}",
    variants={
        "cycles": Variant(
            _icbhi_cycles,
            "4 classes of breathing cycles: normal, crackle, wheeze, both",
            clips={ALL: 6_898, "train": 4_142, "test": 2_756},
            labels=4,
        ),
        "pretrain": Variant(_icbhi_training, "the training recordings, for pre-training", clips={ALL: 539}),
    },
    split=(
        f"{ICBHI_SPLIT} of "
        f"https://bhichallenge.med.auth.gr/sites/default/files/ICBHI_final_database/{ICBHI_SPLIT}"
    ),
)
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
        "inter": _sprsound_variant("inter", binary=False),
        "intra": _sprsound_variant("intra", binary=False),
        "inter-binary": _sprsound_variant("inter", binary=True),
        "intra-binary": _sprsound_variant("intra", binary=True),
        "pretrain": Variant(
            _sprsound_training, "the training events, for pre-training", {ALL: SPRSOUND_TRAIN_EVENTS}
        ),
    },
)
