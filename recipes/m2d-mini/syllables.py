"""Mandarin syllables, one by one: consonant, vowel and tone of each are known, whoever says it."""

from __future__ import annotations

import random

from speech import ESPEAK_VARIANTS, Line

VOICE = "cmn-latn-pinyin"  # of espeak-ng: reads pinyin with a number for the tone
TONES = (1, 2, 3, 4)
WHISPERS = ("whisper", "whisperf")  # have no tone
# Finals by initial, as pinyin is written; "v" is u with two dots.
FINALS: dict[str, str] = {
    "": "a ai an ang ao e en er o ou wa wai wan wang wei wen weng wo wu "
    "ya yan yang yao ye yi yin ying yong you yu yuan yue yun",
    "b": "a ai an ang ao ei en eng i ian iao ie in ing o u",
    "p": "a ai an ang ao ei en eng i ian iao ie in ing o ou u",
    "m": "a ai an ang ao ei en eng i ian iao ie in ing iu o ou u",
    "f": "a an ang ei en eng o ou u",
    "d": "a ai an ang ao e ei eng i ian iao ie ing iu ong ou u uan ui un uo",
    "t": "a ai an ang ao e eng i ian iao ie ing ong ou u uan ui un uo",
    "n": "a ai an ang ao e ei en eng i ian iang iao ie in ing iu ong u uan uo v ve",
    "l": "a ai an ang ao e ei eng i ia ian iang iao ie in ing iu ong ou u uan un uo v ve",
    "g": "a ai an ang ao e ei en eng ong ou u ua uai uan uang ui un uo",
    "k": "a ai an ang ao e en eng ong ou u ua uai uan uang ui un uo",
    "h": "a ai an ang ao e ei en eng ong ou u ua uai uan uang ui un uo",
    "j": "i ia ian iang iao ie in ing iong iu u uan ue un",
    "q": "i ia ian iang iao ie in ing iong iu u uan ue un",
    "x": "i ia ian iang iao ie in ing iong iu u uan ue un",
    "zh": "a ai an ang ao e en eng i ong ou u ua uai uan uang ui un uo",
    "ch": "a ai an ang ao e en eng i ong ou u uai uan uang ui un uo",
    "sh": "a ai an ang ao e ei en eng i ou u ua uai uan uang ui un uo",
    "r": "an ang ao e en eng i ong ou u uan ui un uo",
    "z": "a ai an ang ao e ei en eng i ong ou u uan ui un uo",
    "c": "a ai an ang ao e en eng i ong ou u uan ui un uo",
    "s": "a ai an ang ao e en eng i ong ou u uan ui un uo",
}


def syllable_labels(initial: str, final: str, tone: int) -> str:
    """What a syllable is learnt by, beside language and voice."""
    return f"initial:{initial or 'none'};final:{final};tone:{tone}"


def syllable_lines(rounds: int, rng: random.Random) -> list[Line]:
    """Every syllable in every tone, ``rounds`` times, each time in a random voice, speed and pitch."""
    variants = [variant for variant in ESPEAK_VARIANTS if variant not in WHISPERS]
    lines = []
    for _ in range(rounds):
        for initial, finals in FINALS.items():
            for final in finals.split():
                for tone in TONES:
                    speed, pitch = rng.randint(110, 200), rng.randint(15, 85)
                    text, labels = f"{initial}{final}{tone}", syllable_labels(initial, final, tone)
                    variant = rng.choice(variants)
                    lines.append(Line("espeak-ng", VOICE, "zh", text, "utf-8", variant, speed, pitch, labels))
    return lines
