"""The tables of recipes/m2d-mini: what users are told of the tags' training data holds."""

import csv
import sys
from pathlib import Path

import pytest

from m2d_hub.pretrained.audioset_labels import AUDIOSET_LABELS

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "m2d-mini"


@pytest.fixture
def recipe(monkeypatch):
    """Scripts of the recipe import each other by their names, as when one of them is run."""
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])


def read(name):
    with (RECIPE / name).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_tags_are_thirty_to_sixty_classes_of_audioset_and_hold_their_parents(recipe):
    import tags

    rules = [rule.labels for rule in tags.read_rules(RECIPE / "tags.csv") if rule.labels]
    labels = {label for own in rules for label in tags.with_parents(own)} - {tags.NONE}
    assert labels <= set(AUDIOSET_LABELS)
    assert 30 <= len(labels) <= 60
    assert tags.with_parents(("Helicopter",)) == ("Helicopter", "Aircraft", "Vehicle")


def test_packages_of_tags_are_free_and_never_those_that_models_are_judged_on(recipe):
    import package_table

    packages = read("tag_packages.csv")
    assert len({row["package"] for row in packages}) == len(packages)
    assert {row["split"] for row in packages} == {"train", "valid", "test"}
    assert all(row["licences"] for row in packages)
    assert not {row["source"] for row in packages} & set(package_table.HELD_OUT)


def test_a_clip_is_what_the_first_row_says_and_long_ones_are_listed_in_parts(recipe, tmp_path):
    import tags

    table = tmp_path / "tags.csv"
    table.write_text("package,path,labels\ngame,/dog_house,\ngame,/dog,Dog\n*,.,-\n", encoding="utf-8")
    clips = [
        tags.Clip("a.flac", "game", "/DOG_1", 2.0),
        tags.Clip("b.flac", "game", "/dog_house", 2.0),
        tags.Clip("c.flac", "other", "/dog", 60.0),
    ]
    found = tags.labelled(iter(clips), tags.read_rules(table))
    rows = tags.list_rows(found, {"game": "train", "other": "test"})
    assert [(row["file"], row["label"], row["split"]) for row in rows[:2]] == [
        ("a.flac", "Dog;Animal", "train"),
        ("c.flac", tags.NONE, "test"),
    ]
    assert [(row["start_s"], row["end_s"]) for row in rows] == [
        ("", ""),
        ("8.33", "18.33"),
        ("25.00", "35.00"),
        ("41.67", "51.67"),
    ]
