"""Music: NSynth's notes, GTZAN's genres and the pitches of Surge."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

from m2d_hub.errors import ConfigError
from m2d_hub.io import reading_file

from ..folders import audio_below
from .dataset import ALL, EVAR_URL, ListRow, PublicDataset, Request, Variant

NSYNTH_CLIPS = {ALL: 305_979, "train": 289_205, "valid": 12_678, "test": 4_096}


def _nsynth_rows(request: Request, field: str) -> Iterator[ListRow]:
    for split in ("train", "valid", "test"):
        path = request.find(f"nsynth-{split}/examples.json")
        kind = f"a table of notes that have {field}"
        with reading_file(path, kind, "Download it again from its publisher.", ConfigError):
            notes = json.loads(path.read_text(encoding="utf-8"))
            labels = {name: str(note[field]) for name, note in notes.items()}
        for name, label in labels.items():
            yield ListRow(str(path.parent / "audio" / f"{name}.wav"), label, split)


def _gtzan_rows(request: Request) -> Iterator[ListRow]:
    """Rows of the named lists; excerpts that they leave out are faulty."""
    folder = request.find("blues", "genres/blues", "genres_original/blues").parent
    for name, split in request.read_splits("clip").items():
        yield ListRow(str(folder / f"{name}.wav"), name.partition("/")[0], split)


def _surge_rows(request: Request) -> Iterator[ListRow]:
    clips = [path for path in audio_below(request.folder) if path.stem.isdecimal()]
    if not clips:
        raise request.lacks("TONE/21.ogg")
    yield from request.split_rows(
        [(ListRow(str(path), path.stem), path.parent.name) for path in clips], "tone"
    )


NSYNTH = PublicDataset(
    title="NSynth",
    source="https://magenta.tensorflow.org/datasets/nsynth",
    licence="CC BY 4.0",
    reference="Engel et al., ICML 2017",
    layout="nsynth-train, nsynth-valid and nsynth-test, each with examples.json and audio/*.wav",
    variants={
        "family": Variant(
            functools.partial(_nsynth_rows, field="instrument_family_str"),
            "11 families of instruments",
            NSYNTH_CLIPS,
            labels=11,
        ),
        "pitch": Variant(functools.partial(_nsynth_rows, field="pitch"), "MIDI pitch", NSYNTH_CLIPS),
        "velocity": Variant(
            functools.partial(_nsynth_rows, field="velocity"), "5 velocities", NSYNTH_CLIPS, labels=5
        ),
    },
)
GTZAN = PublicDataset(
    title="GTZAN",
    source="http://marsyas.info/downloads/datasets.html",
    licence="none stated",
    reference="Kereliuk et al., IEEE Transactions on Multimedia 2015, whose fault-filtered lists these are",
    layout="a folder per genre, blues/blues.00000.wav or .au ...",
    variants={
        "genres": Variant(
            _gtzan_rows,
            "10 genres, the 930 of 1,000 excerpts without faults",
            clips={ALL: 930, "train": 443, "valid": 197, "test": 290},
            labels=10,
        )
    },
    split=(
        "the three files train_filtered.txt, valid_filtered.txt and test_filtered.txt of "
        "https://github.com/coreyker/dnn-mgr/tree/master/gtzan"
    ),
)
SURGE = PublicDataset(
    title="Pitch Audio Dataset (Surge synthesizer)",
    source="https://zenodo.org/record/4677097",
    licence="see the record on Zenodo",
    reference="the record on Zenodo",
    layout="a folder per tone with a file per MIDI note, TONE/21.ogg ... TONE/108.ogg",
    variants={"notes": Variant(_surge_rows, "88 notes", labels=88)},
    split=(
        "a CSV with the columns tone and split, or file_name and split; the evaluation platform EVAR "
        f"({EVAR_URL}) has such a table, evar/predefined/dataset_surge_tone_splits.csv"
    ),
)
