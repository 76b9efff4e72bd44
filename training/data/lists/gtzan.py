"""GTZAN: genres of music, in the split that leaves out faulty excerpts."""

from __future__ import annotations

from collections.abc import Iterator

from .dataset import ALL, ListRow, PublicDataset, Request, Variant
from .splits import read_splits


def _rows(request: Request) -> Iterator[ListRow]:
    folder = request.find("blues", "genres/blues", "genres_original/blues").parent
    for name, split in read_splits(request, "clip").items():
        yield ListRow(str(folder / f"{name}.wav"), name.partition("/")[0], split)


GTZAN = PublicDataset(
    title="GTZAN",
    source="http://marsyas.info/downloads/datasets.html",
    licence="none stated",
    reference="Kereliuk et al., IEEE Transactions on Multimedia 2015, whose fault-filtered lists these are",
    layout="a folder for each genre, blues/blues.00000.wav or .au ...",
    variants={
        "genres": Variant(
            _rows,
            "10 genres, the 930 of 1,000 excerpts that are not faulty",
            clips={ALL: 930, "train": 443, "valid": 197, "test": 290},
            labels=10,
        )
    },
    split=(
        "the three files train_filtered.txt, valid_filtered.txt and test_filtered.txt of "
        "https://github.com/coreyker/dnn-mgr/tree/master/gtzan"
    ),
)
