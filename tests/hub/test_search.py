"""Search: the nearest embeddings by cosine, in every format, and what cannot be compared is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.config import EncoderConfig, ModelConfig

OUTS = ["out.parquet", "out.npz", "out.safetensors", "out"]
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
    """What numpy says of the clips' embeddings, by file."""
    loaded = m2d_hub.load_model(model, device="cpu")
    query, *others = loaded.encode_clip([query, *files]).double().numpy()
    return {
        str(file): query @ other / np.linalg.norm(query) / np.linalg.norm(other)
        for file, other in zip(files, others, strict=True)
    }


def run(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


@pytest.mark.parametrize("name", OUTS)
def test_scores_are_the_cosines_in_their_order_in_every_format(name, sounds, clips, tiny, tmp_path):
    out = embed(sounds, tmp_path / name, tiny)
    query = clips / "tabla_loop.mp3"
    found = m2d_hub.search(query, out, top_k=3, device="cpu")
    expected = cosines(tiny, query, sorted(sounds.iterdir()))
    ranked = sorted(expected, key=expected.__getitem__, reverse=True)
    assert [match.file for match in found] == ranked[:3]
    assert [match.score for match in found] == pytest.approx(
        [expected[file] for file in ranked[:3]], abs=1e-5
    )
    assert {(match.start_s, match.end_s) for match in found} == {(None, None)}


@pytest.mark.parametrize("kind", ["frames", "layers"])
@pytest.mark.parametrize("name", OUTS)
def test_a_part_of_a_recording_is_found_where_it_is(name, kind, tiny, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(48_000).astype(np.float32)
    noise[15_360:30_720] += np.sin(np.arange(15_360) * 0.3)  # 0.96 to 1.92 s, a whole window of the model
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "long.wav", noise, 16_000, subtype="FLOAT")
    out = embed(tmp_path / "long.wav", tmp_path / name, tiny, kind=kind)
    [found] = m2d_hub.search(noise[15_360:30_720], out, device="cpu")
    assert found.score > 0.99
    # Frames have 160 ms; a window's first is centred on its beginning.
    assert found.start_s == pytest.approx(0.96, abs=0.17) and found.end_s == pytest.approx(1.92, abs=0.17)


def test_a_file_of_the_output_is_no_match_of_itself_and_needs_no_model(sounds, tiny, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    out = embed(sounds, tmp_path / "out.npz", model)
    shutil.rmtree(model)
    query = sounds / NAMES[0]
    found = m2d_hub.search(query, out, top_k=9)
    assert len(found) == 3 and str(query) not in {match.file for match in found}
    query.unlink()
    assert m2d_hub.search(str(query), out, top_k=9) == found


def test_a_file_that_changed_is_embedded_anew(sounds, clips, tiny, tmp_path):
    out = embed(sounds, tmp_path / "out.npz", tiny)
    query = sounds / "tabla_stroke.flac"
    shutil.copy(clips / "speech_it_1.wav", query)
    best = m2d_hub.search(query, out, top_k=1, device="cpu")[0]
    assert best.file.endswith("speech_it_1.wav") and best.score == pytest.approx(1, abs=1e-5)


def test_other_weights_than_those_of_the_output_are_refused(sounds, clips, tiny, tmp_path):
    out = embed(sounds, tmp_path / "out.npz", tiny)
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(m2d_hub.ConfigError, match=r"out\.npz was embedded with .*tiny.*other.* are others"):
        m2d_hub.search(clips / "birds_1.ogg", out, model=other)


def test_another_size_is_told_with_both(sounds, tiny, tmp_path):
    out = embed(sounds, tmp_path / "out.npz", tiny)
    wide = m2d_hub.load_model(save_model(tmp_path / "wide", width=192), device="cpu")
    with pytest.raises(m2d_hub.ConfigError, match=r"of 320 values, but the query's has 960"):
        m2d_hub.search(np.ones(16_000), out, model=wide)


@pytest.mark.parametrize("damage", ["text", "cut"])
@pytest.mark.parametrize("name", OUTS)
def test_what_embed_did_not_write_is_told(name, damage, sounds, tiny, tmp_path):
    out = embed(sounds, tmp_path / name, tiny)
    files = [out] if out.is_file() else [out / "index.csv", *out.rglob("*.npy")]
    for file in files:
        file.write_bytes(b"no embeddings" if damage == "text" else file.read_bytes()[:-40])
    with pytest.raises(m2d_hub.ConfigError, match="was not written by m2d-hub embed, or is damaged"):
        m2d_hub.search(np.ones(16_000), out, device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.npz", "does not exist"), ("none.txt", "unknown suffix"), ("begun.npz", "is not finished: run")],
)
def test_no_output_is_told(name, message, tmp_path):
    (tmp_path / "begun.npz.parts").mkdir()
    with pytest.raises(m2d_hub.ConfigError, match=rf"{name}.* {message}|{name}: {message}"):
        m2d_hub.search("query.wav", tmp_path / name)


def test_the_command_answers_in_words_in_json_and_in_csv(sounds, tiny, tmp_path):
    out = embed(sounds, tmp_path / "out.npz", tiny)
    query = sounds / NAMES[0]
    expected = m2d_hub.search(query, out, top_k=2)
    lines = run("search", query, out, "-k", 2).splitlines()
    assert lines == [f"{match.score:6.3f}  {match.file}" for match in expected]
    told = json.loads(run("search", query, out, "--top", 2, "--json"))
    assert [(row["file"], row["score"]) for row in told] == [(m.file, m.score) for m in expected]
    header, *rows = csv.reader(run("search", query, out, "-k", 2, "--csv").splitlines())
    assert header == ["file", "score", "start_s", "end_s"]
    assert [(row[0], float(row[1]), *row[2:]) for row in rows] == [
        (m.file, m.score, "", "") for m in expected
    ]
    assert "--json and --csv" in run("search", query, out, "--json", "--csv", status=2)


def test_a_wrong_query_is_told_in_one_line(sounds, tiny, tmp_path):
    out = embed(sounds, tmp_path / "out.npz", tiny)
    assert run("search", tmp_path / "none.wav", out, status=1).startswith("Error: ")
