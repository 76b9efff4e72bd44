"""Speech: Speech Commands, VoxCeleb1, CREMA-D, VoxForge and LibriSpeech."""

from __future__ import annotations

from collections.abc import Iterator

from m2d_hub.errors import ConfigError

from ..folders import audio_below
from .dataset import ALL, EVAR_URL, ListRow, PublicDataset, Request, Variant, text_lines

SPC_LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
VC1_SPLITS = {"1": "train", "2": "valid", "3": "test"}
EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}


def _spc_rows(request: Request) -> Iterator[ListRow]:
    splits = {name: split for split, file in SPC_LISTS.items() for _, name in text_lines(request.find(file))}
    found = {
        f"{path.parent.name}/{path.name}"
        for path in request.folder.glob("*/*.wav")
        if not path.name.startswith(".") and not path.parent.name.startswith((".", "_"))  # _background_noise_
    }
    for name in sorted(found | set(splits)):
        yield ListRow(str(request.folder / name), name.partition("/")[0], splits.get(name, "train"))


def _vc1_rows(request: Request) -> Iterator[ListRow]:
    split_file = request.split_file("iden_split.txt")
    audio = request.find("wav")
    for number, line in text_lines(split_file):
        part, _, name = line.partition(" ")
        if part not in VC1_SPLITS or "/" not in name:
            raise ConfigError(f"{split_file}: line {number} is {line!r}, not '1 SPEAKER/VIDEO/CLIP.wav'.")
        yield ListRow(str(audio / name), name.partition("/")[0], VC1_SPLITS[part])


def _cremad_rows(request: Request) -> Iterator[ListRow]:
    clips = []
    for path in audio_below(request.find("AudioWAV")):
        speaker, _, emotion, *_ = [*path.stem.split("_"), "", "", ""]
        if emotion not in EMOTIONS:
            raise ConfigError(f"{path} is not named SPEAKER_SENTENCE_EMOTION_LEVEL, as 1001_DFA_ANG_XX.wav.")
        clips.append((ListRow(str(path), EMOTIONS[emotion]), speaker))
    if not clips:
        raise request.lacks("AudioWAV/1001_DFA_ANG_XX.wav")
    yield from request.split_rows(clips, "speaker")


def _voxforge_rows(request: Request) -> Iterator[ListRow]:
    clips = []
    for path in audio_below(request.folder):
        language, archive, *_ = [*path.relative_to(request.folder).parts[:-1], "", ""]
        if archive:
            clips.append((ListRow(str(path), language), archive))
    if not clips:
        raise request.lacks("LANGUAGE/ARCHIVE/wav")
    yield from request.split_rows(clips, "archive")


def _librispeech_rows(request: Request) -> Iterator[ListRow]:
    folders = [request.folder, request.folder / "LibriSpeech"]
    subsets = sorted(path for folder in folders for path in folder.glob("train-*") if path.is_dir())
    if not subsets:
        raise request.lacks("train-clean-100")
    yield from (ListRow(str(path)) for subset in subsets for path in audio_below(subset))


def _speech_commands(version: int, words: int, clips: dict[str, int]) -> PublicDataset:
    return PublicDataset(
        title=f"Speech Commands V{version}",
        source=f"http://download.tensorflow.org/data/speech_commands_v0.0{version}.tar.gz",
        licence="CC BY 4.0",
        reference="Warden, arXiv:1804.03209, and the data set's lists",
        layout="a folder of .wav files per word, validation_list.txt and testing_list.txt",
        variants={"words": Variant(_spc_rows, f"{words} words", clips=clips, labels=words)},
    )


SPCV1 = _speech_commands(1, 30, {ALL: 64_721, "train": 51_088, "valid": 6_798, "test": 6_835})
SPCV2 = _speech_commands(2, 35, {ALL: 105_829, "train": 84_843, "valid": 9_981, "test": 11_005})
VC1 = PublicDataset(
    title="VoxCeleb1",
    source="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
    licence="CC BY 4.0 for the metadata; the videos' owners keep their rights",
    reference="Nagrani et al., Interspeech 2017, and iden_split.txt",
    layout="wav/id10001/VIDEO/00001.wav ... (the archives dev and test together) and iden_split.txt",
    variants={
        "speakers": Variant(
            _vc1_rows,
            "1,251 speakers",
            clips={ALL: 153_516, "train": 138_361, "valid": 6_904, "test": 8_251},
            labels=1_251,
        )
    },
    split="iden_split.txt of https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt",
)
CREMAD = PublicDataset(
    title="CREMA-D",
    source="https://github.com/CheyneyComputerScience/CREMA-D",
    licence="Open Database License 1.0",
    reference="Cao et al., IEEE Transactions on Affective Computing 2014",
    layout="AudioWAV/SPEAKER_SENTENCE_EMOTION_LEVEL.wav, as AudioWAV/1001_DFA_ANG_XX.wav",
    variants={
        "emotions": Variant(_cremad_rows, "6 emotions, split by speaker", clips={ALL: 7_442}, labels=6)
    },
    split=(
        "a CSV with the columns speaker and split, or file_name and split; the evaluation platform EVAR "
        f"({EVAR_URL}) has such a table, cremad.csv"
    ),
)
VOXFORGE = PublicDataset(
    title="VoxForge",
    source="http://www.voxforge.org",
    licence="GPL 3",
    reference="the evaluation platform EVAR",
    layout="a folder per language with the unpacked archives, de/ARCHIVE/wav/*.wav ...",
    variants={"languages": Variant(_voxforge_rows, "6 languages", clips={ALL: 176_438}, labels=6)},
    split=(
        "a CSV with the columns archive and split, or file_name and split; the evaluation platform EVAR "
        f"({EVAR_URL}) has such a table, voxforge.csv"
    ),
)
LIBRISPEECH = PublicDataset(
    title="LibriSpeech",
    source="https://www.openslr.org/12",
    licence="CC BY 4.0",
    reference="Panayotov et al., ICASSP 2015",
    layout="train-clean-100, train-clean-360 and train-other-500, each SPEAKER/CHAPTER/*.flac",
    variants={
        "pretrain": Variant(_librispeech_rows, "the 960 hours of training speech", clips={ALL: 281_241})
    },
)
