"""Plain technical English: words that the documentation and the code avoid."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = ["told", "tells", "anew", "goes on", "whoever", "mend", "at hand", "way out", "to be had"]
WORDS += [r"(?<!there )is no (?!longer|more|better|less)\w+"]
AVOIDED = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
PLACES = ["*.md", "docs/**/*.md", "m2d_hub/**/*.py", "training/**/*.py", "examples/**/*"]
PLACES += ["recipes/**/*.py", "recipes/**/*.md", "benchmarks/*.py"]


@pytest.mark.parametrize("place", PLACES)
def test_avoided_words_do_not_occur(place):
    files = [path for path in ROOT.glob(place) if path.suffix in (".md", ".py", ".ipynb")]
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        for match in AVOIDED.finditer(line)
    ]
    assert found == []
