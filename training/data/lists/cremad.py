"""CREMA-D: emotions in acted speech."""

from __future__ import annotations

from collections.abc import Iterator

from m2d_hub.errors import ConfigError

from .dataset import ALL, ListRow, PublicDataset, Request, Variant, audio_below
from .splits import read_splits, split_rows

EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}


def _rows(request: Request) -> Iterator[ListRow]:
    folder = request.find("AudioWAV")
    splits = read_splits(request, "speaker")
    clips = []
    for path in audio_below(folder):
        speaker, _, emotion, *_ = [*path.stem.split("_"), "", "", ""]
        if emotion not in EMOTIONS:
            raise ConfigError(f"{path} is not named SPEAKER_SENTENCE_EMOTION_LEVEL, as 1001_DFA_ANG_XX.wav.")
        clips.append((ListRow(str(path), EMOTIONS[emotion]), speaker))
    if not clips:
        raise request.lacks("AudioWAV/1001_DFA_ANG_XX.wav")
    yield from split_rows(clips, splits, folder)


CREMAD = PublicDataset(
    title="CREMA-D",
    source="https://github.com/CheyneyComputerScience/CREMA-D",
    licence="Open Database License 1.0",
    reference="Cao et al., IEEE Transactions on Affective Computing 2014",
    layout="AudioWAV/SPEAKER_SENTENCE_EMOTION_LEVEL.wav, as AudioWAV/1001_DFA_ANG_XX.wav",
    variants={"emotions": Variant(_rows, "6 emotions, split by speaker", clips={ALL: 7_442}, labels=6)},
    split=(
        "a CSV with the columns speaker and split, or file_name and split; the evaluation platform EVAR "
        "(https://github.com/nttcslab/eval-audio-repr) has such a table, cremad.csv"
    ),
)
