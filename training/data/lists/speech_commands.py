"""Speech Commands, both versions: spoken words with two published lists of files."""

from __future__ import annotations

from collections.abc import Iterator

from .dataset import ALL, ListRow, PublicDataset, Request, Variant, text_lines

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


def _version(number: int, words: int, clips: dict[str, int]) -> PublicDataset:
    return PublicDataset(
        title=f"Speech Commands V{number}",
        source=f"http://download.tensorflow.org/data/speech_commands_v0.0{number}.tar.gz",
        licence="CC BY 4.0",
        reference="Warden, arXiv:1804.03209, and the data set's lists",
        layout="a folder of .wav files for each word, validation_list.txt and testing_list.txt",
        variants={"words": Variant(_rows, f"{words} words", clips=clips, labels=words)},
    )


SPCV1 = _version(1, 30, {ALL: 64_721, "train": 51_088, "valid": 6_798, "test": 6_835})
SPCV2 = _version(2, 35, {ALL: 105_829, "train": 84_843, "valid": 9_981, "test": 11_005})
