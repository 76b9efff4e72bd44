"""M2DEmbedder keeps scikit-learn's conventions."""

import pickle

import numpy as np
import pytest

from m2d_hub import ConfigError

sklearn = pytest.importorskip("sklearn", reason="needs m2d-hub[sklearn]")

from sklearn.base import clone  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from m2d_hub.clients.sklearn import M2DEmbedder  # noqa: E402

from ..signals import tones  # noqa: E402


def test_paths_ragged_arrays_and_a_matrix_are_embedded(folder, tiny, clips):
    paths = sorted(str(path) for path in clips.glob("*.wav"))[:2]
    embedder = M2DEmbedder(folder, batch_size=4, device="cpu")
    np.testing.assert_allclose(embedder.fit_transform(paths), tiny.encode_clip(paths), atol=1e-5)
    np.testing.assert_allclose(embedder.transform(np.array(paths)), tiny.encode_clip(paths), atol=1e-5)
    ragged, _ = tones(2)
    np.testing.assert_allclose(embedder.transform(ragged), tiny.encode_clip(ragged), atol=1e-5)
    matrix = np.stack([clip[:4_000] for clip in ragged])
    np.testing.assert_allclose(embedder.transform(matrix), tiny.encode_clip(matrix), atol=1e-5)


def test_output_can_be_a_data_frame_with_named_columns(folder):
    pytest.importorskip("pandas")
    frame = M2DEmbedder(folder).set_output(transform="pandas").fit_transform(tones(2)[0])
    assert frame.shape == (2, 320)
    assert list(frame.columns[:2]) == ["m2d0", "m2d1"]


def test_clone_and_pickle_keep_the_settings_and_not_the_weights(folder):
    embedder = M2DEmbedder(folder, batch_size=3)
    expected = embedder.fit_transform(tones(2)[0])
    packed = pickle.dumps(embedder)
    assert len(packed) < 2_000
    np.testing.assert_array_equal(pickle.loads(packed).transform(tones(2)[0]), expected)
    assert clone(embedder).get_params() == {
        "name": folder, "batch_size": 3, "device": None, "sample_rate": None
    }  # fmt: skip


def test_grid_search_separates_low_and_high_tones(folder):
    clips, labels = tones(12)
    pipeline = make_pipeline(M2DEmbedder(folder), StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1.0]}, cv=2)
    search.fit(clips, labels)
    assert search.best_score_ == 1.0


def test_one_flat_array_is_refused(folder):
    with pytest.raises(ConfigError, match=r"a 2-D array \(n, S\), got shape \(4000,\)"):
        M2DEmbedder(folder).transform(np.zeros(4_000, dtype=np.float32))
