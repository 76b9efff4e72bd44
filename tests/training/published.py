"""Public data sets in their published layouts, of some tones of two classes each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

RATE = 16_000
SPLITS = ("train", "train", "valid", "test")  # of the clips of each class
SEGMENTS = "# Segments csv\n# num_ytids, num_segs\n# YTID, start_seconds, end_seconds, positive_labels\n"


def tone(path: Path, label: int, seed: int, seconds: float = 0.2) -> None:
    """Noise, or a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(int(RATE * seconds)) / RATE
    noise = np.random.default_rng(seed).standard_normal(len(time_s))
    soundfile.write(path, 0.2 * (np.sin(2e3 * time_s + seed) if label else 0.3 * noise), RATE)


def text(path: Path, *lines: str) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def clips(names: tuple[str, str] = ("a", "b")) -> list[tuple[int, str, int, str]]:
    """Number, class, its place and split of eight clips."""
    return [
        (2 * index + label, names[label], label, split)
        for index, split in enumerate(SPLITS)
        for label in (0, 1)
    ]


def esc50(folder: Path) -> None:
    lines = ["filename,fold,target,category"]
    for index, name, label, _ in clips(("rain", "siren")):
        tone(folder / "audio" / f"{index}.wav", label, index)
        lines.append(f"{index}.wav,{1 + index // 4},{label},{name}")
    text(folder / "meta" / "esc50.csv", *lines)


def us8k(folder: Path) -> None:
    lines = ["slice_file_name,fold,class"]
    for index, name, label, _ in clips(("siren", "drilling")):
        fold = 1 + index // 4
        tone(folder / "audio" / f"fold{fold}" / f"{index}.wav", label, index)
        lines.append(f"{index}.wav,{fold},{name}")
    text(folder / "metadata" / "UrbanSound8K.csv", *lines)


def spcv2(folder: Path) -> None:
    lists: dict[str, list[str]] = {"valid": [], "test": [], "train": []}
    for index, name, label, split in clips(("no", "yes")):
        tone(folder / name / f"{index}_nohash_0.wav", label, index)
        lists[split].append(f"{name}/{index}_nohash_0.wav")
    text(folder / "validation_list.txt", *lists["valid"])
    text(folder / "testing_list.txt", *lists["test"])


def vc1(folder: Path) -> None:
    lines = []
    for index, name, label, split in clips(("id10001", "id10002")):
        clip = f"{name}/video{index}/00001.wav"
        tone(folder / "wav" / clip, label, index)
        lines.append(f"{('train', 'valid', 'test').index(split) + 1} {clip}")
    text(folder / "iden_split.txt", *lines)


def voxforge(folder: Path) -> None:
    lines = ["archive,split"]
    for index, name, label, split in clips(("de", "it")):
        tone(folder / name / f"speaker-{index}" / "wav" / f"{index}.wav", label, index)
        lines.append(f"speaker-{index},{split}")
    text(folder.parent / "voxforge-split.csv", *lines)


def cremad(folder: Path) -> None:
    lines = ["file_name,split"]
    for index, name, label, split in clips(("ANG", "HAP")):
        file = f"10{index:02d}_DFA_{name}_XX.wav"
        tone(folder / "AudioWAV" / file, label, index)
        lines.append(f"{file},{split}")
    text(folder.parent / "cremad-split.csv", *lines)


def gtzan(folder: Path) -> None:
    lists: dict[str, list[str]] = {"valid": [], "test": [], "train": []}
    for index, name, label, split in clips(("blues", "jazz")):
        clip = f"{name}/{name}.{index:05d}.wav"
        tone(folder / clip, label, index)
        lists[split].append(clip)
    for split, lines in lists.items():
        text(folder.parent / "gtzan-split" / f"{split}_filtered.txt", *lines)


def nsynth(folder: Path) -> None:
    tables: dict[str, dict[str, object]] = {"valid": {}, "test": {}, "train": {}}
    for index, name, label, split in clips(("bass", "keyboard")):
        note = f"{name}_synthetic_{index:03d}-022-050"
        tone(folder / f"nsynth-{split}" / "audio" / f"{note}.wav", label, index)
        facts = {"pitch": 22, "velocity": 50, "note_str": note, "instrument_family_str": name}
        tables[split][note] = facts
    for split, table in tables.items():
        text(folder / f"nsynth-{split}" / "examples.json", json.dumps(table))


def surge(folder: Path) -> None:
    lines = ["tone,split"]
    for index, split in enumerate(("train", "valid", "test")):
        for label, pitch in enumerate((21, 108)):
            tone(folder / f"Bells {index}" / f"{pitch}.ogg", label, index)
        lines.append(f"Bells {index},{split}")
    text(folder.parent / "surge-split.csv", *lines)


def audioset(folder: Path) -> None:
    tables: dict[str, list[str]] = {"balanced_train": [], "unbalanced_train": [], "eval": []}
    for index, mid, label, split in clips(("/m/09x0r", "/m/04rlf")):
        table = {"train": "balanced_train", "valid": "unbalanced_train", "test": "eval"}[split]
        tone(folder / ("eval" if table == "eval" else "train") / f"Y{index:011d}.wav", label, index, 0.5)
        tables[table].append(f'{index:011d}, 0.000, 10.000, "{mid}"')
    for table, lines in tables.items():
        text(folder / f"{table}_segments.csv", SEGMENTS.rstrip(), *lines)


def fsd50k(folder: Path) -> None:
    dev, evaluated = ["fname,labels,mids,split"], ["fname,labels,mids"]
    for index, name, label, split in clips(("Guitar", "Walk")):
        part = "eval" if split == "test" else "dev"
        tone(folder / f"FSD50K.{part}_audio" / f"{index}.wav", label, index, 0.5)
        (evaluated if part == "eval" else dev).append(
            f"{index},{name},/m/0" + ("" if part == "eval" else f",{split.removesuffix('id')}")
        )
    text(folder / "FSD50K.ground_truth" / "dev.csv", *dev)
    text(folder / "FSD50K.ground_truth" / "eval.csv", *evaluated)


def icbhi2017(folder: Path) -> None:
    lines = []
    for index in range(6):
        name = f"10{index}_1b1_Al_sc_Meditron"
        tone(folder / f"{name}.wav", index % 2, index, 1.0)
        cycles = (f"0.0\t0.5\t{index % 2}\t0", f"0.5\t1.0\t{(index + 1) % 2}\t0")
        text(folder / f"{name}.txt", *cycles)
        lines.append(f"{name}\t{'test' if index > 3 else 'train'}")
    text(folder / "ICBHI_challenge_train_test.txt", *lines)


def sprsound(folder: Path) -> None:
    for index in range(4):
        split, below = ("train", "") if index < 2 else ("test", "inter_test_json/")
        name = f"6510117{index}_0.4_1_p1_{index}"
        events = [
            {"start": "0", "end": "400", "type": "Normal"},
            {"start": "500", "end": "900", "type": "Rhonchi"},
        ]
        record = {"record_annotation": "DAS", "event_annotation": events}
        text(folder / f"{split}_json" / f"{below}{name}.json", json.dumps(record))
        tone(folder / f"{split}_wav" / f"{name}.wav", index % 2, index, 1.0)


def librispeech(folder: Path) -> None:
    for index in range(4):
        part = ("train-clean-100", "train-other-500")[index % 2]
        tone(folder / part / "103" / "1240" / f"103-1240-{index:04d}.flac", index % 2, index, 0.5)


def imagenet(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for index, name, label, split in clips(("n01440764", "n01443537")):
        pixels = rng.integers(0, 60, (40, 48, 3))
        pixels[..., label] += 180
        place = folder / ("val" if split == "test" else "train") / name / f"{index}.JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(place)


def write_all(folder: Path) -> None:
    """All of them, each in a folder of its name."""
    for write in (esc50, us8k, spcv2, vc1, voxforge, cremad, gtzan, nsynth, surge, audioset, fsd50k):
        write(folder / write.__name__)
    for write in (icbhi2017, sprsound, librispeech, imagenet):
        write(folder / write.__name__)
