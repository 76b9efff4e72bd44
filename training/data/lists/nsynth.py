"""NSynth: notes of instruments."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

from m2d_hub.errors import ConfigError
from m2d_hub.io import reading_file

from .dataset import ALL, ListRow, PublicDataset, Request, Variant

CLIPS = {ALL: 305_979, "train": 289_205, "valid": 12_678, "test": 4_096}


def _rows(request: Request, field: str) -> Iterator[ListRow]:
    for split in ("train", "valid", "test"):
        path = request.find(f"nsynth-{split}/examples.json")
        kind = f"a table of notes that have {field}"
        with reading_file(path, kind, "Fetch it again from its publisher.", ConfigError):
            notes = json.loads(path.read_text(encoding="utf-8"))
            labels = {name: str(note[field]) for name, note in notes.items()}
        for name, label in labels.items():
            yield ListRow(str(path.parent / "audio" / f"{name}.wav"), label, split)


NSYNTH = PublicDataset(
    title="NSynth",
    source="https://magenta.tensorflow.org/datasets/nsynth",
    licence="CC BY 4.0",
    reference="Engel et al., ICML 2017",
    layout="nsynth-train, nsynth-valid and nsynth-test, each with examples.json and audio/*.wav",
    variants={
        "family": Variant(
            functools.partial(_rows, field="instrument_family_str"),
            "11 families of instruments",
            CLIPS,
            labels=11,
        ),
        "pitch": Variant(functools.partial(_rows, field="pitch"), "pitch as MIDI's number", CLIPS),
        "velocity": Variant(functools.partial(_rows, field="velocity"), "5 velocities", CLIPS, labels=5),
    },
)
