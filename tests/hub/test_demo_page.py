"""The demo page: what it answers, and how it does in a browser (Chromium, where it is installed)."""

import os
import re
import shutil
import socket
import sys
import types
import urllib.request

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.config import ClapConfig, EncoderConfig, HeadConfig, ModelConfig
from m2d_hub.corpus.library import open_library
from m2d_hub.demo.listening import MOST_S, listen
from m2d_hub.demo.page import Answers, serve

# A microphone that beeps, and no question whether it may be used.
CHROMIUM_OPTIONS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 60_000
FOLDER = ["speech_it_1.wav", "speech_it_2.wav", "tabla_stroke.flac", "birds_1.ogg"]


def small(**settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 96), embed_dim=64, depth=1)
    return m2d_hub.M2D(ModelConfig(encoder=encoder, name="small", **settings)).eval()


@pytest.fixture
def folder(clips, tmp_path, monkeypatch):
    """Some clips, and a file that cannot be read; what is kept of them goes to a cache of the test."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    place = tmp_path / "sounds"
    place.mkdir()
    for name in FOLDER:
        shutil.copy(clips / name, place)
    (place / "broken.wav").write_text("no sound")
    return place


@pytest.fixture
def model_folder(tmp_path):
    small().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def names_of(matches):
    return [os.path.basename(match.file) for match in matches]


def test_the_folder_is_embedded_once_and_again_what_changed(folder, model_folder, clips):
    model = m2d_hub.load_model(model_folder, device="cpu")
    heard = listen(model, clips / "speech_it_1.wav")
    first = open_library(folder, model_folder, "cpu")
    assert list(first.failed) == [str(folder / "broken.wav")]
    assert names_of(first.nearest(heard.waveform, model, 9))[0] == "speech_it_1.wav"
    written = first.embeddings.stat().st_mtime_ns
    again = open_library(folder, model_folder, "cpu")
    assert again.embeddings == first.embeddings and first.embeddings.stat().st_mtime_ns == written

    (folder / "speech_it_2.wav").unlink()
    shutil.copy(clips / "speech_it_1.wav", folder / "birds_1.ogg")  # another content of the same name
    changed = open_library(folder, model_folder, "cpu").nearest(heard.waveform, model, 9)
    assert sorted(names_of(changed)) == ["birds_1.ogg", "speech_it_1.wav", "tabla_stroke.flac"]
    assert {match.score > 0.999 for match in changed if "tabla" not in match.file} == {True}


def test_tags_over_time_are_those_of_the_model(clips):
    pytest.importorskip("matplotlib")
    model = small(head=HeadConfig(3), labels=("dog", "cat", "rain & wind"))
    heard = listen(model, clips / "tabla_stroke.flac")
    waveform = heard.waveform.numpy()
    assert heard.tags == model.classify(waveform, top_k=6)[0]
    scores = model.classify_frames(waveform).features[0].numpy()
    assert heard.tag_scores == pytest.approx(scores[:, [tag.index for tag in heard.tags]].T)
    card, similar = Answers(model, None).one(str(clips / "tabla_stroke.flac"))
    assert "rain &amp; wind" in card and "has no tags" not in card and similar == ""


def test_a_long_file_is_shown_to_the_limit_and_says_so(tmp_path):
    pytest.importorskip("matplotlib")
    soundfile.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(75 * 8_000), 8_000)
    card, _ = Answers(small(), None).one(str(tmp_path / "long.wav"))
    assert f'data-seconds="{MOST_S:.4f}"' in card and f"Only the first {MOST_S} s are shown" in card


def test_two_sounds_are_compared_by_the_cosine_of_their_clips(clips):
    pytest.importorskip("matplotlib")
    model = small()
    paths = [str(clips / name) for name in ("speech_it_1.wav", "tabla_stroke.flac")]
    one, other = model.encode_clip(paths).double().numpy()
    expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert f'<span class="m2d-big">{expected:.3f}</span>' in Answers(model, None).two(*paths)


def test_words_are_ranked_for_a_model_with_a_text_space(clips, monkeypatch):
    torch.manual_seed(0)
    model = small(clap=ClapConfig(dim=4, audio_hidden_dim=8, text_dim=6, text_hidden_dim=8))
    path = str(clips / "tabla_stroke.flac")
    clip = model.encode_audio_text_space(path, normalize=True)
    monkeypatch.setattr(model.clap, "encode_text", lambda texts: torch.cat([-clip, clip]))
    answer = Answers(model, None).words(path, "a dog barks\n\n a drum \n")
    assert re.findall(r"<span>([a-z ]+)</span>", answer) == ["a drum", "a dog barks"]


def test_mistakes_are_told_in_sentences_with_the_users_own_names(tmp_path):
    broken = tmp_path / "a1b2c3" / "broken.wav"
    broken.parent.mkdir()
    broken.write_text("no sound")
    answers = Answers(small(), None)
    for told in (answers.one(str(broken))[0], answers.two(str(broken), str(broken))):
        assert 'role="alert"' in told and "broken.wav" in told and str(tmp_path) not in told
    assert "Two sounds are needed" in answers.two(str(broken), None)
    assert "at least one line" in answers.words(str(broken), " \n")
    assert answers.one(None) == ("", "")


def test_files_of_the_folder_that_cannot_be_read_are_named(folder, model_folder, monkeypatch):
    page = types.SimpleNamespace(local_url="http://127.0.0.1:7860/", block_thread=lambda: None)
    monkeypatch.setattr("m2d_hub.demo.page.serve", lambda *arguments, **settings: page)
    result = CliRunner().invoke(main, ["demo", str(folder), "--model", model_folder, "--device", "cpu"])
    assert result.exit_code == 0 and "Open http://127.0.0.1:7860/" in result.stdout
    assert f"Left out: {folder / 'broken.wav'} cannot be read" in result.stderr


def test_a_missing_gradio_is_told_with_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(main, ["demo", "--device", "cpu"])
    assert result.exit_code == 1 and "pip install 'm2d-hub[demo]'" in result.output


def test_a_taken_port_is_told_with_what_to_do():
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(m2d_hub.ConfigError, match=rf"^127\.0\.0\.1, port {port}: .*give another port"):
            serve(small(), "small", None, port=port, wait=False)


# In a browser


@pytest.fixture(scope="module")
def address(clips, tmp_path_factory):
    """Where the page of m2d-mini is served, with a folder."""
    pytest.importorskip("gradio")
    place = tmp_path_factory.mktemp("demo")
    for name in FOLDER:
        shutil.copy(clips / name, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        model = m2d_hub.load_model("m2d-mini", device="cpu")
        page = serve(model, "m2d-mini", open_library(place, "m2d-mini", "cpu"), wait=False)
        yield page.local_url
        page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page as another user: ``visit(width)`` -> page, whose ``asked`` lists all addresses."""
    contexts = []

    def opened(width=1200):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#one input[type=file]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()


def give(page, path, where="#one"):
    page.set_input_files(f"{where} input[type=file]", str(path))


def test_the_served_page_names_nothing_to_load_from_elsewhere(address):
    with urllib.request.urlopen(address) as answer:
        served = answer.read().decode()
    assert "<script" in served
    assert (
        re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>", served)
        == []
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_a_sound_is_answered_with_pictures_and_the_most_similar_ones(width, visit, address, clips):
    page = visit(width)
    give(page, clips / "speech_it_1.wav")
    assert page.text_content("#shown h3") == "speech_it_1.wav"
    assert "has no tags" in page.text_content("#shown .m2d-note")
    found = page.locator("#similar li .m2d-line span:first-child").all_text_contents()
    assert found[:2] == ["speech_it_1.wav", "speech_it_2.wav"] and len(found) == len(FOLDER)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    shapes = page.evaluate(
        "[...document.querySelectorAll('#shown img')].map(i => i.complete && i.naturalWidth)"
    )
    assert len(shapes) == 2 and all(shapes)

    # A click in the middle of the pictures goes there, and the line with it.
    page.wait_for_function("document.querySelector('#shown audio').duration > 0")
    page.locator("#shown .m2d-timed").click()
    page.wait_for_function("parseFloat(document.querySelector('#shown .m2d-playhead').style.left) > 49")
    duration = page.evaluate("document.querySelector('#shown audio').duration")
    assert page.evaluate("document.querySelector('#shown audio').currentTime") == pytest.approx(
        duration / 2, rel=0.02
    )
    assert {url for url in page.asked if not url.startswith((address, "data:", "blob:"))} == set()


@pytest.mark.slow
def test_a_bad_file_and_a_long_one_are_told_in_a_sentence(visit, tmp_path):
    (tmp_path / "broken.wav").write_text("no sound")
    page = visit()
    give(page, tmp_path / "broken.wav")
    told = page.text_content("#shown [role=alert]")
    assert told.startswith("broken.wav ") and "/" not in told.split()[0]
    soundfile.write(tmp_path / "long.wav", np.zeros(75 * 8_000), 8_000)
    page = visit()
    give(page, tmp_path / "long.wav")
    assert f"Only the first {MOST_S} s are shown" in page.text_content("#shown .m2d-note")


@pytest.mark.slow
def test_a_recording_is_answered(visit):
    page = visit()
    page.get_by_role("button", name="Record audio").click()
    page.locator("#one").get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1_500)
    page.locator("#one").get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_selector("#shown .m2d-sound")
    assert 0.5 < float(page.get_attribute("#shown .m2d-sound", "data-seconds")) < 30


@pytest.mark.slow
def test_two_users_at_once_get_their_own_answers(visit, clips):
    names = ["speech_en_1.wav", "tabla_stroke.flac"]
    pages = [visit(), visit()]
    for page, name in zip(pages, names, strict=True):
        give(page, clips / name)
    assert [page.text_content("#shown h3") for page in pages] == names


@pytest.mark.slow
def test_two_sounds_are_compared_in_the_browser(visit, clips):
    page = visit()
    page.get_by_role("tab", name="Two sounds").click()
    for where, name in (("#left", "speech_it_1.wav"), ("#right", "speech_it_2.wav")):
        give(page, clips / name, where)
        page.wait_for_selector(f"{where} [data-testid^=waveform]")
    page.click("#compare")
    assert 0.5 < float(page.text_content("#compared .m2d-big")) < 1
