"""Zero-shot evaluation: labelled lists scored by the names of their labels."""

import csv
import json

import m2d_training
import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from m2d_training.cli.main import main
from sklearn.metrics import average_precision_score

import m2d_hub
from m2d_hub.config import ClapConfig, EncoderConfig, ModelConfig
from m2d_hub.errors import ConfigError

from ..conftest import TEXT_DIM

RATE = 16_000
LABELS = ["dog", "rain", "the_roof"]  # in natural order
TEXTS = {"a {}": ["a dog", "a rain", "a the roof"], "{} falls": ["dog falls", "rain falls", "the roof falls"]}


@pytest.fixture(scope="module")
def clap(tmp_path_factory, text_folder):
    """Folder of a tiny model with a text space."""
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 32), embed_dim=64, depth=1)
    space = ClapConfig(
        dim=12, audio_hidden_dim=20, text_dim=TEXT_DIM, text_hidden_dim=24, text_encoder=str(text_folder)
    )
    folder = tmp_path_factory.mktemp("clap")
    m2d_hub.M2D(ModelConfig(encoder=encoder, clap=space)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("noises"), np.random.default_rng(0)
    for index in range(9):
        noise = rng.standard_normal(RATE // 2).cumsum() if index % 2 else rng.standard_normal(RATE // 2)
        soundfile.write(folder / f"{index}.wav", 0.3 * noise / np.abs(noise).max(), RATE)
    return sorted(folder.glob("*.wav"))


def listed(path, rows):
    with path.open("w", newline="") as lines:
        csv.writer(lines).writerows([["file", "label", "split"], *rows])
    return path


def run(data, model, out, *options):
    arguments = ["zero-shot", str(data), "--model", str(model), "--out", str(out), "--json", *options]
    return CliRunner().invoke(main, arguments)


def cosines(folder, files):
    """Of clips with labels, averaged over both prompts of TEXTS (N, C)."""
    model = m2d_hub.load_model(folder, device="cpu")
    texts = [F.normalize(model.encode_text(own), dim=1) for own in TEXTS.values()]
    audio = F.normalize(model.encode_audio_text_space([str(file) for file in files]), dim=1)
    return audio @ F.normalize(sum(texts), dim=1).T


def test_one_label_per_clip_gives_accuracy_over_the_test_clips(clap, files, tmp_path):
    rows = [(file, LABELS[index % 3], "test" if index else "train") for index, file in enumerate(files)]
    prompts = [part for prompt in TEXTS for part in ("--prompt", prompt)]
    result = run(listed(tmp_path / "list.csv", rows), clap, tmp_path / "out", *prompts)
    assert result.exit_code == 0, result.output
    right = cosines(clap, files[1:]).argmax(dim=1) == torch.arange(1, 9) % 3
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["metric"], report["test_clips"]) == ("accuracy", 8)
    assert report["value"] == pytest.approx(float(right.float().mean()))
    assert report["settings"]["prompts"] == list(TEXTS)
    assert (tmp_path / "out" / "confusion.png").is_file() and (tmp_path / "out" / "worst.csv").is_file()


def test_several_labels_per_clip_give_map(clap, files, tmp_path):
    several = [{index % 3, (index * index + 1) % 3} for index in range(len(files))]
    rows = [
        (file, ";".join(LABELS[place] for place in sorted(own)), "test")
        for file, own in zip(files, several, strict=True)
    ]
    result = m2d_training.zero_shot(
        listed(tmp_path / "list.csv", rows), model=clap, out=tmp_path / "out", prompts=list(TEXTS)
    )
    targets = np.array([[place in own for place in range(3)] for own in several])
    assert result.metric == "mAP"
    expected = average_precision_score(targets, cosines(clap, files).numpy())
    assert result.interval.value == pytest.approx(expected, abs=1e-6)


def test_clips_of_all_folds_are_scored_together(clap, files, tmp_path):
    """As on the evaluation platform: folds of different sizes count by their clips."""
    rows = [(file, LABELS[index % 3], "1" if index < 7 else "2") for index, file in enumerate(files)]
    result = m2d_training.zero_shot(listed(tmp_path / "list.csv", rows), model=clap, out=tmp_path / "out")
    model = m2d_hub.load_model(clap, device="cpu")
    texts = model.encode_text(
        [f"{name} can be heard" for name in ("dog", "rain", "the roof")], normalize=True
    )
    audio = model.encode_audio_text_space([str(file) for file in files], normalize=True)
    right = (audio @ texts.T).argmax(dim=1) == torch.arange(9) % 3
    assert result.interval.value == pytest.approx(float(right.float().mean()))
    assert result.report["test_clips"] == 9
    assert result.report["settings"]["prompts"] == ["{} can be heard"]


@pytest.mark.parametrize(
    ("task", "label", "text", "seconds"),
    [
        ("cremad", "anger", "angry person talking can be heard", 2.5),
        ("gtzan", "hiphop", "hiphop music can be heard", 30.0),
        ("nsynth", "bass", "the musical instrument sound of bass can be heard", 4.0),
        ("us8k", "dog_bark", "dog bark can be heard", 4.0),
    ],
)
def test_tasks_have_the_texts_and_lengths_of_the_platform(
    task, label, text, seconds, clap, files, tmp_path, monkeypatch
):
    texts, lengths = [], set()
    encode_text, encode_audio = m2d_hub.M2D.encode_text, m2d_hub.M2D.encode_audio_text_space

    def encoded_text(model, given, **options):
        texts.extend(given)
        return encode_text(model, given, **options)

    def encoded_audio(model, clips, **options):
        lengths.update(len(clip) / model.sample_rate for clip in clips)
        return encode_audio(model, clips, **options)

    monkeypatch.setattr(m2d_hub.M2D, "encode_text", encoded_text)
    monkeypatch.setattr(m2d_hub.M2D, "encode_audio_text_space", encoded_audio)
    data = listed(tmp_path / "list.csv", [(files[0], label, "test"), (files[1], "other", "test")])
    result = run(data, clap, tmp_path / "out", "--task", task)
    assert result.exit_code == 0, result.output
    assert text in texts and lengths == {seconds}


def test_an_unreadable_clip_is_skipped_and_listed(clap, files, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    rows = [(file, LABELS[index % 3], "test") for index, file in enumerate(files)]
    data = listed(tmp_path / "list.csv", [*rows, ("broken.wav", "dog", "test")])
    result = run(data, clap, tmp_path / "out")
    assert result.exit_code == 3
    assert "broken.wav" in (tmp_path / "out" / "errors.csv").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["test_clips"] == 9


def test_lists_prompts_and_models_that_cannot_be_used_are_refused(clap, model, files, tmp_path):
    rows = [(file, LABELS[index % 3], "test") for index, file in enumerate(files)]
    data, out = listed(tmp_path / "list.csv", rows), tmp_path / "out"
    with pytest.raises(ConfigError, match=r"must be one or more texts with \{\} in place of the label"):
        m2d_training.zero_shot(data, model=clap, out=out, prompts=["a sound"])
    with pytest.raises(ConfigError, match=r"Unknown task 'esc51'\. Available: esc50, us8k"):
        m2d_training.zero_shot(data, model=clap, out=out, task="esc51")
    with pytest.raises(ConfigError, match="no projections into a text space"):
        m2d_training.zero_shot(data, model=model, out=out)
    trained = listed(tmp_path / "train.csv", [(file, label, "train") for file, label, _ in rows])
    with pytest.raises(ConfigError, match="has no clip in the split test; needed: test"):
        m2d_training.zero_shot(trained, model=clap, out=out)
    later = listed(tmp_path / "later.csv", [*rows, (files[0], "dog", "later")])
    with pytest.raises(ConfigError, match=r"a split that cannot be used \(row 11: 'later'\)"):
        m2d_training.zero_shot(later, model=clap, out=out)
    one = listed(tmp_path / "one.csv", [(files[0], "dog", "test")])
    with pytest.raises(ConfigError, match="has only one class, 'dog'"):
        m2d_training.zero_shot(one, model=clap, out=out)
    out.mkdir(exist_ok=True)
    (out / "report.json").write_text('{"method": "fine-tuning"}')
    with pytest.raises(ConfigError, match="is not the result of zero-shot classification"):
        m2d_training.zero_shot(data, model=clap, out=out)
