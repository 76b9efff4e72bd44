"""Free texts to speak: translations of program messages and of names of countries and languages.

They are gettext catalogues in packages of Debian's main section (GPL and LGPL), in a hundred languages.
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
MIN_CHARACTERS, MAX_CHARACTERS = 12, 110  # of a message
MIN_LETTER_SHARE = 0.75
NAMES_PER_TEXT = (3, 7)
NOISE = re.compile(r"%[-#0 +']*[\d*.$]*[a-zA-Z%]|['\"`‘’“”«»„<>\[\]{}|\\=_^~*#@/]+|-{2,}\S*")


def clean(message: str) -> str | None:
    """Return a message without placeholders and marks, or None if too little text is left."""
    text = " ".join(NOISE.sub(" ", message.split("\n\n")[0]).split())
    letters = sum(character.isalpha() for character in text)
    enough = letters >= MIN_CHARACTERS and len(text) <= MAX_CHARACTERS
    spaces = text.count(" ")
    return text if enough and letters + spaces >= MIN_LETTER_SHARE * len(text) else None


def unpack_catalogues(packages: Iterable[Path], folder: Path) -> None:
    """Unpack the catalogues of package files."""
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
    """Return messages and names of one locale, sorted; the English ones are the keys of the catalogues."""
    messages: set[str] = set()
    names: set[str] = set()
    translated = "de" if locale == "en" else locale
    for path in sorted(folder.glob(f"*/usr/share/locale/{translated}/LC_MESSAGES/*.mo")):
        try:
            with path.open("rb") as file:
                catalogue = vars(gettext.GNUTranslations(file))["_catalog"]  # no public API lists it
        except UnicodeDecodeError:  # some headers state no encoding
            continue
        is_names = path.relative_to(folder).parts[0] == NAMES_PACKAGE
        for key, translation in catalogue.items():
            text = key if locale == "en" else translation
            if isinstance(text, str) and text and key:
                (names if is_names else messages).add(text)
    kept = {text for message in messages if (text := clean(message)) is not None}
    return sorted(kept), sorted(name for name in names if len(name) < MAX_CHARACTERS / 3)


def draw_texts(folder: Path, locale: str, count: int, rng: random.Random) -> list[str]:
    """Draw each message once, then lists of names; fewer than ``count`` if a locale has no names."""
    messages, names = read_catalogues(folder, locale)
    rng.shuffle(messages)
    texts = messages[: count * 2 // 3]
    while len(texts) < count and len(names) > NAMES_PER_TEXT[1]:
        texts.append(", ".join(rng.sample(names, rng.randint(*NAMES_PER_TEXT))) + ".")
    return texts
