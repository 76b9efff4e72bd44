"""Search: the nearest embeddings by cosine similarity in every format, and errors."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.config import EncoderConfig, ModelConfig

from ..stored_outputs import change_embeddings

NAMES = ["speech_it_1.wav", "speech_it_2.wav", "tabla_stroke.flac", "bang_explosion.ogg"]
pytest.importorskip("pyarrow")


def save_model(folder, seed=0, width=64):
    torch.manual_seed(seed)
    encoder = EncoderConfig(input_size=(80, 96), embed_dim=width, depth=1)
    m2d_hub.M2D(ModelConfig(encoder=encoder)).eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def sounds(clips, tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(clips / name, folder)
    return folder


def embed(sounds, out, model, **options):
    m2d_hub.embed_files(sounds, out, model=model, device="cpu", **options)
    return out


def cosines(model, query, files):
    """Cosines of the clips' embeddings by numpy, by file."""
    loaded = m2d_hub.load_model(model, device="cpu")
    query, *others = loaded.encode_clip([query, *files]).double().numpy()
    return {
        str(file): query @ other / np.linalg.norm(query) / np.linalg.norm(other)
        for file, other in zip(files, others, strict=True)
    }


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize("name", ["out.npz", "out.dataset", "out"])
def test_scores_are_cosines_in_descending_order_in_every_format(name, sounds, clips, tiny, tmp_path):
    out = embed(sounds, tmp_path / name, tiny)
    query = clips / "tabla_loop.mp3"
    found = m2d_hub.search(query, out, top_k=3, device="cpu")
    expected = cosines(tiny, query, sorted(sounds.iterdir()))
    ranked = sorted(expected, key=expected.__getitem__, reverse=True)[:3]
    assert [match.file for match in found] == ranked
    assert [match.score for match in found] == pytest.approx([expected[file] for file in ranked], abs=1e-5)
    assert {(match.start_s, match.end_s) for match in found} == {(None, None)}


@pytest.mark.parametrize(("name", "kind"), [("out.npz", "frames"), ("out.parquet", "layers")])
def test_section_of_a_recording_is_found_with_its_times(name, kind, tiny, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(48_000).astype(np.float32)
    noise[15_360:30_720] += np.sin(np.arange(15_360) * 0.3)  # 0.96 to 1.92 s, one window of the model
    soundfile.write(tmp_path / "long.wav", noise, 16_000, subtype="FLOAT")
    out = embed(tmp_path / "long.wav", tmp_path / name, tiny, kind=kind)
    [found] = m2d_hub.search(noise[15_360:30_720], out, device="cpu")
    assert found.score > 0.99
    # Frames have 160 ms; the first of a window is centred on its start.
    assert found.start_s == pytest.approx(0.96, abs=0.17) and found.end_s == pytest.approx(1.92, abs=0.17)


def test_file_of_the_output_needs_no_model_unless_it_changed(sounds, tiny, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    out = embed(sounds, tmp_path / "out.npz", model)
    shutil.rmtree(model)
    query = sounds / NAMES[0]
    found = m2d_hub.search(query, out, top_k=9)
    assert len(found) == 3 and str(query) not in {match.file for match in found}
    query.unlink()
    assert m2d_hub.search(str(query), out, top_k=9) == found

    changed = sounds / NAMES[2]
    shutil.copy(sounds / NAMES[1], changed)
    best = m2d_hub.search(changed, out, top_k=1, model=tiny, device="cpu")[0]  # embedded again
    assert best.file.endswith(NAMES[1]) and best.score == pytest.approx(1, abs=1e-5)


def test_other_weights_and_widths_than_the_outputs_are_refused(sounds, clips, tiny, tmp_path):
    out = embed(sounds, tmp_path / "out.npz", tiny)
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(m2d_hub.ConfigError, match=r"out\.npz was embedded with .*tiny"):
        m2d_hub.search(clips / "birds_1.ogg", out, model=other)
    wide = m2d_hub.load_model(save_model(tmp_path / "wide", width=192), device="cpu")
    with pytest.raises(m2d_hub.ConfigError, match=r"of 320 values, but the query has 960"):
        m2d_hub.search(np.ones(16_000), out, model=wide)


def test_missing_and_damaged_outputs_are_refused(sounds, tiny, tmp_path):
    with pytest.raises(m2d_hub.ConfigError, match="missing"):
        m2d_hub.search("query.wav", tmp_path / "missing.npz")
    out = embed(sounds, tmp_path / "out.npz", tiny)
    out.write_bytes(out.read_bytes()[:-40])
    with pytest.raises(m2d_hub.ConfigError, match="damaged"):
        m2d_hub.search(np.ones(16_000), out, device="cpu")


def test_embeddings_that_are_not_finite_are_skipped(sounds, tiny, tmp_path, caplog):
    out = embed(sounds, tmp_path / "out.npz", tiny)
    query = sounds / NAMES[0]
    expected = m2d_hub.search(query, out, top_k=9)

    def damage(embeddings):
        embeddings[sorted(NAMES).index(expected[0].file.rsplit("/")[-1]), 7] = np.inf

    change_embeddings(out, damage)
    assert m2d_hub.search(query, out, top_k=9) == expected[1:]
    assert "1 embeddings in" in caplog.text and "not finite" in caplog.text


def test_commands_output_is_text_or_json_and_an_error_is_one_line(sounds, tiny, tmp_path):
    out = embed(sounds, tmp_path / "out.npz", tiny)
    query = sounds / NAMES[0]
    expected = m2d_hub.search(query, out, top_k=2)
    lines = run("search", query, out, "-k", 2).output.splitlines()
    assert lines == [f"{match.score:6.3f}  {match.file}" for match in expected]
    rows = json.loads(run("search", query, out, "--top", 2, "--json").output)
    assert [(row["file"], row["score"]) for row in rows] == [(m.file, m.score) for m in expected]
    result = run("search", tmp_path / "no\x1b.wav", out, status=1)
    assert result.stderr.startswith("Error: ") and r"no\x1b.wav" in result.stderr
    assert result.stderr.count("\n") == 1 and "\x1b" not in result.stderr
