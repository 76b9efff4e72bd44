"""Free texts to read aloud: translations of programs' messages and of the names of countries and languages.

They stand as gettext catalogues in packages of Debian's main section (GPL and LGPL), in a hundred languages.
"""

from __future__ import annotations

import gettext
import random
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

TEXT_PACKAGES = (
    "bash",
    "coreutils",
    "diffutils",
    "dpkg",
    "findutils",
    "gettext",
    "gnupg-l10n",
    "iso-codes",
    "make",
    "sed",
    "tar",
    "wget",
    "xz-utils",
)
NAMES_PACKAGE = "iso-codes"
SHORTEST_LETTERS, LONGEST_LETTERS = 12, 110  # of a message that is read
MIN_LETTER_SHARE = 0.75
NAMES_PER_TEXT = (3, 7)
NOISE = re.compile(r"%[-#0 +']*[\d*.$]*[a-zA-Z%]|['\"`‘’“”«»„<>\[\]{}|\\=_^~*#@/]+|-{2,}\S*")


def clean(message: str) -> str | None:
    """A message without place-holders and marks; None where too little of a sentence is left."""
    text = " ".join(NOISE.sub(" ", message.split("\n\n")[0]).split())
    letters = sum(character.isalpha() for character in text)
    enough = letters >= SHORTEST_LETTERS and len(text) <= LONGEST_LETTERS
    spaces = text.count(" ")
    return text if enough and letters + spaces >= MIN_LETTER_SHARE * len(text) else None


def unpack_catalogues(packages: Iterable[Path], folder: Path) -> None:
    """Unpacks the catalogues of package files."""
    for package in packages:
        own = folder / package.name.split("_")[0]
        if own.exists():
            continue
        own.mkdir(parents=True)
        listing = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
        unpacking = ["tar", "x", "-C", str(own), "--wildcards", "--no-anchored", "*.mo"]
        subprocess.run(unpacking, stdin=listing.stdout, capture_output=True, check=False)
        listing.wait()


def read_catalogues(folder: Path, locale: str) -> tuple[list[str], list[str]]:
    """Messages and names of one locale, in sorted order; English ones are the catalogues' own keys."""
    messages: set[str] = set()
    names: set[str] = set()
    translated = "de" if locale == "en" else locale
    for path in sorted(folder.glob(f"*/usr/share/locale/{translated}/LC_MESSAGES/*.mo")):
        try:
            with path.open("rb") as file:
                catalogue = vars(gettext.GNUTranslations(file))["_catalog"]  # the only way to list it
        except UnicodeDecodeError:  # a few name no encoding of their header
            continue
        is_names = path.relative_to(folder).parts[0] == NAMES_PACKAGE
        for key, translation in catalogue.items():
            text = key if locale == "en" else translation
            if isinstance(text, str) and text and key:
                (names if is_names else messages).add(text)
    kept = {text for message in messages if (text := clean(message)) is not None}
    return sorted(kept), sorted(name for name in names if len(name) < LONGEST_LETTERS / 3)


def draw_texts(folder: Path, locale: str, count: int, rng: random.Random) -> list[str]:
    """Messages, each once, then lists of names; fewer than ``count`` where a locale has none."""
    messages, names = read_catalogues(folder, locale)
    rng.shuffle(messages)
    texts = messages[: count * 2 // 3]
    while len(texts) < count and len(names) > NAMES_PER_TEXT[1]:
        texts.append(", ".join(rng.sample(names, rng.randint(*NAMES_PER_TEXT))) + ".")
    return texts
