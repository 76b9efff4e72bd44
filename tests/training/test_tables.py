"""Lists that users write are read alike by embedding, pre-training and evaluation, and refused alike."""

import shutil
from pathlib import Path

import pytest
from m2d_training.data.manifest import read_manifest
from m2d_training.evaluation.labelled import read_labelled
from m2d_training.pretraining.config import OfflineConfig
from m2d_training.pretraining.run_data import check_targets

from m2d_hub import ConfigError, find_sources

CLIP = Path(__file__).parents[1] / "data" / "tabla_stroke.flac"
READERS = {
    "embed": lambda path: [Path(source.path).name for source in find_sources(path)],
    "pretrain": lambda path: [Path(entry.path).name for entry in read_manifest(str(path)).entries],
    "linear-eval": lambda path: [Path(clip.file).name for clip in read_labelled(path).clips],
}
ROWS = [("a, b.flac", "dog", "train"), ("c.flac", "cat", "train"), ("d.flac", "dog", "valid")]
ROWS += [("é.flac", "cat", "test")]
NAMES = [row[0] for row in ROWS]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        shutil.copy(CLIP, tmp_path / name)
    return tmp_path


def written(folder, separator=",", header=("file", "label", "split"), encoding="utf-8", rows=ROWS, end="\n"):
    """A list with every cell in quotes."""
    lines = [separator.join(header), *(separator.join(f'"{cell}"' for cell in row) for row in rows)]
    path = folder / "list.csv"
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


GOOD = {
    "plain": {},
    "byte order mark": {"encoding": "utf-8-sig"},
    "spaces in the header": {"header": ("file ", " label", " split ")},
    "semicolons": {"separator": ";"},
    "Windows line ends": {"end": "\r\n"},
    "blank rows": {"end": "\n\n"},
    "another column": {"header": ("file", "label", "split", "note"), "rows": [(*row, "x") for row in ROWS]},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", GOOD)
def test_every_reader_reads_what_spreadsheets_write(folder, reader, form):
    expected = NAMES[:2] if reader == "pretrain" else NAMES  # pre-training reads the split train only
    assert READERS[reader](written(folder, **GOOD[form])) == expected


REPEATED = ("file", "label", "split", "file")
BAD = {
    "cannot be read .* Save it as a CSV in UTF-8": {"encoding": "latin-1"},
    "cannot be read .* Save it as a CSV in UTF-8 ": {"encoding": "utf-16"},
    "has no column 'file'; its columns: path, label, split": {"header": ("path", "label", "split")},
    "has the column 'file' more than once": {"header": REPEATED, "rows": [(*row, "x") for row in ROWS]},
    r"1 row has another number of cells than the header \(row 4\)": {
        "rows": [*ROWS[:2], ("d.flac",), ROWS[3]]
    },
    r"1 row has no file \(row 2\)": {"rows": [("", "dog", "train"), *ROWS[1:]]},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("message", BAD)
def test_every_reader_refuses_the_same_with_rows(folder, reader, message):
    with pytest.raises(ConfigError, match=message.strip()):
        READERS[reader](written(folder, **BAD[message]))


def test_what_the_offline_network_learns_from_is_looked_for_first(folder):
    def check(offline, header, rows):
        check_targets(offline, read_manifest(str(written(folder, header=header, rows=rows))))

    text, labels, features = (OfflineConfig(kind) for kind in ("text", "labels", "features"))
    with pytest.raises(ConfigError, match="4 of 4 clips have neither caption nor label"):
        check(text, ("file",), [(name,) for name in NAMES])
    with pytest.raises(ConfigError, match=r"1 of 4 clips have neither .*c\.flac"):
        check(text, ("file", "caption"), [(name, "" if name == "c.flac" else "a dog") for name in NAMES])
    with pytest.raises(ConfigError, match="has no labels"):
        check(labels, ("file",), [(name,) for name in NAMES])
    with pytest.raises(ConfigError, match=r"1 of 4 clips lack features, the first is .*c\.flac"):
        check(features, ("file", "features"), [(name, "" if name == "c.flac" else "f.npy") for name in NAMES])
    check(labels, ("file", "label"), [(name, "dog" if name == "c.flac" else "") for name in NAMES])
    check(text, ("file", "caption"), [(name, "a dog") for name in NAMES])
