"""Audio of any kind as blocks of mono waveform at the model's rate."""

from m2d_hub.audio.clips import AUDIO_SUFFIXES, AudioClip, AudioPart, Clip, open_audio, read_part

__all__ = ["AUDIO_SUFFIXES", "AudioClip", "AudioPart", "Clip", "open_audio", "read_part"]
