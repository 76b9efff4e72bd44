"""scikit-learn: embeddings as a transformer step of a pipeline.

>>> from m2d_hub.clients.sklearn import M2DEmbedder
>>> pipeline = make_pipeline(M2DEmbedder("m2d-mini"), StandardScaler(), LogisticRegression())
>>> pipeline.fit(paths, labels)
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.io import importing
from m2d_hub.model import M2D
from m2d_hub.pretrained.registry import DEFAULT_MODEL

with importing("scikit-learn", "M2DEmbedder", "sklearn"):
    from sklearn.base import BaseEstimator, TransformerMixin


class M2DEmbedder(TransformerMixin, BaseEstimator):
    """Transform clips to embeddings (n, N_F·D). The weights load on first use and are not pickled.

    Args:
        name: As for :func:`m2d_hub.load_model`.
        batch_size: Maximum number of windows encoded at once.
        device: As for :func:`m2d_hub.load_model`.
        sample_rate: Sample rate of arrays in Hz; None: the model's. Files have their own.
    """

    def __init__(
        self,
        name: str | os.PathLike[str] = DEFAULT_MODEL,
        batch_size: int = 16,
        device: str | None = None,
        sample_rate: int | None = None,
    ):
        self.name = name
        self.batch_size = batch_size
        self.device = device
        self.sample_rate = sample_rate

    def fit(self, X: Any, y: Any = None) -> M2DEmbedder:
        """Store the size of the output; X and y are ignored."""
        self.n_features_out_ = self._loaded().frame_dim
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Embed clips.

        Args:
            X: A list, column or object array of paths or of arrays of different lengths, or a 2-D array
                (n, S).

        Returns:
            (n, N_F·D) float32.

        Raises:
            ConfigError: X is an array of numbers that is not 2-D.
        """
        is_numeric = isinstance(X, np.ndarray) and X.dtype.kind not in "OUT"
        if is_numeric and X.ndim != 2:
            raise ConfigError(f"X must be a list of clips or a 2-D array (n, S), got shape {X.shape}.")
        clips = self._loaded().encode_clip(
            list(X) if is_numeric else X,
            sample_rate=self.sample_rate,
            channels="mix",
            batch_size=self.batch_size,
        )
        return clips.numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the column names ``m2d0``, ``m2d1``, …."""
        return np.array([f"m2d{index}" for index in range(self._loaded().frame_dim)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_model"}

    def _loaded(self) -> M2D:
        wanted = (os.fspath(self.name), self.device)
        if getattr(self, "_model", (None, None))[0] != wanted:
            self._model = (wanted, load_model(self.name, device=self.device))
        return self._model[1]
