"""Synthesise speech with three free engines, about sixty languages and many voices."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from speech_texts import draw_texts

SECONDS_LIMIT = 60  # per call of an engine
WAV_HEADER = 44  # bytes; festival writes an empty file for a text that it cannot read

# language label: (locale of the texts, voices of espeak-ng)
ESPEAK_LANGUAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "af": ("af", ("af",)),
    "am": ("am", ("am",)),
    "ar": ("ar", ("ar",)),
    "az": ("az", ("az",)),
    "be": ("be", ("be",)),
    "bg": ("bg", ("bg",)),
    "bn": ("bn", ("bn",)),
    "bs": ("bs", ("bs",)),
    "ca": ("ca", ("ca",)),
    "cs": ("cs", ("cs",)),
    "cy": ("cy", ("cy",)),
    "da": ("da", ("da",)),
    "de": ("de", ("de",)),
    "el": ("el", ("el",)),
    "en": ("en", ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc")),
    "eo": ("eo", ("eo",)),
    "es": ("es", ("es", "es-419")),
    "et": ("et", ("et",)),
    "eu": ("eu", ("eu",)),
    "fa": ("fa", ("fa",)),
    "fi": ("fi", ("fi",)),
    "fr": ("fr", ("fr-fr", "fr-be", "fr-ch")),
    "ga": ("ga", ("ga",)),
    "gu": ("gu", ("gu",)),
    "hi": ("hi", ("hi",)),
    "hr": ("hr", ("hr",)),
    "hu": ("hu", ("hu",)),
    "hy": ("hy", ("hy", "hyw")),
    "ia": ("ia", ("ia",)),
    "id": ("id", ("id",)),
    "is": ("is", ("is",)),
    "it": ("it", ("it",)),
    "ka": ("ka", ("ka",)),
    "kk": ("kk", ("kk",)),
    "kn": ("kn", ("kn",)),
    "ko": ("ko", ("ko",)),
    "lt": ("lt", ("lt",)),
    "lv": ("lv", ("lv",)),
    "mk": ("mk", ("mk",)),
    "ml": ("ml", ("ml",)),
    "mr": ("mr", ("mr",)),
    "ms": ("ms", ("ms",)),
    "mt": ("mt", ("mt",)),
    "nb": ("nb", ("nb",)),
    "ne": ("ne", ("ne",)),
    "nl": ("nl", ("nl",)),
    "or": ("or", ("or",)),
    "pa": ("pa", ("pa",)),
    "pl": ("pl", ("pl",)),
    "pt": ("pt_BR", ("pt-br", "pt")),
    "ro": ("ro", ("ro",)),
    "ru": ("ru", ("ru", "ru-lv")),
    "si": ("si", ("si",)),
    "sk": ("sk", ("sk",)),
    "sl": ("sl", ("sl",)),
    "sq": ("sq", ("sq",)),
    "sr": ("sr", ("sr",)),
    "sv": ("sv", ("sv",)),
    "sw": ("sw", ("sw",)),
    "ta": ("ta", ("ta",)),
    "te": ("te", ("te",)),
    "tr": ("tr", ("tr",)),
    "tt": ("tt", ("tt",)),
    "uk": ("uk", ("uk",)),
    "ur": ("ur", ("ur",)),
    "vi": ("vi", ("vi", "vi-vn-x-central", "vi-vn-x-south")),
    "zh": ("zh_CN", ("cmn",)),
}
ESPEAK_VARIANTS = (
    *(f"m{number}" for number in range(1, 9)),
    *(f"f{number}" for number in range(1, 6)),
    *("adam", "Alicia", "Andrea", "Annie", "anika", "aunty", "belinda", "benjamin", "boris", "caleb"),
    *("croak", "david", "Denis", "Diogo", "edward", "grandma", "grandpa", "gustave", "Jacky", "john"),
    *("klatt2", "klatt4", "klatt6", "Lee", "linda", "Mario", "max", "Michael", "miguel", "Nguyen"),
    *("norbert", "pablo", "paul", "quincy", "robert", "robosoft", "shelby", "steph", "travis", "victor"),
    *("whisper", "whisperf", "zac"),
)
FLITE_VOICES = ("awb", "kal", "kal16", "rms", "slt")
# voice of festival: (language, locale of the texts, encoding)
FESTIVAL_VOICES: dict[str, tuple[str, str, str]] = {
    "cmu_us_slt_arctic_hts": ("en", "en", "ascii"),
    "czech_dita": ("cs", "cs", "iso-8859-2"),
    "czech_krb": ("cs", "cs", "iso-8859-2"),
    "czech_machac": ("cs", "cs", "iso-8859-2"),
    "czech_ph": ("cs", "cs", "iso-8859-2"),
    "hindi_NSK_diphone": ("hi", "hi", "utf-8"),
    "hy_fi_mv_diphone": ("fi", "fi", "iso-8859-1"),
    "kal_diphone": ("en", "en", "ascii"),
    "ked_diphone": ("en", "en", "ascii"),
    "lp_diphone": ("it", "it", "iso-8859-1"),
    "marathi_NSK_diphone": ("mr", "mr", "utf-8"),
    "msu_ru_nsh_clunits": ("ru", "ru", "utf-8"),
    "pc_diphone": ("it", "it", "iso-8859-1"),
    "suo_fi_lj_diphone": ("fi", "fi", "iso-8859-1"),
    "telugu_NSK_diphone": ("te", "te", "utf-8"),
    "upc_ca_ona_hts": ("ca", "ca", "iso-8859-1"),
}


@dataclass(frozen=True)
class Line:
    """One text and its voice."""

    engine: str
    voice: str  # name in the engine
    language: str
    text: str
    encoding: str = "utf-8"
    variant: str = ""  # only for espeak-ng
    speed: int = 0  # words per minute; 0: default of the engine
    pitch: int = 0  # only for espeak-ng, 0-99

    @property
    def label(self) -> str:
        """Label of the clip."""
        voice = f"espeak-ng-{self.variant}" if self.variant else f"{self.engine}-{self.voice}"
        return f"kind:speech;kind:synthetic-speech;language:{self.language};voice:{voice}"


def espeak_lines(texts: Path, per_language: int, rng: random.Random) -> list[Line]:
    """Return lines for each language, with random variants, speeds and pitches."""
    lines = []
    for language, (locale, voices) in ESPEAK_LANGUAGES.items():
        count = per_language * (2 if len(voices) > 1 else 1)
        for text in draw_texts(texts, locale, count, rng):
            voice, variant = rng.choice(voices), rng.choice(ESPEAK_VARIANTS)
            speed, pitch = rng.randint(120, 210), rng.randint(25, 75)
            lines.append(Line("espeak-ng", voice, language, text, "utf-8", variant, speed, pitch))
    return lines


def other_lines(texts: Path, per_voice: int, rng: random.Random) -> list[Line]:
    """Return lines for the voices of flite and festival."""
    lines = []
    for voice in FLITE_VOICES:
        lines += [Line("flite", voice, "en", text) for text in draw_texts(texts, "en", per_voice, rng)]
    for voice, (language, locale, encoding) in FESTIVAL_VOICES.items():
        drawn = draw_texts(texts, locale, per_voice, rng)
        lines += [Line("festival", voice, language, text, encoding) for text in drawn]
    return lines


def speak(line: Line, target: Path) -> bool:
    """Speak a line to a WAV file; return False if the engine writes none."""
    spoken = line.text.encode(line.encoding, "ignore")
    if line.engine == "espeak-ng":
        command = ["espeak-ng", "-v", f"{line.voice}+{line.variant}", "-s", str(line.speed)]
        command += ["-p", str(line.pitch), "-b", "1", "--stdin", "-w", str(target)]
    elif line.engine == "flite":
        command, spoken = ["flite", "-voice", line.voice, "-t", line.text, "-o", str(target)], b""
    else:
        command = ["text2wave", "-eval", f"(voice_{line.voice})", "-o", str(target)]
    try:
        outcome = subprocess.run(
            command, input=spoken, capture_output=True, check=False, timeout=SECONDS_LIMIT
        )
    except subprocess.TimeoutExpired:
        return False
    return outcome.returncode == 0 and target.exists() and target.stat().st_size > WAV_HEADER
