"""Anything that holds audio to blocks of mono waveform at the model's rate: the one reader of audio."""

from m2d_hub.audio.clips import AUDIO_SUFFIXES, AudioClip, AudioPart, Clip, open_audio, read_part

__all__ = ["AUDIO_SUFFIXES", "AudioClip", "AudioPart", "Clip", "open_audio", "read_part"]
