"""VoxCeleb1: who speaks."""

from __future__ import annotations

from collections.abc import Iterator

from m2d_hub.errors import ConfigError

from .dataset import ALL, ListRow, PublicDataset, Request, Variant, text_lines

SPLITS = {"1": "train", "2": "valid", "3": "test"}


def _rows(request: Request) -> Iterator[ListRow]:
    split_file = request.split_file("iden_split.txt")
    audio = request.find("wav")
    for number, line in text_lines(split_file):
        part, _, name = line.partition(" ")
        if part not in SPLITS or "/" not in name:
            raise ConfigError(f"{split_file}: line {number} is {line!r}, not '1 SPEAKER/VIDEO/CLIP.wav'.")
        yield ListRow(str(audio / name), name.partition("/")[0], SPLITS[part])


VC1 = PublicDataset(
    title="VoxCeleb1",
    source="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
    licence="CC BY 4.0 for the metadata; the videos' owners keep their rights",
    reference="Nagrani et al., Interspeech 2017, and iden_split.txt",
    layout="wav/id10001/VIDEO/00001.wav ... (the archives dev and test together) and iden_split.txt",
    variants={
        "speakers": Variant(
            _rows,
            "1,251 speakers",
            clips={ALL: 153_516, "train": 138_361, "valid": 6_904, "test": 8_251},
            labels=1_251,
        )
    },
    split="iden_split.txt of https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt",
)
