"""Speech Commands, both versions: spoken words with two published lists of files."""

from __future__ import annotations

from collections.abc import Iterator

from .dataset import ALL, ListRow, PublicDataset, Request, Variant, text_lines

LAYOUT = "a folder of .wav files for each word, validation_list.txt and testing_list.txt"
REFERENCE = "Warden, arXiv:1804.03209, and the data set's lists"
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}


def _rows(request: Request) -> Iterator[ListRow]:
    splits = {name: split for split, file in LISTS.items() for _, name in text_lines(request.find(file))}
    there = {
        f"{path.parent.name}/{path.name}"
        for path in request.folder.glob("*/*.wav")
        if not path.parent.name.startswith("_")  # _background_noise_ is no word
    }
    for name in sorted(there | set(splits)):
        word = name.partition("/")[0]
        yield ListRow(str(request.folder / name), word, splits.get(name, "train"))


SPCV1 = PublicDataset(
    title="Speech Commands V1",
    source="http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
    licence="CC BY 4.0",
    reference=REFERENCE,
    layout=LAYOUT,
    variants={
        "words": Variant(
            _rows,
            "30 words",
            clips={ALL: 64_721, "train": 51_088, "valid": 6_798, "test": 6_835},
            labels=30,
        )
    },
)
SPCV2 = PublicDataset(
    title="Speech Commands V2",
    source="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    licence="CC BY 4.0",
    reference=REFERENCE,
    layout=LAYOUT,
    variants={
        "words": Variant(
            _rows,
            "35 words",
            clips={ALL: 105_829, "train": 84_843, "valid": 9_981, "test": 11_005},
            labels=35,
        )
    },
)
