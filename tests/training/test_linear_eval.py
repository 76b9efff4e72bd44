"""Linear evaluation: features kept on disk, linear layers, layers compared and mixed, models that tag."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from m2d_training import linear_eval
from m2d_training.cli.main import main
from m2d_training.evaluation import clip_encoder, linear_fit
from m2d_training.evaluation.clip_encoder import ClipEncoder, mean_samples, pool
from m2d_training.evaluation.labelled import read_labelled
from m2d_training.evaluation.linear_fit import Examples, FitSettings, Standardiser, fit_linear
from m2d_training.evaluation.linear_folds import fit_folds
from m2d_training.linear.features import stored_features
from m2d_training.linear.report import save_linear_model
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import m2d_hub
from m2d_hub.errors import ConfigError

RATE = 16_000
FAST = {"seeds": (1, 2), "max_epochs": 30, "learning_rate": 1e-2, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Tones and noises of 0.3 to 0.5 s; ``list.csv`` has them in splits, ``folds.csv`` in folds."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    splits = ["train"] * 12 + ["valid"] * 4 + ["test"] * 8
    rows = []
    for index, split in enumerate(splits):
        seconds = np.arange(int(RATE * rng.uniform(0.3, 0.5))) / RATE
        tone = np.sin(2 * np.pi * rng.uniform(300, 600) * seconds)
        noise = rng.standard_normal(len(seconds))
        label = ("tone", "noise")[index % 2]
        soundfile.write(folder / f"{index}.wav", 0.2 * (tone if label == "tone" else noise), RATE)
        rows.append([f"{index}.wav", label, split, index % 3])
    write_list(folder / "list.csv", [row[:3] for row in rows])
    write_list(folder / "folds.csv", [[file, label, fold] for file, label, _, fold in rows])
    return folder


def write_list(path, rows):
    with path.open("w", newline="") as lines:
        csv.writer(lines).writerows([["file", "label", "split"], *rows])
    return path


def evaluate(model, data, out, **settings):
    return linear_eval(model=model, data=data, out=out, **(FAST | settings))


def run(model, data, out, *options):
    arguments = ["linear-eval", "--model", str(model), "--data", str(data), "--out", str(out), "--json"]
    return CliRunner().invoke(main, [*arguments, *options])


def copied(sounds, tmp_path):
    """Copy the clips to a folder."""
    for path in sounds.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def blobs(num_clips, num_classes=4, width=24, seed=0, spread=1.6):
    """Features of overlapping classes (N, 1, K), and their targets."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(99))
    classes = torch.randint(num_classes, (num_clips,), generator=generator)
    features = centres[classes] + spread * torch.randn(num_clips, width, generator=generator)
    return Examples(features[:, None], torch.nn.functional.one_hot(classes, num_classes).float())


def test_the_command_writes_a_report_and_a_model_that_tags(sounds, model, tmp_path):
    out = tmp_path / "run"
    options = ["--seeds", "2", "--lr", "1e-2", "--epochs", "30"]
    result = run(model, sounds / "list.csv", out, *options)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (
        answer["metric"] == "accuracy" and answer["value"] == 1.0
    )  # tones and noises are easily distinguished
    # Clopper and Pearson (1934): of 8 clips that are all right, low ** 8 = 0.025.
    assert (answer["low"], answer["high"]) == pytest.approx((0.025 ** (1 / 8), 1.0))
    report = json.loads((out / "report.json").read_text())
    assert list(report["per_seed"]) == ["42", "43"]
    assert report["settings"]["duration"] == "mean" and report["timing"]["clips_encoded"] == 24
    assert {"confusion.png", "learning_curve.png", "worst.csv", "config.json", "features"} <= set(
        os.listdir(out)
    )
    model = m2d_hub.load_model(answer["model"], device="cpu")
    (tags,) = model.classify(sounds / "22.wav", top_k=1)
    assert model.labels == ["noise", "tone"] and tags[0].label == "tone"


def test_saved_head_gives_the_mean_logits_of_all_rounds_and_seeds(sounds, tiny, tmp_path):
    labelled = read_labelled(sounds / "folds.csv")
    features = ClipEncoder(tiny).encode([waveform_of(sounds, index) for index in range(24)])
    outcome = fit_folds("last", features, labelled, (1, 2), FitSettings(learning_rate=1e-2, max_epochs=5))
    fits = [(own.standardiser, own.fit) for own in outcome.folds]
    save_linear_model(tmp_path / "model", tiny, outcome)
    model = m2d_hub.load_model(tmp_path / "model", device="cpu")
    expected = torch.stack([fit.logits(standardise(features)).mean(dim=0) for standardise, fit in fits]).mean(
        dim=0
    )
    with torch.no_grad():
        logits = model.classify_waveform(waveform_of(sounds, 5)[None])
    torch.testing.assert_close(logits[0], expected[5], atol=1e-4, rtol=1e-4)


def waveform_of(folder, index):
    return torch.from_numpy(soundfile.read(folder / f"{index}.wav", dtype="float32")[0])


@pytest.mark.parametrize("learning_rate", ["auto", 3e-3])
def test_linear_layer_is_as_good_as_logistic_regression(learning_rate):
    train, valid, test = (blobs(count, seed=seed) for seed, count in enumerate((300, 100, 1000)))
    standardise = Standardiser.of(train.features)
    inputs = [Examples(standardise(part.features), part.targets) for part in (train, valid, test)]
    fit = fit_linear(inputs[0], inputs[1], (1,), FitSettings(learning_rate=learning_rate, max_epochs=60))
    ours = float((fit.logits(inputs[2].features)[0].argmax(1) == test.targets.argmax(1)).float().mean())
    regression = LogisticRegression().fit(inputs[0].features[:, 0], train.targets.argmax(1))
    theirs = regression.score(inputs[2].features[:, 0], test.targets.argmax(1))
    assert 0.6 < theirs < 0.95
    assert ours == pytest.approx(theirs, abs=0.02)


def test_the_rate_is_raised_if_the_papers_does_not_converge():
    fit = fit_linear(blobs(100), blobs(50, seed=1), (1, 2), FitSettings(learning_rate="auto", max_epochs=20))
    assert fit.learning_rate > 3e-5 and (fit.score > 0.7).all()


def test_the_rate_is_kept_if_it_converges(monkeypatch):
    monkeypatch.setattr(linear_fit, "RATES", (1e-1, 1e-2))
    fit = fit_linear(blobs(100), blobs(50, seed=1), (1, 2), FitSettings(learning_rate="auto"))
    assert fit.learning_rate == 1e-1 and fit.has_converged.all()


def test_seeds_are_trained_side_by_side_as_each_alone():
    train, valid = blobs(100), blobs(50, seed=1)
    settings = FitSettings(learning_rate=1e-2, max_epochs=10)
    together = fit_linear(train, valid, (1, 2), settings)
    alone = fit_linear(train, valid, (2,), settings)
    torch.testing.assert_close(together.weight[1], alone.weight[0], atol=1e-5, rtol=1e-4)
    assert together.best_epoch[1] == alone.best_epoch[0]


def test_training_stops_after_twenty_epochs_without_a_score_that_is_at_least_the_best():
    """The evaluation platform of the paper: a lower loss is not progress."""
    fit = fit_linear(blobs(60), blobs(30, seed=1), (1,), FitSettings(learning_rate=0.03))
    score, loss = fit.curves["valid_score"][0], fit.curves["valid_loss"][0]
    last_best = int((score == score.max()).nonzero().max()) + 1
    assert int(fit.best_epoch) == last_best and len(score) == last_best + 20 and bool(fit.has_converged)
    assert loss.argmin() > last_best  # it is still falling


def test_the_rate_auto_stops_twenty_epochs_after_the_last_better_score_or_loss(monkeypatch):
    monkeypatch.setattr(linear_fit, "RATES", (0.03,))
    fit = fit_linear(blobs(60), blobs(30, seed=1), (1,), FitSettings(learning_rate="auto"))
    last_progress = max(int(fit.best_epoch), 1 + int(fit.curves["valid_loss"][0].argmin()))
    assert fit.curves["valid_loss"].shape[1] == last_progress + 20 and bool(fit.has_converged)


def test_first_weights_and_bias_are_those_of_a_linear_layer():
    """``nn.Linear``: uniform within 1/√K; for 2,400 values, the largest is within 1 % of that."""
    train = blobs(60, num_classes=100)
    fit = fit_linear(train, train, (1, 2), FitSettings(learning_rate=1e-12, max_epochs=1))
    bound = 24**-0.5
    for values in (fit.weight, fit.bias):
        assert 0.97 * bound < values.abs().max() <= bound
    assert fit.weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not torch.equal(fit.weight[0], fit.weight[1])  # each seed has its own


@pytest.mark.parametrize(("clips", "steps"), [(443, 3), (200, 1), (60, 1)])
def test_batches_have_200_clips_or_all(clips, steps, monkeypatch):
    count = 0

    def counted(optimizer, closure=None):
        nonlocal count
        count += 1

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    fit_linear(blobs(clips), blobs(20), (1,), FitSettings(max_epochs=1))
    assert count == steps


def test_the_mix_prefers_the_layer_with_the_classes():
    generator = torch.Generator().manual_seed(0)

    def beside_noise(part):
        noise = torch.randn(len(part.targets), 2, part.features.shape[2], generator=generator)
        return Examples(torch.cat([noise[:, :1], part.features / 2, noise[:, 1:]], dim=1), part.targets)

    train, valid = beside_noise(blobs(400)), beside_noise(blobs(200, seed=1))
    fit = fit_linear(train, valid, (1, 2), FitSettings(learning_rate=1e-2))
    assert fit.mix.shape == (2, 3) and fit.mix.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert (fit.mix[:, 1] > 0.6).all()


def test_every_layer_is_compared_and_the_best_on_valid_reported(sounds, model, tmp_path):
    data, cache = sounds / "list.csv", tmp_path / "cache"
    result = evaluate(model, data, tmp_path / "all", layer="all", cache=cache)
    layers = result.report["layers"]
    assert [row["layer"] for row in layers] == [1, 2]
    best = max(layers, key=lambda row: row["valid_score"])
    assert best["valid_score"] == 1
    assert result.report["value"] == layers[int(result.report["layer"]) - 1]["value"]
    assert (tmp_path / "all" / "layers.png").exists()
    first = evaluate(model, data, tmp_path / "first", layer=1, cache=cache)
    assert first.report["timing"]["clips_encoded"] == 0  # the features of all layers are stored together
    assert first.report["value"] == layers[0]["value"] and first.model is None
    mixed = evaluate(model, data, tmp_path / "mix", layer="mix", cache=cache)
    assert sum(mixed.report["mix_weights"]) == pytest.approx(1) and (tmp_path / "mix" / "mix.png").exists()


def test_last_layer_by_number_is_the_last_layer(sounds, tiny):
    clips = [waveform_of(sounds, index) for index in range(3)]
    every = ClipEncoder(tiny, all_layers=True).encode(clips)
    torch.testing.assert_close(every[:, -1], ClipEncoder(tiny).encode(clips)[:, 0], atol=1e-5, rtol=1e-5)


def test_cross_validation_tests_every_clip_once(sounds, model, tmp_path):
    result = evaluate(model, sounds / "folds.csv", tmp_path)
    assert list(result.report["per_round"]) == ["fold 0", "fold 1", "fold 2"]
    assert result.report["test_clips"] == 24
    assert result.interval.value == pytest.approx(np.mean(list(result.report["per_round"].values())))


def test_a_multi_label_list_is_scored_by_mean_average_precision(sounds, model, tmp_path):
    with (sounds / "list.csv").open() as lines:
        rows = [[row["file"], row["label"], row["split"]] for row in csv.DictReader(lines)]
    rows = [
        [str(sounds / file), label + ";short" * (index % 4 < 2), split]
        for index, (file, label, split) in enumerate(rows)
    ]
    path = write_list(tmp_path / "multi.csv", rows)
    result = evaluate(model, path, tmp_path / "run")
    assert result.metric == "mAP" and result.report["per_class"]["tone"]["average_precision"] == 1.0
    assert m2d_hub.load_model(result.model, device="cpu").config.head.activation == "sigmoid"


def test_unreadable_clips_are_skipped_and_listed_with_their_rows(sounds, model, tmp_path):
    folder = copied(sounds, tmp_path)
    (folder / "3.wav").write_bytes(b"no audio")
    soundfile.write(folder / "20.wav", np.full(100, np.nan), RATE, subtype="FLOAT")
    out = folder / "run"
    result = run(model, folder / "list.csv", out, "--seeds", "1", "--epochs", "2")
    assert result.exit_code == 3, result.output
    assert json.loads(result.stdout)["left_out"] == 2
    with (out / "errors.csv").open() as lines:
        errors = list(csv.DictReader(lines))
    assert [error["row"] for error in errors] == ["5", "22"]
    assert "cannot be read as audio" in errors[0]["error"] and "non-finite" in errors[1]["error"]
    assert json.loads((out / "report.json").read_text())["test_clips"] == 7


def test_a_training_that_has_not_converged_causes_a_warning(sounds, model, tmp_path, caplog):
    slow = {**FAST, "learning_rate": 3e-5, "max_epochs": 3}
    result = evaluate(model, sounds / "list.csv", tmp_path, **slow)
    assert "after 3 epochs, so the figure may be too low" in caplog.text
    assert result.report["trainings"][0]["has_converged"] == [False, False]


def test_a_second_evaluation_replaces_the_files_of_the_first(sounds, model, tmp_path):
    first = evaluate(model, sounds / "list.csv", tmp_path / "run")
    with pytest.raises(ConfigError, match="model is the model to evaluate and would be replaced"):
        evaluate(first.model, sounds / "list.csv", tmp_path / "run")
    evaluate(model, sounds / "list.csv", tmp_path / "run", pooling="max")
    assert not first.model.exists() and (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize("name", ["report.json", "model/x"])
def test_files_that_are_not_of_an_evaluation_are_never_overwritten(sounds, model, tmp_path, name):
    other = tmp_path / "out" / name
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    result = run(model, sounds / "list.csv", tmp_path / "out")
    assert result.exit_code == 1 and "is not the result of linear evaluation" in result.output
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [other]
    assert other.read_text() == "{}"


def test_an_earlier_answer_stays_until_the_new_one_is_complete(sounds, model, tmp_path, monkeypatch):
    evaluate(model, sounds / "list.csv", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("m2d_training.linear.report._mean_layer", lambda fits: 1 / 0)  # the last step
    with pytest.raises(ZeroDivisionError):
        evaluate(model, sounds / "list.csv", tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture
def few(sounds, tmp_path):
    """Paths of eight copied clips."""
    copied(sounds, tmp_path)
    return [str(tmp_path / f"{index}.wav") for index in range(8)]


def computed(encoder, files, cache):
    return stored_features(encoder, files, cache, progress=False).computed


def test_features_are_computed_again_only_if_a_file_or_a_setting_changes(few, tiny, tmp_path):
    cache = tmp_path / "cache"
    assert computed(ClipEncoder(tiny), few, cache) == 8
    assert computed(ClipEncoder(tiny), few[::-1], cache) == 0
    assert computed(ClipEncoder(tiny, "max"), few, cache) == 8
    assert computed(ClipEncoder(tiny, num_samples=4000), few, cache) == 8
    soundfile.write(few[2], np.zeros(5000), RATE)
    assert computed(ClipEncoder(tiny), few, cache) == 1
    with torch.no_grad():
        tiny.encoder.norm.bias += 1
    assert computed(ClipEncoder(tiny), few, cache) == 8


def test_stored_features_are_the_models_in_the_order_of_the_files(few, tiny, tmp_path):
    stored = stored_features(ClipEncoder(tiny), [*few, few[0]], tmp_path / "cache", progress=False)
    torch.testing.assert_close(stored.layer(0), tiny.encode_clip([*few, few[0]]), atol=1e-5, rtol=1e-5)


def test_an_interrupted_encoding_resumes_after_the_last_part(few, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_encoder, "BATCH_CLIPS", 2)
    encode, calls = ClipEncoder.encode, []

    def stops_in_the_third_part(self, waveforms):
        calls.append(len(waveforms))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, waveforms)

    monkeypatch.setattr(ClipEncoder, "encode", stops_in_the_third_part)
    with pytest.raises(KeyboardInterrupt):
        computed(ClipEncoder(tiny), few, tmp_path / "cache")
    assert computed(ClipEncoder(tiny), few, tmp_path / "cache") == 4


def test_clips_are_padded_with_zeros_or_cropped_at_their_own_position(few, tiny):
    length = len(tone_of(few[0]))
    padded = ClipEncoder(tiny, num_samples=length + 100).read(few[0])
    torch.testing.assert_close(padded[:length], tone_of(few[0]))
    assert len(padded) == length + 100 and not padded[length:].any()
    starts = []
    for file in few:
        whole, cropped = tone_of(file), ClipEncoder(tiny, num_samples=2000).read(file)
        starts += [s for s in range(len(whole) - 1999) if torch.equal(whole[s : s + 2000], cropped)]
    assert len(starts) == 8 and len(set(starts)) > 4
    again = ClipEncoder(tiny, num_samples=2000).read(few[0])
    assert torch.equal(again, ClipEncoder(tiny, num_samples=2000).read(few[0]))


def tone_of(file):
    return torch.from_numpy(soundfile.read(file, dtype="float32")[0])


def test_mean_duration_is_that_of_the_training_clips(few, sounds, model, tmp_path):
    expected = round(sum(len(waveform_of(sounds, index)) for index in range(12)) / 12)
    train = [str(sounds / f"{index}.wav") for index in range(12)]
    assert mean_samples(train, RATE, 2) == expected
    assert mean_samples(train, RATE // 2, 2) == pytest.approx(expected / 2, abs=1)
    assert evaluate(model, sounds / "list.csv", tmp_path / "run").report["clip_seconds"] == pytest.approx(
        expected / RATE
    )


def test_pooling_is_over_the_frames_of_the_clip_alone():
    features = torch.tensor([[[1.0, 5.0], [3.0, 1.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True, False]])
    assert pool(features, mask, "mean").tolist() == [[2.0, 3.0]]
    assert pool(features, mask, "mean+max").tolist() == [[2.0, 3.0, 3.0, 5.0]]
    assert pool(features, mask, "mean+std").tolist() == [[2.0, 3.0, 1.0, 2.0]]


def test_features_of_other_poolings_are_stored_separately_and_save_no_model(sounds, model, tmp_path):
    assert evaluate(model, sounds / "list.csv", tmp_path, pooling="mean+max").model is None
    (part,) = (tmp_path / "features").rglob("*.safetensors")
    assert load_file(part)["features"].shape == (24, 1, 2 * 5 * 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layer": "first"},
            "layer must be 'last', 'all', 'mix', or the number of a block, from 1",
        ),
        ({"layer": 0}, "got 0"),
        ({"layer": 3}, "layer 3 does not exist: the model has blocks 1 to 2"),
        ({"pooling": "median"}, r"pooling must be 'mean', 'max', 'mean\+max' or 'mean\+std', got 'median'"),
        ({"duration": -1.0}, "duration must be 'mean', 'none', or a positive number of seconds, got -1.0"),
        ({"seeds": ()}, r"seeds must be a number of trainings, or one or more whole numbers, got \(\)"),
        ({"epochs": 1}, "Unknown field 'epochs'"),
    ],
)
def test_invalid_settings_are_refused(sounds, model, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(model, sounds / "list.csv", tmp_path, **options)


def test_a_learning_rate_that_is_not_a_number_is_wrong_usage(tmp_path):
    result = run("m", "d", tmp_path / "run", "--lr", "fast")
    assert result.exit_code == 2 and "'fast' is not 'auto' or a number" in result.output
