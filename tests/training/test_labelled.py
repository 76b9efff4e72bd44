"""Labelled lists: splits, folds, classes and refusals; metrics with their intervals; reports."""

from __future__ import annotations

import csv
import json
import logging
import math

import numpy as np
import pytest
import torch
from m2d_training.evaluation.labelled import LabelledClip, LabelledList, Split, read_labelled
from m2d_training.evaluation.metrics import (
    accuracy,
    average_precisions,
    bootstrap_interval,
    icbhi_score,
    mean_average_precision,
    sensitivity_specificity,
)
from m2d_training.evaluation.report import Evaluation, ScoredFold, write_report
from sklearn.metrics import accuracy_score, average_precision_score

from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.published_names import AUDIOSET_LABELS

SPLITS = [
    "a.wav,bee,train",
    "b.wav,ant,train",
    "c.wav,ant,valid",
    "d.wav,bee,test",
]


@pytest.fixture
def save(tmp_path):
    """Write ``list.csv`` with rows and header, and the files that they name: ``save(rows)`` -> path."""

    def write(rows, header="file,label,split", encoding="utf-8", make_files=True):
        for row in rows if make_files else []:
            (tmp_path / row.split(",")[0]).touch()
        path = tmp_path / "list.csv"
        path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
        return path

    return write


def one_hot(classes, num_classes):
    return torch.nn.functional.one_hot(torch.as_tensor(classes), num_classes).float()


def test_splits_become_one_fold_with_targets(save, tmp_path):
    labelled = read_labelled(save(SPLITS))
    (only,) = labelled.folds()
    assert labelled.labels == ("ant", "bee") and not labelled.is_multi_label
    assert only.name == "test"
    assert only.train.files == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    assert only.train.targets.tolist() == [[0, 1], [1, 0]]
    assert only.train.classes.tolist() == [1, 0]
    assert (only.valid.rows, only.test.rows) == ([4], [5])


FOLDS = [f"{fold}{index}.wav,{'ab'[index % 2]},{fold}" for fold in (1, 2, 3, 4, 5) for index in range(8)]


def test_a_share_of_the_training_clips_can_choose_the_epoch(save):
    """As in the reference evaluation, each fold trains on nine tenths of the others."""
    rounds = read_labelled(save(FOLDS), split=Split(valid_share=0.1)).folds()
    assert [one.name for one in rounds] == [f"fold {fold}" for fold in range(1, 6)]
    for fold, one in enumerate(rounds):
        assert (len(one.train), len(one.valid), len(one.test)) == (29, 3, 8)
        assert sorted(one.train.rows + one.valid.rows + one.test.rows) == list(range(2, 42))
        assert one.test.rows == list(range(2 + 8 * fold, 10 + 8 * fold))
    again = read_labelled(save(FOLDS), split=Split(valid_share=0.1)).folds()
    assert [one.valid.rows for one in again] == [one.valid.rows for one in rounds]


def test_no_label_loses_its_last_training_clip(save):
    rows = [f"{label}.wav,{label},train" for label in "abcdefgh"]
    rows += ["i.wav,a,train", "j.wav,b,test", "k.wav,c,test"]
    (only,) = read_labelled(save(rows), split=Split(valid_share=0.5)).folds()
    assert len(only.valid) == 1 and only.train.targets.any(dim=0).all()
    with pytest.raises(ConfigError, match="every label has one training clip"):
        read_labelled(save([*rows[:8], *rows[9:]]), split=Split(valid_share=0.5)).folds()


@pytest.mark.parametrize("select", ["last", "test"])
def test_all_but_the_test_clips_can_train(save, select):
    split = Split(select)
    (only,) = read_labelled(save(SPLITS), split=split).folds()
    assert only.train.rows == [2, 3, 4] and only.valid.rows == only.test.rows == [5]
    (only,) = read_labelled(save([SPLITS[0], SPLITS[1], SPLITS[3]]), split=split).folds()
    assert only.train.rows == [2, 3]
    rounds = read_labelled(save(FOLDS), split=split).folds()
    assert [len(one.train) for one in rounds] == [32] * 5
    assert len(read_labelled(save(FOLDS[:16]), split=split).folds()) == 2


@pytest.mark.parametrize(
    ("split", "rows", "message"),
    [
        (Split(), [*SPLITS[:2], SPLITS[3]], "no clip in the split valid.*Or set valid_share=0.1"),
        (Split(valid_share=0.1), SPLITS, "has a valid split, so valid_share is not used; remove it, got 0.1"),
        (Split("last"), SPLITS[:3], "no clip in the split test; needed: train, test"),
        (Split("last"), FOLDS[:8], "has fold 1; 2 are needed, for train, test"),
    ],
)
def test_splits_that_do_not_match_their_use_are_refused(save, split, rows, message):
    with pytest.raises(ConfigError, match=message):
        read_labelled(save(rows), split=split)


def test_classes_are_in_natural_order(save):
    rows = [f"{n}{split}.wav,class {n},{split}" for n in (10, 2, 1) for split in ("train", "valid", "test")]
    assert read_labelled(save(rows)).labels == ("class 1", "class 2", "class 10")


def test_each_fold_tests_once_and_the_next_one_is_valid(save):
    rows = [f"{fold}{label}.wav,{label},{fold}" for fold in (1, 2, 10) for label in "ab"]
    rounds = read_labelled(save(rows)).folds()
    assert [own.name for own in rounds] == ["fold 1", "fold 2", "fold 10"]
    assert [(own.train.rows, own.valid.rows, own.test.rows) for own in rounds] == [
        ([6, 7], [4, 5], [2, 3]),
        ([2, 3], [6, 7], [4, 5]),
        ([4, 5], [2, 3], [6, 7]),
    ]


def test_labels_joined_by_semicolons_make_a_multi_label_list(save):
    labelled = read_labelled(save(["a.wav,x; y;x,train", "b.wav,y,valid", "c.wav,x,test"]))
    assert labelled.is_multi_label
    assert labelled.folds()[0].train.targets.tolist() == [[1, 1]]


def test_labels_that_differ_only_in_their_unicode_form_are_one_class(save):
    composed, decomposed = "V\u00f6gel", "Vo\u0308gel"
    rows = [f"a.wav,{decomposed},train", "b.wav,bee,train", f"c.wav,{composed},valid", "d.wav,bee,test"]
    assert read_labelled(save(rows)).labels == (composed, "bee")


def test_multi_label_can_be_required_or_refused(save):
    assert read_labelled(save(SPLITS), multi_label=True).is_multi_label
    path = save(["a.wav,x;y,train", "b.wav,y,valid", "c.wav,x,test"])
    with pytest.raises(ConfigError, match=r"1 row has more than one label \(row 2\), but only one"):
        read_labelled(path, multi_label=False)


def test_audioset_classes_are_in_the_order_of_the_published_heads(save):
    rows = [f"{split}.wav,Speech;Dog,{split}" for split in ("train", "valid", "test")]
    labelled = read_labelled(save(rows))
    assert labelled.labels == tuple(AUDIOSET_LABELS)
    found = labelled.folds()[0].test.targets[0].nonzero()[:, 0].tolist()
    assert {AUDIOSET_LABELS[index] for index in found} == {"Speech", "Dog"}


def test_byte_order_marks_blank_rows_and_other_columns_are_ignored(save):
    rows = [*(f"{row},x" for row in SPLITS[:2]), "", ",,,", *(f"{row},x" for row in SPLITS[2:])]
    path = save([row for row in rows if row.strip(",")], header="file,label,split,note")
    path.write_text("\n".join(["file,label,split,note", *rows]), encoding="utf-8-sig")
    labelled = read_labelled(path)
    assert [clip.row for clip in labelled.clips] == [2, 3, 6, 7]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "lists no clips"),
        (["a.wav,x,train", "b.wav,,valid", "c.wav,,test"], r"2 rows have no label \(rows 3, 4\)"),
        ([*SPLITS, ",ant,train"], r"1 row has no file \(row 6\)"),
        ([*SPLITS, "e.wav,ant"], r"1 row has another number of cells than the header \(row 6\)"),
        ([*SPLITS, "e.wav,ant,dev"], r"1 row has a split that cannot be used \(row 6: 'dev'\); give train"),
        ([*SPLITS, "e.wav,ant,1"], r"1 row has a split that cannot be used \(row 6: '1'\)"),
        (SPLITS[:3], "has no clip in the split test; needed: train, valid, test"),
        (SPLITS[:2], "has no clip in the split valid or test"),
        (["a.wav,x,1", "b.wav,y,2"], "has folds 1, 2; 3 are needed, for train, valid, test"),
        (["a.wav,x,train", "b.wav,x,valid", "c.wav,x,test"], "has only one class, 'x'"),
        (
            [*SPLITS, "e.wav,cow,test", "f.wav,dog,valid"],
            r"of 'test' lack labels cow, dog, which its valid or test clips have \(rows 6, 7\)",
        ),
    ],
)
def test_lists_that_cannot_be_used_are_refused_with_their_rows(save, rows, message):
    with pytest.raises(ConfigError, match=message):
        read_labelled(save(rows))


def test_a_label_that_only_one_fold_has_is_refused(save):
    rows = [f"{fold}{label}.wav,{label},{fold}" for fold in (1, 2, 3) for label in "ab"]
    with pytest.raises(ConfigError, match=r"of 'fold 1' lack label c, .*\(row 8\)"):
        read_labelled(save([*rows, "e.wav,c,1"]))


def test_missing_files_are_reported_together(save):
    rows = [f"{number}.wav,ant,train" for number in range(7)]
    message = r"7 rows have a file that does not exist \(rows 2: .*0\.wav, .*, 6: .*4\.wav and 2 more\)"
    with pytest.raises(ConfigError, match=message):
        read_labelled(save(rows, make_files=False))


def test_wrong_columns_missing_lists_and_other_encodings_are_refused(save, tmp_path):
    with pytest.raises(ConfigError, match="has no column 'file'; its columns: path, label, split"):
        read_labelled(save(SPLITS, header="path,label,split"))
    with pytest.raises(ConfigError, match="its columns: none"):
        (tmp_path / "empty.csv").touch()
        read_labelled(tmp_path / "empty.csv")
    with pytest.raises(ConfigError, match="does not exist; give a CSV with the columns file, label, split"):
        read_labelled(tmp_path / "none.csv")
    with pytest.raises(
        ConfigError, match=r"cannot be read as a CSV with the columns file, label, split .* UTF-8"
    ):
        read_labelled(save(["a.wav,Käfer,train"], encoding="latin-1"))


def test_a_file_in_several_splits_causes_a_warning(save, caplog):
    with caplog.at_level(logging.WARNING):
        read_labelled(save([*SPLITS, "a.wav,bee,test"]))
    assert "1 clips are of files in several splits" in caplog.text


def test_rows_can_be_removed_if_the_remaining_list_can_be_used(save):
    labelled = read_labelled(save([*SPLITS, "e.wav,bee,train"]))
    assert [clip.row for clip in labelled.without({2}).clips] == [3, 4, 5, 6]
    with pytest.raises(ConfigError, match="lack label bee"):
        labelled.without({2, 6})
    with pytest.raises(ConfigError, match="no clip in the split test"):
        labelled.without({5})


def random_scores(num_clips, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(num_clips, num_classes, generator=generator) < 0.3).float()
    noise = torch.randn(num_clips, num_classes, generator=generator)
    return torch.round((targets + noise) * 4) / 4, targets, generator  # rounded: equal scores are common


def test_metrics_are_scikit_learns():
    scores, targets, _ = random_scores(300, 5)
    expected = average_precision_score(targets.numpy(), scores.numpy(), average="macro")
    assert mean_average_precision(scores, targets) == pytest.approx(expected)
    classes = one_hot(targets.argmax(dim=1), 5)
    expected = accuracy_score(classes.argmax(dim=1), scores.argmax(dim=1))
    assert accuracy(scores, classes) == pytest.approx(expected)


def test_resampled_metrics_are_scikit_learns_with_weights():
    scores, targets, generator = random_scores(200, 4)
    counts = torch.randint(0, 4, (3, 200), generator=generator)
    expected = [
        average_precision_score(targets.numpy(), scores.numpy(), sample_weight=weights.numpy())
        for weights in counts
    ]
    assert mean_average_precision.resampled(scores, targets, counts).tolist() == pytest.approx(expected)
    classes = one_hot(targets.argmax(dim=1), 4)
    expected = [
        accuracy_score(classes.argmax(dim=1), scores.argmax(dim=1), sample_weight=weights)
        for weights in counts
    ]
    assert accuracy.resampled(scores, classes, counts).tolist() == pytest.approx(expected)


def test_a_class_without_clips_does_not_count_in_the_mean():
    scores, targets, _ = random_scores(100, 4)
    targets[:, 2] = 0
    precisions = average_precisions(scores, targets)
    kept = [0, 1, 3]
    assert precisions[2].isnan()
    assert mean_average_precision(scores, targets) == pytest.approx(
        average_precision_score(targets[:, kept].numpy(), scores[:, kept].numpy())
    )


def test_interval_of_an_accuracy_is_the_binomial_one():
    hits = np.arange(1000) < 800
    scores = one_hot(np.where(hits, 0, 1), 2)
    interval = bootstrap_interval(scores, one_hot([0] * 1000, 2), accuracy)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)  # normal approximation
    assert interval.value == pytest.approx(0.8)
    assert (interval.low, interval.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.004)
    assert str(interval).startswith("80.0 % (95 %: 77.")


@pytest.mark.parametrize("seeds", [1, 7])
@pytest.mark.parametrize("metric", [accuracy, icbhi_score(0), mean_average_precision])
def test_an_interval_has_a_width_even_if_every_clip_is_correct(seeds, metric):
    targets = one_hot([0, 1] * 20, 2)
    interval = bootstrap_interval([targets] * seeds, targets, metric)
    # Clopper and Pearson (1934): of 40 clips that are all correct, low ** 40 = 0.025.
    assert (interval.low, interval.high) == pytest.approx((0.025 ** (1 / 40), 1.0))


def test_seeds_that_differ_widen_the_interval():
    targets = one_hot([0] * 400, 2)
    alike = [one_hot(np.where(np.arange(400) < 300, 0, 1), 2)] * 6
    unlike = [one_hot(np.where(np.arange(400) < right, 0, 1), 2) for right in (200, 240, 280, 320, 360, 400)]
    narrow, wide = (bootstrap_interval(scores, targets, accuracy) for scores in (alike, unlike))
    assert narrow.value == wide.value == pytest.approx(0.75)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_folds_have_equal_weight_whatever_their_size():
    targets = one_hot([0] * 5, 2)
    scores = one_hot([0, 1, 1, 1, 1], 2)
    interval = bootstrap_interval(scores, targets, accuracy, folds=[1, 2, 2, 2, 2])
    assert interval.value == pytest.approx((1.0 + 0.0) / 2)


def test_icbhi_score_counts_only_the_exact_class_as_correct():
    classes = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    predicted = [0, 0, 0, 1, 1, 2, 0, 2, 2, 2]
    rates = sensitivity_specificity(one_hot(predicted, 3), one_hot(classes, 3), normal=0)
    assert rates == pytest.approx((4 / 6, 3 / 4))
    score = pytest.approx((3 / 4 + 4 / 6) / 2)
    interval = bootstrap_interval(one_hot(predicted, 3), one_hot(classes, 3), icbhi_score(0))
    assert interval.value == score and interval.low < interval.value < interval.high


@pytest.fixture
def evaluated():
    """A task of three classes, of which the third has no test clip, and two seeds."""
    clips = [
        LabelledClip(f"/{name}.wav", (label,), "test", row) for row, (name, label) in enumerate(["pa", "qb"])
    ]
    labelled = LabelledList("list.csv", clips, ("a", "b", "c"), is_multi_label=False)
    scores = torch.tensor([[[0.2, 0.7, 0.1], [0.0, 1.0, 0.0]], [[0.4, 0.5, 0.1], [0.0, 1.0, 0.0]]])
    return labelled, [ScoredFold("test", labelled.subset(clips), scores)]


def test_report_has_figures_classes_and_the_worst_clips(evaluated, tmp_path):
    labelled, folds = evaluated
    report = write_report(tmp_path, Evaluation(labelled, accuracy, (1, 2), folds), {"model": "tiny"})
    text = (tmp_path / "report.json").read_text()
    assert report == json.loads(text) and "NaN" not in text
    assert (report["metric"], report["value"], report["model"]) == ("accuracy", 0.5, "tiny")
    assert report["per_seed"] == {"1": 0.5, "2": 0.5}
    assert report["per_class"]["a"] == {"recall": 0.0, "test_clips": 1}
    assert report["per_class"]["c"] == {"recall": None, "test_clips": 0}
    assert report["classes_without_test_clips"] == ["c"]
    assert report["confusion"] == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    with (tmp_path / "worst.csv").open() as lines:
        (worst,) = csv.DictReader(lines)
    assert (worst["file"], worst["true"], worst["predicted"]) == ("/p.wav", "a", "b")
    assert float(worst["probability"]) == pytest.approx(0.6)
    assert float(worst["probability_of_true"]) == pytest.approx(0.3)
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["=cmd()", "@x"])
def test_names_in_the_list_of_worst_clips_are_never_formulas(tmp_path, name):
    clips = [LabelledClip(f"{name}.wav", (name,), "test", 2)]
    labelled = LabelledList("list.csv", clips, (name, "b"), is_multi_label=False)
    folds = [ScoredFold("test", labelled.subset(clips), torch.tensor([[[0.0, 1.0]]]))]
    write_report(tmp_path, Evaluation(labelled, accuracy, (1,), folds), {})
    with (tmp_path / "worst.csv").open() as lines:
        (worst,) = csv.DictReader(lines)
    assert (worst["file"], worst["true"]) == (f"'{name}.wav", f"'{name}")


def test_multi_label_report_draws_average_precision_and_warns_of_empty_classes(evaluated, tmp_path, caplog):
    labelled, folds = evaluated
    labelled = LabelledList(labelled.name, labelled.clips, labelled.labels, is_multi_label=True)
    report = write_report(tmp_path, Evaluation(labelled, mean_average_precision, (1, 2), folds), {})
    assert report["per_class"]["b"] == {"average_precision": 1.0, "test_clips": 1}
    assert "1 of 3 classes have no test clip" in caplog.text
    assert (tmp_path / "average_precision.png").exists() and not (tmp_path / "confusion.png").exists()


def test_a_folder_of_splits_and_classes_is_a_list(tmp_path):
    names = [
        "Train/bark/1.wav",
        "Train/rain/sub/2.flac",
        "val/bark/3.wav",
        "val/rain/4.WAV",
        "test/bark/5.mp3",
    ]
    for name in [*names, "test/notes.txt", "test/bark/notes.txt", "extra/bark/6.wav"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    labelled = read_labelled(tmp_path)
    splits = {"Train": "train", "val": "valid", "test": "test"}
    expected = {(str(tmp_path / name), (name.split("/")[1],), splits[name.split("/")[0]]) for name in names}
    assert {(clip.file, clip.labels, clip.split) for clip in labelled.clips} == expected
    (only,) = labelled.folds()
    assert (len(only.train), len(only.valid), len(only.test)) == (2, 2, 1)


def test_a_folder_without_training_classes_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.wav").touch()
    with pytest.raises(
        ConfigError, match=r"no training clips in folders of their classes; it must hold train/CLASS"
    ):
        read_labelled(tmp_path)
