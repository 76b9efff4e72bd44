"""Audio embeddings and tags by m2d-mini on ONNX Runtime.

>>> import m2d_mini
>>> m2d_mini.encode_clip("dog.wav")  # (1, 1536) float32
>>> m2d_mini.tag("dog.wav")  # [[Tag(label="Animal", score=0.9, index=1), ...]]
"""

from m2d_mini.audio import AudioError
from m2d_mini.model import Frames, Tag, encode_clip, encode_frames, tag

__all__ = ["AudioError", "Frames", "Tag", "encode_clip", "encode_frames", "tag"]
