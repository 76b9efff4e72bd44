"""ICBHI 2017: breathing cycles of recordings of the lungs, in the official 60/40 split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m2d_hub.errors import ConfigError

from .dataset import ALL, ListRow, PublicDataset, Request, Variant, text_lines

SPLIT_FILE = "ICBHI_challenge_train_test.txt"
LABELS = {("0", "0"): "normal", ("1", "0"): "crackle", ("0", "1"): "wheeze", ("1", "1"): "both"}


def _recordings(request: Request) -> Iterator[tuple[Path, str]]:
    """Each recording of the official split, and its split."""
    split_file = request.split_file(SPLIT_FILE)
    folders = [request.folder, request.folder / "ICBHI_final_database"]
    recordings = {_place(path.stem): path for folder in folders for path in folder.glob("*.wav")}
    if not recordings:
        raise request.lacks("101_1b1_Al_sc_Meditron.wav")
    for number, line in text_lines(split_file):
        name, split, *_ = [*line.split(), ""]
        if split not in ("train", "test"):
            raise ConfigError(f"{split_file}: line {number} is {line!r}, not a recording with train or test.")
        yield recordings.get(_place(name), request.folder / f"{name}.wav"), split


def _place(name: str) -> str:
    """A recording's name without its device: the official split calls 226_1b1_Pl_sc by another one."""
    return "_".join(name.split("_")[:4])


def _cycles(request: Request) -> Iterator[ListRow]:
    for recording, split in _recordings(request):
        annotation = recording.with_suffix(".txt")
        if not recording.is_file():
            yield ListRow(str(recording))  # to be counted
            continue
        if not annotation.is_file():
            raise request.lacks(annotation.name)
        for number, line in text_lines(annotation):
            try:
                start, end, crackles, wheezes = line.split()
                label = LABELS[crackles, wheezes]
                yield ListRow(str(recording), label, split, float(start), float(end))
            except (ValueError, KeyError) as error:
                raise ConfigError(
                    f"{annotation}: line {number} is {line!r}, not start, end, crackles 0/1 and wheezes 0/1."
                ) from error


def _training_recordings(request: Request) -> Iterator[ListRow]:
    for recording, split in _recordings(request):
        if split == "train":
            yield ListRow(str(recording))


ICBHI2017 = PublicDataset(
    title="ICBHI 2017 Respiratory Sound Database",
    source="https://bhichallenge.med.auth.gr/ICBHI_2017_Challenge",
    licence="free for research",
    reference="Rocha et al., Physiological Measurement 2019, and the official split",
    layout=f"101_1b1_Al_sc_Meditron.wav ..., a .txt of the same name for each, and {SPLIT_FILE}",
    variants={
        "cycles": Variant(
            _cycles,
            "4 classes of breathing cycles: normal, crackle, wheeze, both",
            clips={ALL: 6_898, "train": 4_142, "test": 2_756},
            labels=4,
        ),
        "pretrain": Variant(
            _training_recordings, "the training recordings, for pre-training", clips={ALL: 539}
        ),
    },
    split=(
        f"{SPLIT_FILE} of "
        f"https://bhichallenge.med.auth.gr/sites/default/files/ICBHI_final_database/{SPLIT_FILE}"
    ),
)
