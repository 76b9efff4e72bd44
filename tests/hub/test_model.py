"""What users rely on: shapes, independence of neighbours, streaming, masks, heads, saving."""

import copy
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

import m2d_hub
from m2d_hub import AudioError, CheckpointError, ConfigError
from m2d_hub.audio import decode as decoding
from m2d_hub.inference import FrameStore, encode_batched, encode_together, split_windows
from m2d_hub.nn.int8_linear import quantize_encoder
from m2d_hub.pretrained.checkpoint import read_safetensors, save_checkpoint

INDEPENDENT = 1e-5  # the contract's bound on a neighbour's influence


def noise(seconds, seed=0):
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * 16_000))
    return (samples * np.linspace(0.1, 1, len(samples))).astype(np.float32)


RAGGED = [noise(seconds, seed) for seed, seconds in enumerate((0.3, 5.0, 2.07, 0.01, 9.3, 2.07))]


def test_attributes_are_plain_numbers(tiny):
    assert (tiny.sample_rate, tiny.embed_dim, tiny.frame_dim) == (16_000, 64, 5 * 64)
    assert (tiny.frame_hop_s, tiny.window_s) == (pytest.approx(0.16), pytest.approx(2.08))
    assert all(type(n) in (int, float) for n in (tiny.sample_rate, tiny.frame_dim, tiny.frame_hop_s))
    assert tiny.labels is None and tiny.head is None


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_a_clip_depends_neither_on_its_neighbours_nor_on_batch_size(tiny, batch_size):
    together = tiny.encode_clip(RAGGED, batch_size=batch_size)
    for waveform, embedding in zip(RAGGED, together, strict=True):
        torch.testing.assert_close(tiny.encode_clip(waveform)[0], embedding, atol=INDEPENDENT, rtol=0)


def test_int8_clips_do_not_depend_on_their_neighbours(tiny):
    quantize_encoder(tiny.encoder)
    together = tiny.encode_clip([*RAGGED, 100 * noise(2.07, 9)])
    for waveform, embedding in zip(RAGGED, together, strict=False):
        torch.testing.assert_close(tiny.encode_clip(waveform)[0], embedding, atol=INDEPENDENT, rtol=0)


def test_padding_beyond_lengths_changes_nothing(tiny):
    lengths = torch.tensor([len(waveform) for waveform in RAGGED])
    padded = torch.full((len(RAGGED), int(lengths.max())), 0.3)
    for row, waveform in zip(padded, RAGGED, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    frames = tiny(padded, lengths)
    expected = tiny.encode_frames(RAGGED)
    torch.testing.assert_close(frames.features, expected.features, atol=INDEPENDENT, rtol=0)
    assert torch.equal(frames.mask, expected.mask)


def test_mask_covers_each_clips_own_frames_and_the_rest_is_zero(tiny):
    frames = tiny.encode_frames([noise(0.3), noise(5.0)])
    # 31 frames are 2 tokens; 501 frames are two windows of 13 tokens and 85 frames more, 6 tokens.
    assert frames.mask.sum(dim=1).tolist() == [2, 32]
    assert frames.features.shape == (2, 32, 320) and frames.timestamps_s.shape == (32,)
    assert not frames.features[0, 2:].any()


def test_clip_is_the_mean_of_its_frames(tiny):
    frames = tiny.encode_frames(RAGGED)
    means = torch.stack([f[m].mean(dim=0) for f, m in zip(frames.features, frames.mask, strict=True)])
    torch.testing.assert_close(tiny.encode_clip(RAGGED), means, atol=1e-6, rtol=1e-5)


def test_a_long_file_streams_to_the_numbers_of_the_whole(tiny, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", noise(31.7), 44_100, subtype="FLOAT")
    whole = tiny.encode_frames(tmp_path / "long.wav")
    monkeypatch.setattr(decoding, "BLOCK_S", 0.5)
    streamed = tiny.encode_frames(tmp_path / "long.wav", batch_size=2)
    torch.testing.assert_close(streamed.features, whole.features, atol=1e-4, rtol=0)
    assert torch.equal(streamed.timestamps_s, whole.timestamps_s)


@pytest.mark.parametrize("num_samples", [1, 2, 160, 200, 201, 400])
def test_the_shortest_audio_gives_one_token(tiny, num_samples):
    frames = tiny.encode_frames(np.full(num_samples, 0.1, np.float32))
    assert frames.features.shape == (1, 1, 320) and frames.mask.tolist() == [[True]]
    assert torch.isfinite(frames.features).all()


def test_layers_end_with_the_normalised_frames(tiny):
    layers = tiny.encode_layers(RAGGED)
    frames = tiny.encode_frames(RAGGED)
    assert layers.features.shape == (2, *frames.features.shape)
    torch.testing.assert_close(layers.features[-1], frames.features, atol=INDEPENDENT, rtol=0)
    assert not torch.allclose(layers.features[0], frames.features)


def test_tokens_are_frequency_major_within_each_window(tiny):
    waveform = noise(5.0)
    tokens, frames = tiny.encode_tokens(waveform), tiny.encode_frames(waveform)
    assert tokens.features.shape == (1, 5 * 32, 64) and tokens.mask.shape == (1, 160)
    # Token of frequency 2 and time 3 of the second window, which starts after 13 frames (65 tokens).
    index = 65 + 2 * 13 + 3
    torch.testing.assert_close(tokens.features[0, index], frames.features[0, 16].view(5, 64)[2])
    assert tokens.timestamps_s[index] == frames.timestamps_s[16]


def test_own_length_windows_encode_a_clip_at_once(tiny):
    waveform = noise(5.0)
    tiny.set_window(math.inf)
    frames = tiny.encode_frames([waveform, noise(0.5)])
    assert tiny.window_s == math.inf and frames.features.shape == (2, 32, 320)
    tiny.set_window(5.12)
    torch.testing.assert_close(
        tiny.encode_frames(waveform).features[0], frames.features[0], atol=1e-5, rtol=0
    )
    assert tiny.encode_tokens(waveform).features.shape == (1, 160, 64)


def test_a_shorter_window_uses_the_first_positions(tiny):
    positions = tiny.encoder.pos_embed[0, 1:].view(5, 13, 64)
    tiny.set_window(0.64)
    assert torch.equal(tiny.encoder.pos_embed[0, 1:].view(5, 4, 64), positions[:, :4])
    assert tiny.encode_frames(noise(2.0)).features.shape == (1, 13, 320)


@pytest.mark.parametrize("window_s", [0, -1.0, math.nan, "6", 0.1])
def test_an_impossible_window_is_refused(tiny, window_s):
    with pytest.raises(ConfigError, match=f"window_s.*{window_s!r}"):
        tiny.set_window(window_s)


def test_gradients_reach_waveform_and_weights(tiny):
    waveform = torch.from_numpy(np.stack([noise(2.5), noise(2.5, 1)])).requires_grad_()
    tiny(waveform).features.square().mean().backward()
    assert waveform.grad.abs().sum() > 0
    without = [name for name, p in tiny.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("clips", [RAGGED, [RAGGED[2], RAGGED[5]]])
def test_one_padded_call_gives_the_frames_that_each_length_gives_alone(tiny, clips):
    lengths = [len(waveform) for waveform in clips]
    padded = torch.full((len(clips), max(lengths)), 0.3)
    for row, waveform in zip(padded, clips, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    windows = split_windows(padded, lengths, tiny.frontend, tiny.windows)
    with torch.no_grad():
        together = encode_together(windows, tiny.frontend, tiny.encoder, tiny.device)
        for item, features in zip(together.windows, together.features, strict=True):
            num_tokens = item.window.num_tokens
            (alone,) = encode_batched([item], tiny.frontend, tiny.encoder.frames, 1, tiny.device)
            torch.testing.assert_close(features[:num_tokens], alone.features[0], atol=1e-5, rtol=0)
            assert not features[num_tokens:].any()
    store = FrameStore(len(clips), 1)
    store.put(together)
    features, mask = store.features_and_mask()
    frames = tiny(padded, torch.tensor(lengths))
    assert torch.equal(mask, frames.mask)
    torch.testing.assert_close(features, frames.features, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("waveform", "lengths", "message"),
    [
        (torch.zeros(16_000), None, r"float waveform \(B, S\).*\(16000,\)"),
        (torch.zeros(2, 100), torch.tensor([100, 101]), r"2 numbers of 1 to 100 samples, got \[100, 101\]"),
        (torch.zeros(1, 100), 100, "a number of samples for each clip, got 100"),
        ("dog.wav", None, "got str; use encode_clip"),
    ],
)
def test_forward_rejects_other_input_than_a_batch(tiny, waveform, lengths, message):
    tiny.set_head(2)
    for forward in (tiny, tiny.classify_waveform):
        with pytest.raises(AudioError, match=message):
            forward(waveform, lengths)


def test_an_unreadable_file_is_found_before_any_is_encoded(tiny, tmp_path, monkeypatch):
    (tmp_path / "bad.wav").write_text("no audio")
    monkeypatch.setattr(tiny.encoder, "encode", lambda tokens: pytest.fail("encoded before all were opened"))
    with pytest.raises(AudioError, match=r"bad\.wav"):
        tiny.encode_clip([noise(0.1), tmp_path / "bad.wav"])


def test_embeddings_can_be_used_in_training(tiny):
    probe = torch.nn.Linear(320, 2)
    probe(tiny.encode_clip(RAGGED)).sum().backward()
    assert probe.weight.grad is not None


def test_classification_needs_a_head(tiny):
    with pytest.raises(ConfigError, match="Model 'tiny' has no classification head"):
        tiny.classify(noise(1.0))
    with pytest.raises(ConfigError, match="Model 'tiny' has no projections into a text space"):
        tiny.encode_text(["rain"])


@pytest.fixture
def tagger(tiny):
    tiny.set_head(3, labels=("dog", "rain", "bell"))
    torch.nn.init.normal_(tiny.head.linear.weight, generator=torch.Generator().manual_seed(0))
    return tiny.eval()


def test_tags_are_the_best_classes_by_name_with_sigmoid_scores(tagger):
    waveform = noise(5.0)
    tags = tagger.classify(waveform, top_k=2)
    scores = tagger.head(tagger.encode_clip(waveform)).sigmoid()[0]
    order = scores.argsort(descending=True)[:2].tolist()
    assert [tag.index for tag in tags[0]] == order
    assert [tag.label for tag in tags[0]] == [("dog", "rain", "bell")[index] for index in order]
    assert [tag.score for tag in tags[0]] == pytest.approx(scores[order].tolist(), abs=1e-6)


def test_embeddings_are_classified_from_tensors_arrays_and_lists(tagger):
    clips, expected = tagger.encode_clip(RAGGED), tagger.classify(RAGGED)
    for given in (clips, clips.numpy(), clips.tolist()):
        assert tagger.classify_embeddings(given) == expected


@pytest.mark.parametrize("shape", [(320,), (2, 319), (2, 5, 320)])
def test_embeddings_of_another_shape_or_with_nan_are_rejected(tagger, shape):
    with pytest.raises(ConfigError, match=r"embeddings of shape \(B, 320\), got shape"):
        tagger.classify_embeddings(torch.zeros(shape))
    with pytest.raises(ConfigError, match="must be finite"):
        tagger.classify_embeddings(torch.full((1, 320), math.nan))


def test_a_training_batch_of_one_clip_uses_the_running_statistics(tagger):
    clip = tagger.encode_clip(noise(1.0))
    expected = tagger.head(clip)
    torch.testing.assert_close(tagger.train().head(clip), expected)


def test_numbers_of_numpy_are_accepted(tagger):
    assert len(tagger.classify(noise(1.0), top_k=np.int64(2), batch_size=np.int32(4))[0]) == 2


def test_single_label_heads_give_scores_that_sum_to_one(tiny):
    tiny.set_head(4, activation="softmax")
    assert sum(tag.score for tag in tiny.classify(noise(1.0))[0]) == pytest.approx(1.0)


def test_waveform_logits_equal_the_tags_whatever_the_padding(tagger):
    lengths = torch.tensor([len(waveform) for waveform in RAGGED])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in RAGGED], batch_first=True)
    logits = tagger.classify_waveform(padded, lengths)
    best = [tags[0] for tags in tagger.classify(RAGGED, top_k=1)]
    assert logits.argmax(dim=1).tolist() == [tag.index for tag in best]
    torch.testing.assert_close(
        logits.sigmoid().amax(dim=1), torch.tensor([t.score for t in best]), atol=1e-5, rtol=0
    )


def test_a_head_on_mean_tokens_gets_the_mean_over_all_tokens(tiny):
    tiny.set_head(3, features="tokens")
    torch.nn.init.normal_(tiny.head.linear.weight, generator=torch.Generator().manual_seed(0))
    waveform = torch.from_numpy(noise(5.0))[None]
    expected = tiny.eval().head(tiny.encode_tokens(waveform).features.mean(dim=1))
    torch.testing.assert_close(tiny.classify_waveform(waveform), expected, atol=1e-4, rtol=0)


def test_a_misspelt_setting_of_a_head_is_refused(tiny):
    with pytest.raises(TypeError, match="label"):
        tiny.set_head(3, label=("dog", "rain", "bell"))
    with pytest.raises(ConfigError, match="2 labels for a head with 3 classes"):
        tiny.set_head(3, labels=("dog", "rain"))


def test_classify_frames_scores_every_frame(tagger):
    frames = tagger.classify_frames([noise(0.3), noise(5.0)])
    assert frames.features.shape == (2, 32, 3)
    features = tagger.encode_frames(noise(5.0)).features[0]
    torch.testing.assert_close(frames.features[1], tagger.head(features).sigmoid(), atol=1e-5, rtol=0)
    assert not frames.features[0][~frames.mask[0]].any()


def test_classifying_in_training_mode_does_not_change_the_head(tagger):
    expected = tagger.classify(RAGGED)
    tagger.train()
    assert tagger.classify(RAGGED) == expected
    assert tagger.head.training and not tagger.head.norm.running_mean.any()


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"top_k": True}, {"batch_size": 0}, {"batch_size": 1.5}])
def test_impossible_counts_are_refused(tagger, settings):
    [(name, value)] = settings.items()
    with pytest.raises(ConfigError, match=f"{name} must be a positive integer, got {value}"):
        tagger.classify(noise(0.1), **settings)


def test_saved_models_load_bit_equal(tagger, tmp_path):
    tagger.set_window(3.2)
    tagger.save_pretrained(tmp_path / "saved")
    assert {"model.safetensors", "config.json"} <= {path.name for path in (tmp_path / "saved").iterdir()}
    for loaded in (
        m2d_hub.load_model(tmp_path / "saved"),
        m2d_hub.load_model(tmp_path / "saved" / "model.safetensors"),
        m2d_hub.M2D.from_pretrained(str(tmp_path / "saved")),
    ):
        assert not loaded.training and loaded.labels == ["dog", "rain", "bell"]
        assert loaded.window_s == pytest.approx(3.2)
        assert torch.equal(loaded.encode_clip(RAGGED), tagger.encode_clip(RAGGED))


def test_equal_weights_are_saved_as_equal_files(tiny, tmp_path):
    files = []
    for index in range(3):
        tiny.save_pretrained(tmp_path / str(index))
        files.append((tmp_path / str(index) / "model.safetensors").read_bytes())
    assert len(set(files)) == 1


def test_int8_weights_are_not_saved(tiny, tmp_path):
    quantize_encoder(tiny.encoder)
    with pytest.raises(ConfigError, match="a model of dtype='int8' is not saved"):
        tiny.save_pretrained(tmp_path)


def test_a_single_weights_file_contains_its_configuration(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "renamed.safetensors")
    (tmp_path / "config.json").unlink()
    loaded = m2d_hub.load_model(tmp_path / "renamed.safetensors")
    assert torch.equal(loaded.encode_clip(RAGGED[:2]), tiny.encode_clip(RAGGED[:2]))


def test_models_can_be_copied_and_pickled_after_use(tiny):
    expected = tiny.encode_clip(RAGGED[:2])
    for copied in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        assert torch.equal(copied.encode_clip(RAGGED[:2]), expected)


def test_missing_and_misshapen_tensors_are_listed(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    tensors, _ = read_safetensors(tmp_path / "model.safetensors")
    del tensors["encoder.norm.weight"]
    tensors["encoder.cls_token"] = torch.zeros(1, 1, 32)
    save_checkpoint(tmp_path, tensors, tiny.config)
    with pytest.raises(
        CheckpointError, match=r"Missing key.*encoder\.norm\.weight.*size mismatch for encoder\.cls_token"
    ):
        m2d_hub.load_model(tmp_path)


def test_non_finite_weights_are_rejected_by_name(tiny, tmp_path):
    with torch.no_grad():
        tiny.encoder.blocks[1].mlp.fc1.weight[3, 4] = float("nan")
    tiny.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"non-finite weights in encoder\.blocks\.1\.mlp\.fc1\.weight"):
        m2d_hub.load_model(tmp_path)


def test_float16_on_a_cpu_is_replaced_by_float32_with_a_warning(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="several times slower .* loaded in float32; use torch.bfloat16"):
        model = m2d_hub.load_model(tmp_path, device="cpu", dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_half_precision_does_not_read_uninitialised_memory(tiny, tmp_path):
    """Clips of one to thirteen tokens, in a process whose fresh memory is filled with NaN's bits."""
    tiny.save_pretrained(tmp_path)
    code = """
import sys, torch, m2d_hub
torch.manual_seed(0)
for dtype in (torch.float16, torch.bfloat16):
    model = m2d_hub.load_model(sys.argv[1], device="cpu").to(dtype)
    for samples in range(160, 33_280, 2_560):
        assert model.encode_clip(torch.randn(samples) / 10).isfinite().all(), (dtype, samples)
"""
    for garbage in ("0", "255"):
        environment = {**os.environ, "MALLOC_PERTURB_": garbage}
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)


def test_a_new_head_replaces_only_a_head_of_another_size(tagger, tmp_path):
    tagger.save_pretrained(tmp_path)
    kept = m2d_hub.load_model(tmp_path, num_classes=3)
    assert torch.equal(kept.head.linear.weight, tagger.head.linear.weight)
    fresh = m2d_hub.load_model(tmp_path, num_classes=7)
    assert fresh.head.linear.weight.shape == (7, 320) and fresh.labels is None
    # The published initialisation: a truncated normal of standard deviation 2e-5.
    assert 1e-5 < fresh.head.linear.weight.std() < 3e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": torch.float64}, "dtype must be .* got torch.float64"),
        ({"dtype": "int8", "device": "cuda"}, "dtype='int8' runs on the CPU only, but device='cuda'"),
        ({"dtype": "int8", "device": "abacus"}, "device 'abacus' cannot be used"),
        ({"num_classes": 0}, "num_classes must be an integer from 1 to 1,000,000, got 0"),
    ],
)
def test_impossible_settings_are_refused(tiny, tmp_path, settings, message):
    tiny.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        m2d_hub.load_model(tmp_path, **settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_numbers_of_the_cpu(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    expected = tiny.encode_clip(RAGGED)
    on_gpu = m2d_hub.load_model(tmp_path, device="cuda")
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.encode_clip(RAGGED), expected, atol=1e-3, rtol=0)
