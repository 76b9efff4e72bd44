"""The log-mel spectrogram, whole and streamed."""

import copy
import pickle

import pytest
import torch

from m2d_hub.config import FrontendConfig
from m2d_hub.errors import ConfigError
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.windows import reflected


@pytest.fixture(scope="module")
def frontend():
    return LogMelFrontend(FrontendConfig())


@pytest.mark.parametrize("lengths", [[1, 100, 200, 201], [400, 1000, 16_001, 16_000], [16_001] * 2])
def test_clips_of_a_batch_are_reflected_each_at_its_own_end(frontend, lengths):
    waveform = torch.randn(len(lengths), 16_001, generator=torch.Generator().manual_seed(0)) * 0.1
    most_frames = frontend.config.num_frames(max(lengths))
    log_mel = frontend.log_mel_block(reflected(waveform, torch.tensor(lengths), most_frames, frontend.config))
    assert log_mel.shape == (len(lengths), 80, most_frames)
    for clip, samples, length in zip(log_mel, waveform, lengths, strict=True):
        alone = frontend.log_mel(samples[None, :length])[0]
        torch.testing.assert_close(clip[:, : alone.shape[1]], alone, atol=1e-4, rtol=0)


def test_a_tone_sounds_in_the_mel_band_of_its_frequency():
    # Slaney mel scale: linear below 1 kHz, 200/3 Hz a mel; 80 bands from 50 to 8000 Hz.
    frontend = LogMelFrontend(FrontendConfig())
    time = torch.arange(16_000) / 16_000
    loudest = frontend.log_mel(torch.sin(2 * torch.pi * 700.0 * time)[None])[0].mean(dim=1).argmax().item()
    highest = 15 + 27 * torch.log(torch.tensor(8.0)) / torch.log(torch.tensor(6.4))
    step = (highest - 50 / (200 / 3)) / 81
    centre_hz = (50 / (200 / 3) + (loudest + 1) * step) * 200 / 3
    assert abs(centre_hz - 700) < step * 200 / 3


@pytest.mark.parametrize("sample_rate", [16_000, 32_000])
def test_fft_gives_the_values_of_the_convolution(sample_rate):
    waveform = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)) * 0.1
    convolution, fft = (
        LogMelFrontend(FrontendConfig.for_sample_rate(sample_rate, transform=transform)).log_mel(waveform)
        for transform in ("convolution", "fft")
    )
    torch.testing.assert_close(fft, convolution, atol=1e-3, rtol=0)


def test_an_unknown_transform_is_refused():
    with pytest.raises(ConfigError, match="transform must be one of convolution, fft, got 'dct'"):
        FrontendConfig(transform="dct")


def test_frontend_at_32_khz_keeps_ten_millisecond_hops():
    frontend = LogMelFrontend(FrontendConfig.for_sample_rate(32_000))
    assert frontend(torch.zeros(1, 32_000)).shape == (1, 1, 80, 101)
    assert (frontend.config.window_samples, frontend.config.f_max_hz) == (800, 16_000)


def test_silence_is_the_log_of_epsilon_normalised(frontend):
    expected = (torch.log(torch.tensor(torch.finfo(torch.float32).eps)) + 7.1) / 4.2
    torch.testing.assert_close(frontend(torch.zeros(1, 1600)), expected.expand(1, 1, 80, 11))


def test_log_mel_stays_in_float32_under_autocast(frontend):
    waveform = torch.randn(1, 1600, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = frontend.log_mel(waveform)
    assert torch.equal(under_autocast, frontend.log_mel(waveform))


def test_a_used_frontend_can_be_copied_and_pickled(frontend):
    frontend.log_mel(torch.zeros(1, 400))
    for copied in (copy.deepcopy(frontend), pickle.loads(pickle.dumps(frontend))):
        assert copied.log_mel(torch.zeros(1, 400)).shape == (1, 80, 3)


def test_gradients_reach_the_waveform(frontend):
    waveform = torch.randn(1, 1600, generator=torch.Generator().manual_seed(0)).requires_grad_()
    frontend(waveform).sum().backward()
    assert waveform.grad.abs().sum() > 0
