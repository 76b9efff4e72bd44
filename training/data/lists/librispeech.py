"""LibriSpeech: read speech, to pre-train on."""

from __future__ import annotations

from collections.abc import Iterator

from .dataset import ALL, ListRow, PublicDataset, Request, Variant, audio_below


def _rows(request: Request) -> Iterator[ListRow]:
    folders = [request.folder, request.folder / "LibriSpeech"]
    subsets = sorted(path for folder in folders for path in folder.glob("train-*") if path.is_dir())
    if not subsets:
        raise request.lacks("train-clean-100")
    for subset in subsets:
        yield from (ListRow(str(path)) for path in audio_below(subset))


LIBRISPEECH = PublicDataset(
    title="LibriSpeech",
    source="https://www.openslr.org/12",
    licence="CC BY 4.0",
    reference="Panayotov et al., ICASSP 2015",
    layout="train-clean-100, train-clean-360 and train-other-500, each SPEAKER/CHAPTER/*.flac",
    variants={"pretrain": Variant(_rows, "the 960 hours to train on", clips={ALL: 281_241})},
)
