"""Tables and scripts of recipes/m2d-mini."""

import csv
import io
import json
import struct
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from m2d_hub import M2D, load_model
from m2d_hub.errors import CheckpointError
from m2d_hub.pretrained.checkpoint import load_checkpoint, save_checkpoint
from m2d_hub.pretrained.published_names import AUDIOSET_LABELS

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "m2d-mini"


@pytest.fixture
def recipe(monkeypatch):
    """Put the scripts of the recipe on the import path, as when one of them is run."""
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])


def read(name):
    with (RECIPE / name).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_tags_are_classes_of_audioset_with_their_parents(recipe):
    import tags

    rules = [rule.labels for rule in tags.read_rules(RECIPE / "tags.csv") if rule.labels]
    labels = {label for own in rules for label in tags.with_parents(own)} - {tags.NONE}
    assert labels <= set(AUDIOSET_LABELS)
    assert len(labels) >= 60
    assert set(tags.PARENTS) | set(tags.PARENTS.values()) <= labels
    assert tags.with_parents(("Helicopter",)) == ("Helicopter", "Aircraft", "Vehicle")


def test_packages_of_tags_are_free_and_not_in_the_dev_tasks(recipe):
    import package_table

    packages = read("tag_packages.csv")
    assert len({row["package"] for row in packages}) == len(packages)
    assert {row["split"] for row in packages} == {"train", "valid", "test"}
    assert all(row["licences"] for row in packages)
    assert not {row["source"] for row in packages} & set(package_table.HELD_OUT)


def test_first_matching_row_decides_and_long_clips_are_listed_in_parts(recipe, tmp_path):
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


def test_recording_is_recognised_quieter_delayed_and_re_encoded(recipe, tmp_path):
    from alike import SAMPLE_RATE, alike

    data = RECIPE.parents[1] / "tests" / "data"
    files = {}
    for name in ("bang_explosion.ogg", "birds_1.ogg", "water_river.mp3"):
        waveform, rate = soundfile.read(data / name, dtype="float32", always_2d=True)
        resampled = torchaudio.functional.resample(torch.from_numpy(waveform[:, 0]), rate, SAMPLE_RATE)
        files[name] = tmp_path / f"{name}.flac"
        soundfile.write(files[name], resampled.numpy(), SAMPLE_RATE)
    again = tmp_path / "again.ogg"
    later = np.concatenate([np.zeros(1234), 0.3 * soundfile.read(files["bang_explosion.ogg"])[0]])
    soundfile.write(again, later, SAMPLE_RATE)
    assert alike(list(files.values()), [again]) == {0}


@pytest.mark.slow
def test_calibration_recovers_the_parameters_and_shares_them_with_classes_without_clips(recipe):
    from tagger import fit_platt

    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 3, generator=generator)
    truth = (0.5 * logits - 1.0).sigmoid()
    targets = torch.bernoulli(truth, generator=generator)
    targets[:, 2] = 0.0
    factor, offset = fit_platt(logits, targets)
    assert factor.tolist() == pytest.approx([0.5] * 3, abs=0.05)
    assert offset.tolist() == pytest.approx([-1.0] * 3, abs=0.1)


@pytest.mark.slow
def test_head_of_the_tags_separates_classes_like_the_optimal_line(recipe, tmp_path):
    from tagger import NAME, calibrate, fit_head, save

    model = load_model("m2d-mini", device="cpu")
    size = model.config.encoder.frame_dim
    generator = torch.Generator().manual_seed(0)
    targets = torch.bernoulli(torch.full((3000, 2), 0.5), generator=generator)
    features = torch.randn(3000, size, generator=generator)
    features[:, :2] = 3.0 * targets + features[:, :2]  # classes 3 deviations apart, each in one direction
    fit_head(model, features, targets, ["Dog", "Bell"])
    head = model.required_head()
    with torch.no_grad():
        assert ((head(features) > 0) == (targets > 0)).double().mean() > 0.93  # the optimum is 0.933
        assert head.linear.weight.abs().argmax(dim=1).tolist() == [0, 1]
        before = head(features[:10])
    calibrate(model, torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 3.0]))
    save(model, tmp_path / NAME)
    released = load_model(tmp_path / NAME, device="cpu")
    assert list(released.labels) == ["Dog", "Bell"]
    with torch.no_grad():
        after = released.required_head()(features[:10])
    expected = before * torch.tensor([2.0, 0.5]) + torch.tensor([-1.0, 3.0])
    torch.testing.assert_close(after, expected, atol=0.05, rtol=0.01)


def test_neighbours_and_few_shots_learn_only_from_the_train_split(recipe):
    import compare
    from evaluate import Task

    # Two separate classes in every split; the labels of the valid split are swapped.
    splits = np.repeat(["train", "valid", "test"], 40)
    truth = np.tile(["dog", "cat"], 60)
    labels = np.where(splits == "valid", np.where(truth == "dog", "cat", "dog"), truth)
    noise = np.random.default_rng(0).normal(size=(120, 3))
    values = noise + 50 * (truth == "dog")[:, None] * [1.0, -1.0, 1.0]
    task = Task("pets", [""] * 120, labels, splits, np.arange(120))
    assert compare.neighbour_accuracy(values, task) == 1.0
    assert compare.few_shot_accuracy(values, task) == 1.0
    shuffled = values[np.random.default_rng(1).permutation(120)]
    assert compare.few_shot_accuracy(shuffled, task) < 0.8


def test_file_listed_n_times_is_divided_into_n_parts(recipe, tmp_path):
    from teach import LESSONS, SAMPLE_RATE, frames_of, parts_of, read_waveform

    soundfile.write(tmp_path / "long.wav", np.linspace(0, 0.5, 20 * SAMPLE_RATE), SAMPLE_RATE)
    soundfile.write(tmp_path / "short.wav", np.full(100, 0.25), SAMPLE_RATE)
    rows = parts_of(["long.wav", "short.wav", "long.wav"], tmp_path, "taught")
    assert [(row["start_s"], row["end_s"]) for row in rows] == [
        ("0.000", "10.000"),
        ("", ""),
        ("10.000", "20.000"),
    ]
    assert len({row["features"] for row in rows}) == 3
    read_parts = [read_waveform(tmp_path, row, LESSONS["clips"]) for row in rows]
    assert [len(waveform) for waveform in read_parts] == [10 * SAMPLE_RATE, SAMPLE_RATE, 10 * SAMPLE_RATE]
    assert read_parts[2][0] == pytest.approx(0.25, abs=1e-3) and read_parts[0].max() < 0.2501
    assert read_parts[1][:100].tolist() == pytest.approx([0.25] * 100) and not read_parts[1][100:].any()
    speech = LESSONS["speech"]
    assert [len(read_waveform(tmp_path, row, speech)) for row in rows] == [160_000, 100, 160_000]
    values = np.arange(14.0)[:, None]  # one value every 160 ms: eight frames of 20 ms
    assert frames_of(values, speech)[:, 0].tolist() == np.repeat(np.arange(14.0), 8).tolist()


def test_patches_remove_programs_that_they_lack(recipe, tmp_path):
    from instruments import Part, holds, soundfont_path

    folder = tmp_path / "unpacked" / "freepats" / "etc" / "timidity"
    folder.mkdir(parents=True)
    lines = ["dir /usr/share/midi/freepats", "drumset 0", " 35\tkick.pat amp=100", "bank 0", " 7\tclavi.pat"]
    (folder / "freepats.cfg").write_text("\n".join(lines))
    own = soundfont_path("freepats", tmp_path / "unpacked", tmp_path)
    assert [holds(own, Part("freepats", program, [], [])) for program in (7, 3, 35, None)] == [
        *(True, False, False, True)
    ]
    # timidity reads the configuration of the system first: its programs are removed in both banks.
    before, mapped = own.read_text().split(" 35\tkick.pat")
    drums, programs = before.split("bank 0")
    for bank in (drums, programs):
        assert {f"#extension undef {program}" for program in range(128)} <= set(bank.splitlines())
    assert "undef" not in mapped and str(tmp_path / "unpacked") in before


def test_average_is_the_mean_of_weights_and_refuses_other_shapes(recipe, tmp_path):
    from average import average

    model = load_model("m2d-mini", device="cpu")
    tensors = model.state_dict()
    models = [tmp_path / name for name in ("once", "thrice", "five_times")]
    for folder, factor in zip(models, (1.0, 3.0, 5.0), strict=True):
        save_model_of(folder, {name: factor * tensor for name, tensor in tensors.items()}, model.config)
    average(models, tmp_path / "average")
    found = load_checkpoint(tmp_path / "average").tensors
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], 3.0 * tensor)
    narrower = replace(model.config, encoder=replace(model.config.encoder, embed_dim=128))
    save_model_of(models[1], M2D(narrower).state_dict(), narrower)
    with pytest.raises(CheckpointError, match=r"thrice has other tensors than .*once"):
        average(models, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def save_model_of(folder, tensors, config):
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder, tensors, config)


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("m2d-mini", "m2d-mini"),
        ("m2d-mini", "m2d-mini-longer"),
        ("m2d-mini-x", "m2d-mini-x"),
        ("m2d-mini-x", "m2d-mini-speech"),
    ],
)
def test_recipe_has_the_configuration_of_the_released_runs(recipe, name, run):
    from m2d_training import PretrainConfig
    from m2d_training.pretraining.presets import load_preset
    from m2d_training.runs.settings import apply_settings
    from train import LONGER, SPEECH

    known = json.loads((RECIPE / "runs" / f"{run}.json").read_text(encoding="utf-8"))
    settings = {"m2d-mini-longer": LONGER, "m2d-mini-speech": SPEECH}.get(run, ())
    released = PretrainConfig.from_dict(known["config"])
    preset = apply_settings(load_preset(name).config, settings).resolve()
    # Two processes share a batch; the list sets the number of labels; the other fields change no weights.
    assert known["global_batch"] == preset.batch_size == 2 * released.batch_size
    assert replace(released.offline, dim=preset.offline.dim) == preset.offline
    kept = ("keep_every_epochs", "save_every_steps", "analyse_every_steps")
    free = {*kept, "batch_size", "offline", "precision"}  # the precision depends on the machine
    names = {field.name for field in fields(preset)} - free
    assert {name for name in names if getattr(released, name) != getattr(preset, name)} == set()
    frontend = load_model("m2d-mini", device="cpu").config.frontend
    assert (frontend.mean, frontend.std) == (preset.mean, preset.std)


def test_sound_files_of_openttd_are_unpacked_by_their_titles(recipe, tmp_path):
    import packages

    content = io.BytesIO()
    soundfile.write(content, np.full(800, 0.5), 8_000, format="WAV")
    title = b'"Circular saw (big)". License: CC0\0'
    sound = struct.pack("<B", len(title)) + title + content.getvalue()
    table = struct.pack("<II", (1 << 31) | 8, len(content.getvalue()))  # the flag of titles, and one entry
    (tmp_path / "effects.cat").write_bytes(table + sound)
    packages.unpack_cat(tmp_path / "effects.cat")
    waveform, rate = soundfile.read(tmp_path / "effects.cat.d" / "00_Circular_saw_big.wav")
    assert rate == 8_000
    np.testing.assert_allclose(waveform, 0.5, atol=1e-4)


def test_no_package_of_the_corpus_is_held_out(recipe):
    import package_table

    assert not set(package_table.PACKAGES) & set(package_table.HELD_OUT)


def test_classes_that_were_left_out_are_skipped_among_the_parents_of_a_tagger(recipe):
    import tagger

    assert tagger.parent_indices(["Vehicle", "Helicopter", "Rain"]) == (-1, 0, -1)
    assert tagger.parent_indices(["Helicopter", "Rain"]) == (-1, -1)


def test_events_are_runs_of_frames_that_match_one_expected_event_each(recipe):
    import events

    active = np.array([[0, 1], [1, 1], [1, 0], [0, 0], [1, 0]], dtype=bool)
    found = events.runs(active, times=np.array([0.5, 1.5, 2.5, 3.5, 4.5]), hop_s=1.0)
    assert [(own.kind, own.start_s, own.end_s) for own in found] == [(0, 1, 3), (0, 4, 5), (1, 0, 2)]
    expected = [events.Event(0, 1.1, 3.0), events.Event(0, 1.2, 3.0), events.Event(1, 0.0, 3.0)]
    assert events.hits(found, expected, 0.25, with_end=True) == pytest.approx([0.1])
    assert events.hits(found, expected, 0.25, with_end=False) == pytest.approx([0.1, 0.0])
