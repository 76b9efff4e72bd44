"""The map of a folder: places, clusters and duplicates by their definitions, and its page in a browser."""

import io
import json
import re
import shutil
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.config import EncoderConfig, HeadConfig, ModelConfig
from m2d_hub.corpus import draw_map as drawing

sklearn = pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ["birds_1.ogg", "speech_it_1.wav", "tabla_stroke.flac"]
HOSTILE = "<img src=x onerror=document.title='caught'>.wav"
DATA_IMAGE = "data:image/png;base64,"


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
    place = tmp_path / "sounds"
    place.mkdir()
    for name in NAMES:
        shutil.copy(clips / name, place)
    shutil.copy(clips / NAMES[1], place / "copy.wav")
    (place / "broken.wav").write_text("no sound")
    return place


@pytest.fixture
def stored(model, tmp_path):
    """Embeddings of the caller's choice: ``stored(matrix)`` -> what ``embed`` might have written."""

    def write(matrix):
        sounds = tmp_path / "many"
        sounds.mkdir()
        for number in range(len(matrix)):
            soundfile.write(sounds / f"{number:03}.wav", np.full(1_600, number / 1_000), 16_000)
        out = tmp_path / "out.npz"
        m2d_hub.embed_files(sounds, out, model=model, device="cpu")
        with zipfile.ZipFile(out) as kept:
            arrays = {name: kept.read(name) for name in kept.namelist()}
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(matrix, np.float32))
        with zipfile.ZipFile(out, "w") as changed:
            for name, content in {**arrays, "embedding.npy": buffer.getvalue()}.items():
                changed.writestr(name, content)
        return out

    return write


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def numbers(files):
    """Of the sounds of ``stored``."""
    return [int(re.search(r"(\d+)\.wav$", file)[1]) for file in files]


def blobs(sizes, width=320):
    """Vectors about one direction each, far from each other; of lengths that differ."""
    generator = np.random.default_rng(0)
    centres = np.eye(width)[: len(sizes)] * 10
    vectors = np.repeat(centres, sizes, axis=0)
    return (vectors + 0.5 * generator.standard_normal(vectors.shape)) * generator.uniform(
        0.1, 9, (len(vectors), 1)
    )


def test_places_are_the_principal_components_of_directions(stored):
    matrix = blobs([5, 4, 3])
    drawn = m2d_hub.draw_map(stored(matrix))
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    from sklearn.decomposition import PCA

    expected = PCA(2).fit(unit)
    places = np.array([(point.x, point.y) for point in drawn.points])
    assert np.abs(places) == pytest.approx(np.abs(expected.transform(unit)), abs=1e-4)
    assert drawn.kept == pytest.approx(expected.explained_variance_ratio_.sum(), abs=1e-4)
    assert numbers(point.file for point in drawn.points) == list(range(12))


def test_two_sounds_lie_on_a_line(stored):
    matrix = np.eye(2, 320)
    (left, right) = m2d_hub.draw_map(stored(matrix)).points
    assert abs(left.x - right.x) == pytest.approx(2**0.5, abs=1e-4)  # of unit vectors at a right angle
    assert (left.y, right.y) == pytest.approx((0, 0), abs=1e-4)


def test_clusters_are_the_groups_that_there_are_the_largest_first(stored):
    drawn = m2d_hub.draw_map(stored(blobs([3, 7, 5])))
    assert [point.cluster for point in drawn.points] == [3] * 3 + [1] * 7 + [2] * 5
    assert drawn.num_clusters == 3


def test_sounds_without_groups_stay_together_and_a_given_number_is_kept(stored):
    out = stored(np.random.default_rng(0).standard_normal((40, 320)))
    assert m2d_hub.draw_map(out).num_clusters == 1
    assert m2d_hub.draw_map(out, clusters=4).num_clusters == 4


def test_duplicates_are_all_that_hang_together_by_the_score(stored):
    # Angles between neighbours: 10 degrees (cosine 0.985), the ends of the chain are at 20 (0.940).
    angles = np.deg2rad([0, 90, 10, 180, 20, 183])
    matrix = np.zeros((6, 320))
    matrix[:, 0], matrix[:, 1] = np.cos(angles) * 3, np.sin(angles) * 3
    out = stored(matrix)
    drawn = m2d_hub.draw_map(out, duplicate_score=0.98)
    assert [numbers(group.files) for group in drawn.duplicates] == [[0, 2, 4], [3, 5]]
    expected = [np.cos(np.deg2rad(20)), np.cos(np.deg2rad(3))]
    assert [group.score for group in drawn.duplicates] == pytest.approx(expected, abs=1e-5)
    assert [numbers(group.files) for group in m2d_hub.draw_map(out, duplicate_score=0.99).duplicates] == [
        [3, 5]
    ]


def test_equal_sounds_are_one_cluster_and_one_group_of_duplicates(stored, tmp_path):
    drawn = m2d_hub.draw_map(stored(np.ones((6, 320))), tmp_path / "map.html", duplicate_score=1)
    assert drawn.num_clusters == 1 and [len(group.files) for group in drawn.duplicates] == [6]
    assert np.array([(point.x, point.y) for point in drawn.points]) == pytest.approx(0, abs=1e-5)


def test_embeddings_that_are_not_finite_are_named_and_left_out(stored, tmp_path):
    matrix = blobs([4, 4])
    matrix[2, 5] = np.nan
    matrix[6, 0] = np.inf
    result = run("map", stored(matrix), "--out", tmp_path / "map.html", status=3)
    assert re.findall(r"Left out: \S+/(\d+)\.wav has an embedding that is not finite", result.stderr) == [
        "002",
        "006",
    ]
    assert "6 sounds" in result.stdout and "002.wav has an" in (tmp_path / "map.html").read_text()


def test_neighbours_stay_together_by_t_sne(stored):
    drawn = m2d_hub.draw_map(stored(blobs([10, 10, 10])), projection="tsne")
    places = np.array([(point.x, point.y) for point in drawn.points])
    away = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(away, np.inf)
    assert drawn.kept is None and (away.argmin(axis=1) // 10 == np.arange(30) // 10).all()


def test_a_folder_is_embedded_once_and_what_cannot_be_read_is_told(folder, model, tmp_path):
    out = tmp_path / "pages" / "map.html"
    result = run("map", folder, "--out", out, "--model", model, "--device", "cpu", status=3)
    assert f"Wrote {out}: 4 sounds" in result.stdout and "1 of them duplicates" in result.stdout
    assert f"Left out: {folder / 'broken.wav'} cannot be read" in result.stderr
    page = out.read_text()
    assert all(f"<span>{name}</span>" in page for name in [*NAMES, "copy.wav"])
    assert "<li>broken.wav cannot be read" in page and str(tmp_path) not in page
    [kept] = (tmp_path / "cache").rglob("*.npz")
    written = kept.stat().st_mtime_ns
    again = run("map", folder, "--out", out, "--model", model, "--device", "cpu", "--json", status=3)
    assert kept.stat().st_mtime_ns == written and out.read_text() == page
    told = json.loads(again.stdout)
    assert [set(map(str, group["files"])) for group in told["duplicates"]] == [
        {str(folder / "copy.wav"), str(folder / NAMES[1])}
    ]
    assert {"file", "x", "y", "cluster", "tags"} == set(told["points"][0])
    assert list(told["failed"]) == [str(folder / "broken.wav")]


@pytest.mark.parametrize("name", ["out.npz", "out.parquet", "out.safetensors", "out.dataset", "out"])
@pytest.mark.parametrize("kind", ["clip", "frames"])
def test_what_embed_wrote_is_drawn_in_every_format(name, kind, folder, model, tmp_path):
    if name.endswith((".parquet", ".dataset")):
        pytest.importorskip("pyarrow")
    m2d_hub.embed_files(folder, tmp_path / name, model=model, device="cpu", kind=kind)
    drawn = m2d_hub.draw_map(tmp_path / name, tmp_path / "map.html", device="cpu")
    expected = m2d_hub.draw_map(folder, model=model, device="cpu")
    places = [[(point.x, point.y) for point in one.points] for one in (drawn, expected)]
    assert np.array(places[0]) == pytest.approx(np.array(places[1]), abs=1e-4)
    assert (tmp_path / "map.html").read_text().count(DATA_IMAGE) == 4


def test_tags_of_a_model_that_has_them_are_those_of_classify(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (folder / "broken.wav").unlink()
    head = HeadConfig(num_classes=3)
    name = save_model(tmp_path / "tagger", head=head, labels=("bark", "rain", "<b>"))
    drawn = m2d_hub.draw_map(folder, tmp_path / "map.html", model=name, device="cpu")
    expected = m2d_hub.load_model(name, device="cpu").classify([p.file for p in drawn.points], top_k=3)
    for point, tags in zip(drawn.points, expected, strict=True):
        assert [tag.label for tag in point.tags] == [tag.label for tag in tags]
        assert [tag.score for tag in point.tags] == pytest.approx([tag.score for tag in tags], abs=1e-4)
    page = (tmp_path / "map.html").read_text()
    assert "<b>" not in page and "\\u003cb>" in page


def test_embeddings_whose_model_is_gone_are_drawn_without_spectrograms(folder, model, tmp_path, caplog):
    m2d_hub.embed_files(folder, tmp_path / "out.npz", model=model, device="cpu")
    shutil.rmtree(model)
    drawn = m2d_hub.draw_map(tmp_path / "out.npz", tmp_path / "map.html")
    assert len(drawn.points) == 4 and DATA_IMAGE not in (tmp_path / "map.html").read_text()
    assert "No tags and no spectrograms" in caplog.text
    with pytest.raises(m2d_hub.M2DError):
        m2d_hub.draw_map(tmp_path / "out.npz", model=model)


@pytest.mark.parametrize(("most", "shown"), [(2, "2 of 4 sounds have"), (0, "0 of 4"), (9, "All sounds")])
def test_a_page_holds_no_more_spectrograms_than_asked_for(most, shown, folder, model, tmp_path):
    out = tmp_path / "map.html"
    m2d_hub.draw_map(folder, out, model=model, device="cpu", thumbnails=most)
    assert out.read_text().count(DATA_IMAGE) == min(most, 4) and shown in out.read_text()
    assert out.stat().st_size < 25_000 + 6_000 * min(most, 4)


def test_wrong_settings_are_told_before_any_work(folder, tmp_path):
    def told(match, *arguments, **settings):
        with pytest.raises(m2d_hub.ConfigError, match=match):
            m2d_hub.draw_map(*arguments, **{"model": "no such model", **settings})

    told(r"projection must be one of pca, tsne, got 'umap'", folder, projection="umap")
    told(r"clusters must be .*positive integer.*, got 0", folder, clusters=0)
    told(r"duplicate_score must be .*1.*, got 1\.5", folder, duplicate_score=1.5)
    told(r"thumbnails must be .*, got -1", folder, thumbnails=-1)
    told(r"must end in \.html.*map\.png", folder, tmp_path / "map.png")
    told(r"none\.npz does not exist", tmp_path / "none.npz", model=None)
    told(r"none does not exist; give a folder", tmp_path / "none")
    told(r"birds_1\.ogg is no folder", folder / "birds_1.ogg")


def test_too_few_sounds_too_many_and_too_many_clusters_are_told(folder, model, tmp_path, monkeypatch):
    empty, one = tmp_path / "empty", tmp_path / "one"
    empty.mkdir()
    one.mkdir()
    with pytest.raises(m2d_hub.ConfigError, match="empty holds no audio files"):
        m2d_hub.draw_map(empty, model=model)
    shutil.copy(folder / NAMES[0], one)
    (one / "broken.wav").write_text("no sound")
    with pytest.raises(m2d_hub.ConfigError, match=r"two sounds, and \S+one holds 1; 1 cannot .*broken\.wav"):
        m2d_hub.draw_map(one, model=model, device="cpu")
    (one / NAMES[0]).unlink()
    one = one.rename(tmp_path / "none")
    with pytest.raises(m2d_hub.ConfigError, match=r"none of its 1 files can be read; .*broken\.wav"):
        m2d_hub.draw_map(one, model=model, device="cpu")
    with pytest.raises(m2d_hub.ConfigError, match=r"clusters must be at most .*which is 4, got 5"):
        m2d_hub.draw_map(folder, model=model, device="cpu", clusters=5)
    monkeypatch.setattr(drawing, "MOST_SOUNDS", 4)
    with pytest.raises(m2d_hub.ConfigError, match="holds 5 sounds, at most 4"):
        m2d_hub.draw_map(folder, model=model)


def test_missing_extras_are_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    result = run("map", folder, "--out", tmp_path / "map.html", status=1)
    assert "pip install 'm2d-hub[sklearn]'" in result.output
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("map", folder, "--out", tmp_path / "map.html", "--clusters", 1, status=1)
    assert "pip install 'm2d-hub[plots]'" in result.output


# In a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, folder, model, tmp_path):
    """Opens the folder's map: ``visit(width)`` -> page; ``asked`` lists addresses, ``told`` complaints."""
    (folder / "<").mkdir()
    shutil.copy(folder / NAMES[2], folder / HOSTILE)
    shutil.copy(folder / NAMES[0], folder / "<" / "script><script>document.title='caught'<.wav")
    m2d_hub.draw_map(folder, tmp_path / "map.html", model=model, device="cpu", clusters=2)
    contexts = []

    def opened(width=1200):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, has_touch=width < 700))
        page = contexts[-1].new_page()
        page.asked, page.told = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.told.append(str(error)))
        page.on("console", lambda message: page.told.append(message.text))
        page.goto((tmp_path / "map.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


def centre(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.slow
def test_names_are_shown_as_text_and_nothing_is_loaded_or_run(visit):
    page = visit()
    assert page.title() == "Map of sounds" and page.locator("img[src=x]").count() == 0
    for summary in page.locator("summary").all():
        summary.click()
    names = page.locator("details[data-cluster] button").all_text_contents()
    hostile = [HOSTILE, "</script><script>document.title='caught'<.wav"]
    assert sorted(names) == sorted([*NAMES, "copy.wav", *hostile])
    for name in hostile:
        page.locator("details[data-cluster] button", has_text=name).click()
        assert page.text_content("#shown h3") == name
    assert page.title() == "Map of sounds" and page.told == []
    assert {url for url in page.asked if not url.startswith(("file:", "data:"))} == set()
    assert len([url for url in page.asked if url.startswith("file:")]) == 1


@pytest.mark.slow
def test_the_sound_pointed_at_is_told_with_its_spectrogram(visit):
    page = visit()
    assert "Point at a sound" in page.text_content("#shown")
    page.mouse.move(*centre(page.locator("#map .sound").nth(1)))
    assert page.text_content("#shown h3") in [*NAMES, "copy.wav", HOSTILE] or "script" in page.text_content(
        "#shown h3"
    )
    assert re.fullmatch("Cluster [12]", page.locator("#shown p").first.text_content())
    size = page.evaluate("(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('#shown img'))")
    assert size == [96, 40]
    box = page.get_attribute("#map", "viewBox")
    page.click("#nearer")
    assert float(page.get_attribute("#map", "viewBox").split()[2]) == float(box.split()[2]) / 2
    page.click("#whole")
    assert [*map(float, page.get_attribute("#map", "viewBox").split())] == [*map(float, box.split())]


@pytest.mark.slow
def test_on_a_phone_a_tap_tells_and_nothing_is_wider_than_it(visit):
    page = visit(390)
    page.touchscreen.tap(*centre(page.locator("#map .sound").nth(0)))
    assert page.locator("#shown h3").count() == 1
    for summary in page.locator("summary").all():
        summary.tap()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
