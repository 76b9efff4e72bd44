"""Notes, phrases and scores played by free soundfonts that are not in a dev task."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from midi import Note

# name: (package, path inside it)
SOUNDFONTS: dict[str, tuple[str, str]] = {
    "a320u": ("denemo-data", "usr/share/sounds/sf2/A320U.sf2"),
    "csound-gm": ("csound-soundfont", "usr/share/sounds/sf2/sf_GMbank.sf2"),
    "freepats": ("freepats", "etc/timidity/freepats.cfg"),
    "generaluser": ("minuet-data", "usr/share/minuet/soundfonts/GeneralUser-v1.47.sf2"),
    "opl3": ("opl3-soundfont", "usr/share/sounds/sf2/OPL-3_FM_128M.sf2"),
}
FREEPATS_FOLDER = "usr/share/midi/freepats"
SCORE_SOUNDFONTS = ("a320u", "csound-gm", "freepats", "generaluser")
FAMILIES = (
    *("piano", "chromatic-percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass"),
    *("reed", "pipe", "synth-lead", "synth-pad", "synth-effects", "ethnic", "percussive", "sound-effects"),
)
PROGRAMS = range(128)
LOWEST_KEY, HIGHEST_KEY = 31, 95
LOWEST_DRUM, HIGHEST_DRUM = 35, 81
PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))
NOTE_SLOT_S = 1.6  # between the starts of two single notes
PHRASE_S = 12.0


@dataclass(frozen=True)
class Part:
    """Notes that are rendered together, and the clips to cut from the sound."""

    soundfont: str
    program: int | None  # None for the drum kit
    notes: list[Note]
    clips: list[tuple[float, float, str]]  # start and length in seconds, label


def instrument_label(program: int | None) -> str:
    """Return the family and program of General MIDI."""
    if program is None:
        return "kind:instrument;instrument:drums"
    return f"kind:instrument;instrument:{FAMILIES[program // 8]};program:{program:03d}"


def single_notes(soundfont: str, program: int, count: int, rng: random.Random) -> Part:
    """Return single notes, one clip each, with their pitch."""
    notes: list[Note] = []
    clips: list[tuple[float, float, str]] = []
    for index in range(count):
        start, key = index * NOTE_SLOT_S, rng.randint(LOWEST_KEY, HIGHEST_KEY)
        notes.append(Note(start, rng.uniform(0.3, 1.3), key, rng.randint(45, 120)))
        pitch = f"pitch:{PITCH_CLASSES[key % 12]};octave:{key // 12 - 1}"
        clips.append((start, NOTE_SLOT_S, f"{instrument_label(program)};{pitch}"))
    return Part(soundfont, program, notes, clips)


def drum_notes(soundfont: str, rng: random.Random) -> Part:
    """Return each drum of the kit, loud and soft."""
    notes: list[Note] = []
    clips: list[tuple[float, float, str]] = []
    for key in range(LOWEST_DRUM, HIGHEST_DRUM + 1):
        for velocity in (rng.randint(40, 75), rng.randint(90, 120)):
            start = len(notes) * NOTE_SLOT_S
            notes.append(Note(start, 0.5, key, velocity))
            clips.append((start, NOTE_SLOT_S, f"{instrument_label(None)};drum:{key}"))
    return Part(soundfont, None, notes, clips)


def phrase(soundfont: str, program: int, rng: random.Random) -> Part:
    """Return a random melody in a scale, with some chords."""
    base, scale = rng.randint(40, 62), rng.choice(SCALES)
    beat_s, step, start = rng.uniform(0.15, 0.5), rng.randint(0, 7), 0.0
    notes: list[Note] = []
    while start < PHRASE_S - 2.0:
        step = min(13, max(0, step + rng.randint(-3, 3)))
        length = beat_s * rng.choice((1, 1, 2, 2, 3, 4))
        for voice in range(3 if rng.random() < 0.25 else 1):
            octave, degree = divmod(step + 2 * voice, len(scale))
            key = base + 12 * octave + scale[degree]
            notes.append(Note(start, length * rng.uniform(0.6, 1.1), key, rng.randint(60, 115)))
        start += length
    return Part(soundfont, program, notes, [(0.0, PHRASE_S, instrument_label(program))])


def all_parts(notes_per_program: int, rng: random.Random) -> list[Part]:
    """Return notes, drums and phrases of every soundfont."""
    parts = []
    for soundfont in SOUNDFONTS:
        parts.append(drum_notes(soundfont, rng))
        for program in PROGRAMS:
            parts.append(single_notes(soundfont, program, notes_per_program, rng))
            parts.append(phrase(soundfont, program, rng))
    return parts


def soundfont_path(name: str, unpacked: Path, work: Path) -> Path:
    """Return a soundfont, or write a configuration of patches with their unpacked paths.

    Timidity first reads the configuration of the system, which would play missing programs with another
    soundfont. The written configuration therefore removes all programs first.
    """
    package, inside = SOUNDFONTS[name]
    path = unpacked / package / inside
    if path.suffix != ".cfg":
        return path
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("dir ")]
    none = [f"#extension undef {program}" for program in PROGRAMS]
    patches = (unpacked / package / FREEPATS_FOLDER).resolve()
    own = work / path.name
    text = "\n".join([f"dir {patches}", "drumset 0", *none, "bank 0", *none, *kept])
    own.write_text(text + "\n", encoding="utf-8")
    return own


def holds(soundfont: Path, part: Part) -> bool:
    """Return whether a soundfont has the program of a part; only configurations can lack one."""
    if soundfont.suffix != ".cfg":
        return True
    banks: dict[str, set[int]] = {}
    for line in soundfont.read_text(encoding="utf-8").splitlines():
        first, *rest = line.split() or [""]
        if first in ("bank", "drumset"):
            programs = banks.setdefault(f"{first} {rest[0]}", set())
        elif first.isdigit():
            programs.add(int(first))
    return bool(banks["drumset 0"]) if part.program is None else part.program in banks["bank 0"]
