"""Pre-training data: lists, crops, masks, noise, epochs, and files that cannot be read."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from m2d_training import OfflineConfig, PretrainConfig
from m2d_training.data.crops import SILENCE, CropPlan, crop_spectrogram, crop_waveform
from m2d_training.data.entries import Entry, PackedEntries
from m2d_training.data.manifest import read_manifest
from m2d_training.data.sampling import EpochPlan, SampleKey, StepSampler, balancing_weights
from m2d_training.data.statistics import measure_statistics
from m2d_training.data.stored_features import pool_to_tokens
from m2d_training.pretraining.dataset import PretrainDataset, build_loader, stack_samples
from m2d_training.pretraining.trainer import InputBuilder

from m2d_hub.config import FrontendConfig
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.nn.frontend import LogMelFrontend

RATE = 16_000
FRONTEND = LogMelFrontend(FrontendConfig())
PLAN = CropPlan(FRONTEND.config, num_frames=32, short_clips="pad")
SMALL = {"input_size": (80, 32), "embed_dim": 64, "depth": 1, "predictor_dim": 64, "predictor_depth": 1}


def write_tone(path, seconds=1.0, rate=RATE, seed=0, channels=1):
    """Noise with a sweep in it, 16-bit."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time) + 0.05 * rng.standard_normal(len(time))
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate)


def write_list(folder, names, **columns):
    rows = [["file", *columns], *zip(names, *columns.values(), strict=True)]
    with (folder / "list.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows(rows)
    return str(folder / "list.csv")


@pytest.fixture
def tones(tmp_path):
    names = [f"{index}.wav" for index in range(4)]
    for index, name in enumerate(names):
        write_tone(tmp_path / name, seed=index)
    return write_list(tmp_path, names, label=["a", "a;b", "b", "c"])


def test_crops_are_columns_of_the_whole_clips_spectrogram(tmp_path):
    write_tone(tmp_path / "a.wav", seconds=1.0)
    whole = FRONTEND.log_mel(torch.from_numpy(soundfile.read(tmp_path / "a.wav", dtype="float32")[0])[None])
    rng, starts = np.random.default_rng(0), set()
    for _ in range(400):
        crop = crop_waveform(Entry(str(tmp_path / "a.wav")), PLAN, rng)
        starts.add(crop.first_frame)
        log_mel = FRONTEND.log_mel_block(torch.from_numpy(crop.values)[None])
        expected = whole[..., crop.first_frame : crop.first_frame + 32]
        torch.testing.assert_close(log_mel, expected, atol=2e-3, rtol=0)
    assert starts == set(range(101 - 32 + 1))


@pytest.mark.parametrize("rate", [44_100, 8_000, 48_000])
def test_crops_of_other_rates_equal_the_resampled_clip(tmp_path, rate):
    from m2d_hub.audio import open_audio

    write_tone(tmp_path / "a.wav", seconds=1.5, rate=rate, channels=2)
    (clip,) = open_audio(tmp_path / "a.wav", RATE)
    whole = torch.cat(list(clip.blocks()))
    rng = np.random.default_rng(1)
    for _ in range(10):
        crop = crop_waveform(Entry(str(tmp_path / "a.wav")), PLAN, rng)
        start = crop.first_frame * 160 - 200
        inside = slice(max(0, -start), min(PLAN.num_samples, len(whole) - start))
        expected = whole[max(0, start) : start + PLAN.num_samples]
        np.testing.assert_allclose(crop.values[inside], expected.numpy(), atol=1e-6)


def test_short_clips_are_padded_with_silence_or_repeated(tmp_path):
    write_tone(tmp_path / "a.wav", seconds=0.1)
    entry = Entry(str(tmp_path / "a.wav"))
    padded = crop_waveform(entry, CropPlan(FRONTEND.config, 32, short_clips="pad"), np.random.default_rng(0))
    repeated = crop_waveform(
        entry, CropPlan(FRONTEND.config, 32, short_clips="repeat"), np.random.default_rng(0)
    )
    assert len(padded.values) == len(repeated.values) == 31 * 160 + 400
    assert not padded.values[200 + 1600 :].any()
    np.testing.assert_array_equal(repeated.values[200:1800], repeated.values[1800:3400])


def test_released_spectrograms_are_cropped_and_padded(tmp_path):
    stored = np.random.default_rng(0).standard_normal((80, 50)).astype(np.float32)
    np.save(tmp_path / "long.npy", stored)
    np.save(tmp_path / "short.npy", stored[None, :, :20])
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        crop = crop_spectrogram(Entry(str(tmp_path / "long.npy")), PLAN, rng)
        starts.add(crop.first_frame)
        np.testing.assert_array_equal(crop.values, stored[:, crop.first_frame : crop.first_frame + 32])
    assert starts == set(range(19))
    short = crop_spectrogram(Entry(str(tmp_path / "short.npy")), PLAN, rng).values
    np.testing.assert_array_equal(short[:, :20], stored[:, :20])
    assert (short[:, 20:] == np.float32(SILENCE)).all()


def test_a_broken_file_is_named_and_replaced(tmp_path):
    write_tone(tmp_path / "good.wav")
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")
    manifest = read_manifest(write_list(tmp_path, ["broken.wav", "good.wav"]))
    dataset = PretrainDataset(PretrainConfig(**SMALL), manifest)
    sample = dataset[SampleKey(0, 0, 0)]
    assert np.abs(sample.values).max() > 0.1
    (name, left_out), *_ = sample.left_out
    assert (name, left_out.row, left_out.file) == (manifest.name, 2, str(tmp_path / "broken.wav"))
    assert "broken.wav cannot be read as audio" in left_out.error
    assert not dataset[SampleKey(0, 1, 1)].left_out


def test_a_list_of_damaged_files_ends_the_run(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")
    dataset = PretrainDataset(PretrainConfig(**SMALL), read_manifest(write_list(tmp_path, ["broken.wav"])))
    with pytest.raises(AudioError, match=r"100 clips of .* in a row cannot be read; the last: "):
        dataset[SampleKey(0, 0, 0)]


def test_samples_depend_on_epoch_and_position_alone(tones):
    manifest = read_manifest(tones)
    config = PretrainConfig(**SMALL)
    first, again = (PretrainDataset(config, manifest)[SampleKey(3, 7, 1)] for _ in range(2))
    other = PretrainDataset(config, manifest)[SampleKey(4, 7, 1)]
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.visible_ids, again.visible_ids)
    assert not np.array_equal(first.values, other.values)


def test_labels_become_multi_hot_in_sorted_order(tones):
    manifest = read_manifest(tones)
    config = PretrainConfig(**SMALL, offline=OfflineConfig(kind="labels"))
    dataset = PretrainDataset(config, manifest, classes=manifest.classes())
    assert manifest.classes() == ("a", "b", "c")
    assert dataset[SampleKey(0, 0, 1)].target.tolist() == [1.0, 1.0, 0.0]


def test_noise_is_centred_by_its_own_mean_and_scaled_by_the_main_set(tones):
    config = PretrainConfig(**SMALL, noise_ratio=0.3, mean=-6.0, std=3.0)
    manifest = read_manifest(tones)
    batch = stack_samples([PretrainDataset(config, manifest, manifest)[SampleKey(0, i, i)] for i in range(2)])
    frontend = LogMelFrontend(config.frontend)
    mixed = InputBuilder(config, "audio", frontend, noise_mean=-9.0).log_mel(batch)
    clean = frontend.log_mel_block(batch.values) + 6.0
    noise = frontend.log_mel_block(batch.noise) + 9.0
    expected = torch.log(0.7 * clean.exp() + 0.3 * noise.exp()) / 3.0  # equation 5, then the main set's std
    torch.testing.assert_close(mixed[:, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path\na.wav\n", "no column 'file'; its columns: path"),
        ("file\n", "lists no clips"),
        ("file,label\na.wav,x\n,y\n", r"1 row has no file \(row 3\)"),
    ],
)
def test_invalid_lists_are_refused(tmp_path, content, message):
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_manifest(str(tmp_path / "list.csv"))


def test_only_the_wanted_split_of_a_list_is_used(tmp_path, caplog):
    caplog.set_level("INFO")
    splits = ["train", "validation", "test", "", "eval", "training"]
    data = write_list(tmp_path, [f"{index}.wav" for index in range(6)], label=list("abcdef"), split=splits)
    manifest = read_manifest(data)
    assert [entry.label for entry in manifest.entries] == ["a", "d", "f"]
    assert [entry.row for entry in manifest.entries] == [2, 5, 7]
    assert manifest.classes() == ("a", "d", "f")
    assert "3 of 6 clips are not in the split train and are skipped" in caplog.text
    assert [entry.label for entry in read_manifest(data, "valid").entries] == ["b", "d"]


def test_all_folds_of_a_list_are_used_and_unknown_splits_are_refused(tmp_path, caplog):
    folds = write_list(tmp_path, ["a.wav", "b.wav"], split=["1", "2"])
    assert len(read_manifest(folds).entries) == 2
    assert "the clips of all folds are used" in caplog.text
    with pytest.raises(ConfigError, match="row 3 has the split 'later'; write train, valid, test or"):
        read_manifest(write_list(tmp_path, ["a.wav", "b.wav"], split=["train", "later"]))
    with pytest.raises(ConfigError, match="has no clips in the split train"):
        read_manifest(write_list(tmp_path, ["a.wav"], split=["test"]))


def test_packed_entries_are_those_that_went_in():
    from m2d_hub.audio import AudioPart

    entries = [
        Entry("/a/b.wav", label="x;y", row=2),
        Entry("/caf\udce9/ü.wav", caption="a dog", features_path="/f.npy", row=3),
        Entry("/a.tar", 512, 1 << 40, "m.flac", features_path="/a.tar", features_offset=7, features_size=9),
        Entry(AudioPart("/a/b.wav", 1.5, None), label="x;y"),
        Entry(AudioPart("/a/b.wav", 0.0, 2.25)),
    ]
    packed = PackedEntries(entries)
    assert list(packed) == entries and packed[-1] == entries[-1] and packed[1:3] == entries[1:3]
    with pytest.raises(IndexError):
        packed[5]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_read_a_list_share_its_memory():
    packed = PackedEntries([Entry(f"/data/{index:09d}.wav", label="dog") for index in range(100_000)])

    def own_megabytes():
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        before = own_megabytes()
        read = sum(len(entry.path) for entry in packed)
        os.write(writer, f"{read} {own_megabytes() - before}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    read, grown = os.read(reader, 100).decode().split()
    assert int(read) == 100_000 * len("/data/000000000.wav")
    assert float(grown) < 3  # a list of entries: about 20


def test_linked_folders_are_followed_once_and_without_cycles(tmp_path):
    inside, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (inside / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    for place in (inside / "a.wav", inside / "sub" / "b.wav", elsewhere / "c.wav", inside / ".hidden.wav"):
        write_tone(place, seconds=0.1)
    (inside / "link").symlink_to(elsewhere)
    (inside / "link again").symlink_to(elsewhere)
    (inside / "sub" / "up").symlink_to(inside)
    (elsewhere / "back").symlink_to(inside)
    (inside / "c link.wav").symlink_to(elsewhere / "c.wav")
    (inside / "gone").symlink_to(tmp_path / "nowhere")
    names = [Path(entry.path).name for entry in read_manifest(str(inside)).entries]
    assert sorted(names) == ["a.wav", "b.wav", "c link.wav", "c.wav"]


def test_mixed_kinds_of_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="mixes audio and spectrogram files"):
        read_manifest(write_list(tmp_path, ["a.wav", "b.npy"]))


def test_every_epoch_uses_each_clip_once_in_another_order():
    plan = EpochPlan(list_size=12, global_batch=4, seed=0)
    assert sorted(plan.order(0)) == sorted(plan.order(1)) == list(range(12))
    assert plan.order(0).tolist() != plan.order(1).tolist()
    assert plan.steps_per_epoch == 3


def test_small_lists_are_repeated_to_the_minimum_size():
    plan = EpochPlan(list_size=539, global_batch=128, seed=0, min_list_size=10_000)
    counts = np.bincount(plan.order(0), minlength=539)
    assert plan.epoch_size == 10_000 and plan.steps_per_epoch == 78
    assert set(counts) == {18, 19}


def test_weighted_draws_balance_classes_without_repeating_clips():
    labels = [("common",)] * 900 + [("rare",)] * 100
    plan = EpochPlan(1000, 10, seed=0, weights=balancing_weights(labels), samples_per_epoch=200)
    drawn = plan.order(0)
    assert len(set(drawn.tolist())) == len(drawn) == 200
    assert 55 <= (drawn >= 900).sum() <= 100  # uniform draws would give about 20


def test_statistics_of_short_clips_measure_no_padding(tmp_path):
    names = [f"{index}.wav" for index in range(6)]
    for index, name in enumerate(names):
        write_tone(tmp_path / name, seconds=0.2, seed=index)
    np.save(tmp_path / "spectrogram.npy", np.full((80, 5), 2.0, np.float32) + np.eye(80, 5, dtype=np.float32))
    waves = [torch.from_numpy(soundfile.read(tmp_path / name, dtype="float32")[0]) for name in names]
    expected = torch.stack([FRONTEND.log_mel(wave[None]) for wave in waves])
    found = measure_statistics(read_manifest(write_list(tmp_path, names)), PLAN)
    assert (found.mean, found.std) == pytest.approx((expected.mean().item(), expected.std().item()), abs=1e-2)
    found = measure_statistics(read_manifest(write_list(tmp_path, ["spectrogram.npy"])), PLAN)
    assert found.mean == pytest.approx(2.0 + 1 / 80, abs=1e-5)


@pytest.mark.parametrize("name", ["set {a,b}", "set [1]", "set 100%", "set *"])
def test_signs_in_a_folders_name_are_not_taken_for_a_shard_pattern(tmp_path, name):
    import tarfile

    write_tone(tmp_path / "a.wav")
    (tmp_path / name).mkdir()
    for index in range(2):
        with tarfile.open(tmp_path / name / f"{index}.tar", "w") as tar:
            tar.add(tmp_path / "a.wav", f"{index}.wav")
    for pattern in ("*.tar", "{0..1}.tar", "1.tar"):
        count = 1 if pattern == "1.tar" else 2
        assert len(read_manifest(str(tmp_path / name / pattern)).entries) == count


def test_tempered_draws_have_the_shares_of_the_papers_audioset_runs():
    """Five disjoint classes of 10^6 … 10^2 clips: 55, 25, 12, 5, 3 % of the draws."""
    counts = [10**power for power in (6, 5, 4, 3, 2)]
    labels = [(str(count),) for count in counts for _ in range(count)]
    weights = balancing_weights(labels, 1 / 1.5)
    shares = [part.sum() / weights.sum() for part in np.split(weights, np.cumsum(counts)[:-1])]
    assert shares == pytest.approx([0.55, 0.25, 0.12, 0.05, 0.03], abs=0.006)


def test_global_batches_do_not_depend_on_processes_and_accumulation():
    plan = EpochPlan(list_size=32, global_batch=8, seed=0)

    def batches(accumulate, processes):
        positions = [set() for _ in range(4)]
        for rank in range(processes):
            for index, keys in enumerate(StepSampler(plan, accumulate, 0, 4, rank, processes)):
                positions[index // accumulate].update(key.position for key in keys)
        return positions

    assert batches(1, 1) == batches(2, 2) == batches(1, 2) == batches(4, 1)
    assert batches(1, 1)[1] == set(range(8, 16))


@pytest.mark.parametrize(
    ("clips", "batch_size", "accumulate", "steps", "last"),
    [
        (1600, 128, 1, 13, [64]),  # ESC-50, on the evaluation platform of the paper
        (4142, 16, 4, 65, [12, 12, 11, 11]),  # ICBHI 2017
        (129, 128, 1, 1, [128]),  # a single clip is dropped: a head cannot normalise over it
    ],
)
def test_a_last_smaller_step_is_kept(clips, batch_size, accumulate, steps, last):
    plan = EpochPlan(clips, batch_size * accumulate, seed=0, parts=accumulate)
    batches = list(StepSampler(plan, accumulate, 0, plan.steps_per_epoch))
    assert plan.steps_per_epoch == steps and [len(keys) for keys in batches[-accumulate:]] == last
    positions = [key.position for keys in batches for key in keys]
    assert positions == list(range(len(positions)))  # each clip once
    assert all((key.first, key.count) == (keys[0].position, len(keys)) for keys in batches for key in keys)


def test_a_resumed_sampler_goes_on_where_it_stopped():
    plan = EpochPlan(list_size=20, global_batch=4, seed=0)
    whole = list(StepSampler(plan, 2, 0, 15))
    assert list(StepSampler(plan, 2, 7, 15)) == whole[14:]


def test_one_caption_is_drawn_each_time_by_seed_epoch_and_clip(tmp_path):
    write_tone(tmp_path / "0.wav")
    listed = write_list(tmp_path, ["0.wav"], caption=["a dog\nit barks\nin a yard"])
    dataset = PretrainDataset(PretrainConfig(**SMALL), read_manifest(listed))
    drawn = [dataset[SampleKey(epoch, 0, 0)].caption for epoch in range(30)]
    assert set(drawn) == {"a dog", "it barks", "in a yard"}
    assert drawn == [dataset[SampleKey(epoch, 0, 0)].caption for epoch in range(30)]
    other = PretrainDataset(PretrainConfig(**SMALL, seed=1), read_manifest(listed))
    assert drawn != [other[SampleKey(epoch, 0, 0)].caption for epoch in range(30)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_worker_processes_do_not_change_batches(tones, num_workers):
    config = PretrainConfig(**SMALL)
    dataset = PretrainDataset(config, read_manifest(tones))
    sampler = StepSampler(EpochPlan(4, 2, seed=0), 1, 0, 3)
    batches = list(build_loader(dataset, sampler, num_workers))
    expected = [stack_samples([dataset[key] for key in keys]) for keys in sampler]
    assert len(batches) == 3
    for batch, reference in zip(batches, expected, strict=True):
        assert torch.equal(batch.values, reference.values)
        assert torch.equal(batch.masked_ids, reference.masked_ids)


@pytest.mark.parametrize(
    ("patch_frames", "expected"),
    [(2, [0.0, 1.0, 2.0, 3.0, 4.0, 4.0]), (4, [0.5, 2.5, 4.0]), (1, [0.0, 0.0, 1.0, 1.0])],
)
def test_features_are_averaged_over_the_frames_of_each_token(patch_frames, expected):
    features = torch.arange(5.0)[None, :, None]  # five features of 20 ms; the tokens may reach further
    pooled = pool_to_tokens(features, len(expected), patch_frames)
    assert pooled.flatten().tolist() == expected


@pytest.mark.parametrize("kind", ["waveform", "spectrogram"])
def test_features_are_repeated_with_a_short_clip(tmp_path, kind):
    # 2,336 samples are 14.6 frames of 10 ms. Sound and features both say which 20 ms of the clip they are.
    numbers = np.arange(2336) // 320
    np.save(tmp_path / "features.npy", np.arange(8.0)[:, None])
    if kind == "waveform":
        soundfile.write(tmp_path / "clip.wav", numbers / 10, RATE, subtype="FLOAT")
    else:
        np.save(tmp_path / "clip.npy", np.tile(np.arange(15.0) // 2, (80, 1)))
    name = "clip.wav" if kind == "waveform" else "clip.npy"
    listed = write_list(tmp_path, [name], features=["features.npy"])
    offline = OfflineConfig(kind="features", dim=1)
    config = PretrainConfig(input_size=(80, 64), patch_size=(80, 2), short_clips="repeat", offline=offline)
    sample = PretrainDataset(config, read_manifest(listed))[SampleKey(0, 0, 0)]
    expected = 10 * sample.values[200::320][:32] if kind == "waveform" else sample.values[0, ::2]
    np.testing.assert_allclose(sample.target[:, 0], expected, atol=1e-5)
    assert len(set(sample.target[8:, 0])) == 8


def test_pictures_are_cropped_to_the_size_asked_for(tmp_path):
    from PIL import Image

    for index in range(3):
        Image.fromarray(np.full((60, 80, 3), 80 * index, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    config = PretrainConfig(**{**SMALL, "input_size": (32, 32)}, in_channels=3, mask_ratio=0.5)
    sample = PretrainDataset(config, read_manifest(str(tmp_path)))[SampleKey(0, 0, 1)]
    expected = (80 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])  # ImageNet's
    assert sample.values.shape == (3, 32, 32)
    np.testing.assert_allclose(sample.values[:, 5, 5], expected, atol=1e-5)
