"""Write and render standard MIDI files of a few events."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = 960  # 480 per beat at 120 beats per minute
DRUM_CHANNEL = 9
RENDER_RATE = 32_000  # Hz
SECONDS_LIMIT = 600  # time limit of one rendering


@dataclass(frozen=True)
class Note:
    """One note of one instrument."""

    start_s: float
    length_s: float
    key: int  # 60: middle C
    velocity: int  # 1-127


def write_midi(path: Path, program: int | None, notes: list[Note]) -> None:
    """Write notes of a General MIDI program, or of the drum kit for None."""
    channel = DRUM_CHANNEL if program is None else 0
    events = [] if program is None else [(0, bytes([0xC0, program]))]
    for note in notes:
        begin, end = (round(time * TICKS_PER_S) for time in (note.start_s, note.start_s + note.length_s))
        events.append((begin, bytes([0x90 | channel, note.key, note.velocity])))
        events.append((end, bytes([0x80 | channel, note.key, 0])))
    track, now = b"", 0
    for tick, message in sorted(events):
        track += _variable_length(tick - now) + message
        now = tick
    track += _variable_length(TICKS_PER_S) + b"\xff\x2f\x00"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS_PER_S // 2)
    path.write_bytes(header + b"MTrk" + struct.pack(">I", len(track)) + track)


def _variable_length(value: int) -> bytes:
    digits = [value & 127]
    while value := value >> 7:
        digits.append(0x80 | value & 127)
    return bytes(reversed(digits))


def render(score: Path, soundfont: Path, target: Path, dry: bool) -> bool:
    """Render a score to a WAV file with fluidsynth or, for a configuration of patches, with timidity."""
    if soundfont.suffix == ".cfg":
        effects = ["-EFreverb=0", "-EFchorus=0"] if dry else []
        command = ["timidity", "-c", soundfont, "-Ow", "-s", RENDER_RATE, *effects, "-o", target, score]
    else:
        effects = ["-R", "0", "-C", "0"] if dry else []
        options = ["-ni", *effects, "-g", "0.6", "-r", RENDER_RATE, "-F", target]
        command = ["fluidsynth", *options, soundfont, score]
    try:
        outcome = subprocess.run(
            [str(part) for part in command], capture_output=True, check=False, timeout=SECONDS_LIMIT
        )
    except subprocess.TimeoutExpired:
        return False
    return outcome.returncode == 0 and target.exists()
