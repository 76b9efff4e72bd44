"""AudioSet's names: complete, and in the order of the published heads."""

from m2d_hub.pretrained.audioset_labels import AUDIOSET_LABELS, AUDIOSET_MIDS


def test_labels_follow_the_sorted_identifiers():
    assert list(AUDIOSET_MIDS) == sorted(AUDIOSET_MIDS)
    assert len(set(AUDIOSET_MIDS)) == len(AUDIOSET_LABELS) == 527


def test_labels_are_paired_with_their_identifiers():
    # From AudioSet's class_labels_indices.csv: its index, identifier, name.
    expected = {
        "/m/09x0r": "Speech",
        "/m/0bt9lr": "Dog",
        "/t/dd00003": "Male singing",
        "/g/122z_qxw": "Firecracker",
    }
    pairs = dict(zip(AUDIOSET_MIDS, AUDIOSET_LABELS, strict=True))
    assert {mid: pairs.get(mid) for mid in expected} == expected


def test_names_are_unique_and_keep_their_commas():
    assert len(set(AUDIOSET_LABELS)) == 527
    assert "Male speech, man speaking" in AUDIOSET_LABELS
