"""Maps of sounds: positions, clusters and duplicates by their definitions, the page, and the cached index."""

import json
import re
import shutil
import threading

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.config import EncoderConfig, HeadConfig, ModelConfig
from m2d_hub.corpus import sound_map
from m2d_hub.corpus.index import open_index

from ..stored_outputs import change_embeddings

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")
NAMES = ["birds_1.ogg", "speech_it_1.wav", "tabla_stroke.flac"]


def save_model(folder, **settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 96), embed_dim=64, depth=1)
    m2d_hub.M2D(ModelConfig(encoder=encoder, **settings)).eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return save_model(tmp_path / "model")


@pytest.fixture
def folder(clips, tmp_path):
    """Some clips, a copy of one, and a file that cannot be read."""
    path = tmp_path / "sounds"
    path.mkdir()
    for name in NAMES:
        shutil.copy(clips / name, path)
    shutil.copy(clips / NAMES[1], path / "copy.wav")
    (path / "broken.wav").write_text("no sound")
    return path


@pytest.fixture
def stored(model, tmp_path):
    """``stored(matrix)``: path of an output of ``embed`` with these embeddings."""

    def write(matrix):
        sounds = tmp_path / "many"
        sounds.mkdir()
        for number in range(len(matrix)):
            soundfile.write(sounds / f"{number:03}.wav", np.full(1_600, number / 1_000), 16_000)
        out = tmp_path / "out.npz"
        m2d_hub.embed_files(sounds, out, model=model, device="cpu")
        change_embeddings(out, lambda _: matrix)
        return out

    return write


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def numbers(files):
    """Row numbers of the sounds of ``stored``."""
    return [int(re.search(r"(\d+)\.wav$", file)[1]) for file in files]


def positions(drawn):
    return np.array([(point.x, point.y) for point in drawn.points])


def blobs(sizes, width=320):
    """Vectors near one direction per blob, of different lengths."""
    generator = np.random.default_rng(0)
    vectors = np.repeat(np.eye(width)[: len(sizes)] * 10, sizes, axis=0)
    vectors = vectors + 0.5 * generator.standard_normal(vectors.shape)
    return vectors * generator.uniform(0.1, 9, (len(vectors), 1))


@pytest.mark.parametrize("sizes", [[5, 4, 3], [1, 1]])
def test_positions_are_the_principal_components_of_unit_vectors(sizes, stored):
    matrix = blobs(sizes)
    drawn = m2d_hub.draw_map(stored(matrix))
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    assert np.abs(positions(drawn)) == pytest.approx(np.abs(centred @ directions[:2].T), abs=1e-4)
    assert drawn.kept == pytest.approx((lengths[:2] ** 2).sum() / (lengths**2).sum(), abs=1e-4)
    assert numbers(point.file for point in drawn.points) == list(range(len(matrix)))


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_clusters_are_the_groups_in_descending_order_of_size(projection, stored):
    drawn = m2d_hub.draw_map(stored(blobs([3, 7, 5])), projection=projection)
    groups = [point.cluster for point in drawn.points]
    assert groups == [3] * 3 + [1] * 7 + [2] * 5 and drawn.num_clusters == 3
    distances = np.linalg.norm(positions(drawn)[:, None] - positions(drawn)[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert [groups[row] for row in distances.argmin(axis=1)] == groups


def test_sounds_without_groups_are_one_cluster_unless_a_number_is_given(stored):
    out = stored(np.random.default_rng(0).standard_normal((40, 320)))
    assert m2d_hub.draw_map(out).num_clusters == 1
    assert m2d_hub.draw_map(out, clusters=4, projection="tsne").num_clusters == 4


def test_duplicates_are_connected_by_the_score(stored):
    # Neighbours are 10 degrees apart (cosine 0.985); the ends of the chain 20 degrees (0.940).
    angles = np.deg2rad([0, 90, 10, 180, 20, 183])
    matrix = np.zeros((6, 320))
    matrix[:, 0], matrix[:, 1] = np.cos(angles) * 3, np.sin(angles) * 3
    out = stored(matrix)
    drawn = m2d_hub.draw_map(out, duplicate_score=0.98)
    assert [numbers(group.files) for group in drawn.duplicates] == [[0, 2, 4], [3, 5]]
    expected = [np.cos(np.deg2rad(20)), np.cos(np.deg2rad(3))]
    assert [group.score for group in drawn.duplicates] == pytest.approx(expected, abs=1e-5)
    drawn = m2d_hub.draw_map(out, duplicate_score=0.99)
    assert [numbers(group.files) for group in drawn.duplicates] == [[3, 5]]


@pytest.mark.parametrize("matrix", [np.ones((6, 320)), np.zeros((2, 320)), np.full((3, 320), 1e30)])
def test_equal_sounds_are_duplicates_at_one_position(matrix, stored):
    drawn = m2d_hub.draw_map(stored(matrix), projection="tsne", duplicate_score=1)
    assert drawn.num_clusters == 1 and positions(drawn) == pytest.approx(0, abs=1e-5)
    assert [len(group.files) for group in drawn.duplicates] == [len(matrix)] * int(matrix.any())


def test_embeddings_that_are_not_finite_are_skipped_and_named(stored, tmp_path):
    matrix = blobs([4, 4])
    matrix[2, 5], matrix[6, 0] = np.nan, np.inf
    result = run("map", stored(matrix), "--out", tmp_path / "map.html", status=3)
    skipped = re.findall(r"Skipped: \S+/(\d+)\.wav has an embedding that is not finite", result.stderr)
    assert skipped == ["002", "006"] and "6 sounds" in result.stdout


def test_folder_is_embedded_once_and_unreadable_files_are_skipped(folder, model, tmp_path):
    out = tmp_path / "pages" / "map.html"
    result = run("map", folder, "--out", out, "--model", model, "--device", "cpu", status=3)
    assert f"Wrote {out}: 4 sounds" in result.stdout and "1 of them duplicates" in result.stdout
    assert f"Skipped: {folder / 'broken.wav'} cannot be read" in result.stderr
    page = out.read_text()
    assert all(f"<li>{name}</li>" in page for name in [*NAMES, "copy.wav"])
    assert "<li>broken.wav cannot be read" in page and str(tmp_path) not in page
    [kept] = (tmp_path / "cache").rglob("*.npz")
    written = kept.stat().st_mtime_ns
    again = run("map", folder, "--out", out, "--model", model, "--device", "cpu", "--json", status=3)
    assert kept.stat().st_mtime_ns == written and out.read_text() == page
    values = json.loads(again.stdout)
    [group] = values["duplicates"]
    assert set(group["files"]) == {str(folder / "copy.wav"), str(folder / NAMES[1])}
    assert {"file", "x", "y", "cluster", "tags"} == set(values["points"][0])
    assert list(values["failed"]) == [str(folder / "broken.wav")]


def test_cached_index_is_updated_rebuilt_if_damaged_and_waited_for(folder, model, clips, tmp_path):
    first = open_index(folder, model, "cpu")
    [kept] = (tmp_path / "cache").rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:500])  # damaged
    np.testing.assert_array_equal(open_index(folder, model, "cpu").embeddings, first.embeddings)

    (folder / NAMES[2]).unlink()
    shutil.copy(folder / NAMES[1], folder / NAMES[0])  # other content
    found = []
    both = [threading.Thread(target=lambda: found.append(open_index(folder, model, "cpu"))) for _ in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(found) == 2
    for index in found:
        matches = index.nearest(first.embeddings[first.files.index(str(folder / NAMES[1]))], 9)
        assert [match.score for match in matches] == pytest.approx([1, 1, 1], abs=1e-5)
    moved = shutil.move(model, tmp_path / "moved")
    np.testing.assert_array_equal(open_index(folder, moved, "cpu").embeddings, found[0].embeddings)


def test_frames_are_drawn_as_their_folder_with_clusters_named_by_folder(folder, model, tmp_path):
    for name, file in (("voices", NAMES[1]), ("drums", NAMES[2])):
        (folder / "kinds" / name).mkdir(parents=True)
        for number in range(5):
            shutil.copy(folder / file, folder / "kinds" / name / f"{number}{file}")
    folder /= "kinds"
    m2d_hub.embed_files(folder, tmp_path / "out", model=model, kind="frames", device="cpu")
    drawn = m2d_hub.draw_map(tmp_path / "out", tmp_path / "map.html", clusters=2)
    expected = m2d_hub.draw_map(folder, model=model, device="cpu")
    assert positions(drawn) == pytest.approx(positions(expected), abs=1e-4)
    assert [point.file for point in drawn.points] == [point.file for point in expected.points]
    titles = re.findall(r"<summary>\d: (\w+) \(5\)", (tmp_path / "map.html").read_text())
    assert sorted(titles) == ["drums", "voices"]


def test_tags_are_those_of_classify_and_shown_as_text(folder, model, tmp_path):
    (folder / "broken.wav").unlink()
    hostile = folder / "<b onload=x>&amp;<a href='x'>.wav"
    (folder / "copy.wav").rename(hostile)
    name = save_model(tmp_path / "tagger", head=HeadConfig(num_classes=3), labels=("bark", "rain", "<i>"))
    drawn = m2d_hub.draw_map(folder, tmp_path / "map.html", model=name, device="cpu")
    expected = m2d_hub.load_model(name, device="cpu").classify([p.file for p in drawn.points], top_k=3)
    for point, tags in zip(drawn.points, expected, strict=True):
        assert [tag.label for tag in point.tags] == [tag.label for tag in tags]
        assert [tag.score for tag in point.tags] == pytest.approx([tag.score for tag in tags], abs=1e-4)
    page = (tmp_path / "map.html").read_text()
    body = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "<i>" not in body and "<b onload" not in body and "&lt;b onload=x&gt;&amp;amp;" in body
    # In the plot's data, names are HTML entities, which plotly shows as text, and no tag is closed.
    data = page[page.index("Plotly.newPlot") :].split("</script>")[0]
    assert "<" not in data.split('document.getElementById("find")')[0].split("const map")[0]
    assert "lt;b onload=x" in data and "default-src 'none'" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.https?:", page)


def test_embeddings_whose_model_is_missing_are_drawn_without_tags(folder, model, tmp_path, caplog):
    m2d_hub.embed_files(folder, tmp_path / "out.npz", model=model, device="cpu")
    shutil.rmtree(model)
    assert len(m2d_hub.draw_map(tmp_path / "out.npz").points) == 4 and "No tags, because" in caplog.text
    with pytest.raises(m2d_hub.M2DError):
        m2d_hub.draw_map(tmp_path / "out.npz", model=model)


@pytest.mark.parametrize(
    ("match", "settings"),
    [
        (r"projection must be one of pca, tsne, got 'umap'", {"projection": "umap"}),
        (r"clusters must be .*positive integer.*, got 0", {"clusters": 0}),
        (r"duplicate_score must be .*1.*, got 1\.5", {"duplicate_score": 1.5}),
        (r"must end in \.html.*map\.png", {"out": "map.png"}),
        (r"none\.npz does not exist", {"source": "none.npz", "model": None}),
        (r"none does not exist; give a folder", {"source": "none"}),
        (r"__init__\.py is not a folder", {"source": m2d_hub.__file__}),
    ],
)
def test_wrong_settings_are_refused_before_any_work(match, settings, folder):
    with pytest.raises(m2d_hub.ConfigError, match=match):
        m2d_hub.draw_map(**{"source": folder, "model": "no such model", **settings})


def test_too_few_and_too_many_sounds_are_refused(folder, model, tmp_path, monkeypatch):
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(folder / NAMES[0], one)
    (one / "broken.wav").write_text("no sound")
    with pytest.raises(m2d_hub.ConfigError, match=r"two sounds; \S+one has 1\. Skipped: .*broken\.wav"):
        m2d_hub.draw_map(one, model=model, device="cpu")
    (one / NAMES[0]).unlink()
    with pytest.raises(m2d_hub.ConfigError, match=r"\S+one has no usable file; .*broken\.wav"):
        m2d_hub.draw_map(one, model=model, device="cpu")
    with pytest.raises(m2d_hub.ConfigError, match="clusters must be at most 4"):
        m2d_hub.draw_map(folder, model=model, device="cpu", clusters=5)
    monkeypatch.setattr(sound_map, "MAX_SOUNDS", 4)
    with pytest.raises(m2d_hub.ConfigError, match="has 5 sounds; the maximum is 4"):
        m2d_hub.draw_map(folder, model=model)


def test_missing_package_is_reported_with_the_extra_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(m2d_hub.io, "_is_installed", lambda name: name != "plotly")
    result = run("map", folder, "--out", tmp_path / "map.html", status=1)
    assert "pip install 'm2d-hub[map]'" in result.output
