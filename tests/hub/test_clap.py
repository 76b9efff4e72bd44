"""Audio and text in one space: audio and text projections, and a small random text encoder."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli.main import main
from m2d_hub.config import ClapConfig, EncoderConfig, ModelConfig
from m2d_hub.errors import CheckpointError, ConfigError, DownloadError
from m2d_hub.nn.clap import Clap
from m2d_hub.nn.encoder import frames_to_tokens
from m2d_hub.nn.text_encoder import load_text_encoder, pool
from m2d_hub.zero_shot import classify_by_text

from ..conftest import TEXT_DIM

CLIP = Path(__file__).parents[1] / "data" / "tabla_stroke.flac"


def clap_config(**overrides):
    defaults = {"dim": 12, "audio_hidden_dim": 20, "text_dim": TEXT_DIM, "text_hidden_dim": 24}
    return ClapConfig(**(defaults | overrides))


@pytest.fixture
def hub_cache_without_network(tmp_path, monkeypatch):
    """An empty Hugging Face cache, offline."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


def test_two_layer_projection_takes_the_mean_of_the_patch_tokens():
    torch.manual_seed(0)
    clap, tokens = Clap(clap_config(), embed_dim=8), torch.randn(3, 5, 8)
    weights = clap.state_dict()
    hidden = F.relu(F.linear(tokens.mean(1), weights["audio_proj.0.weight"], weights["audio_proj.0.bias"]))
    expected = F.linear(hidden, weights["audio_proj.2.weight"], weights["audio_proj.2.bias"])
    torch.testing.assert_close(clap.project_audio(tokens), expected, atol=1e-6, rtol=1e-5)


def one_head_block(weights, prefix, tokens):
    """A pre-norm block with one head and LayerNorm eps 1e-5, written from the facts."""

    def linear(name, features):
        return F.linear(features, weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"])

    def norm(name, features):
        scale, shift = weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"]
        return F.layer_norm(features, features.shape[-1:], scale, shift, eps=1e-5)

    query, key, value = linear("attn.qkv", norm("norm1", tokens)).chunk(3, dim=-1)
    attention = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
    tokens = tokens + linear("attn.proj", attention @ value)
    return tokens + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", tokens))))


@pytest.mark.parametrize(("num_blocks", "mlp_ratio"), [(1, 1), (3, 2)])
def test_semantic_projection_returns_its_normalised_first_token(num_blocks, mlp_ratio):
    torch.manual_seed(0)
    clap, tokens = Clap(clap_config(dim=8, audio_blocks=num_blocks), embed_dim=8), torch.randn(2, 5, 8)
    for parameter in clap.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    weights = {name.removeprefix("audio_proj."): value for name, value in clap.state_dict().items()}
    assert weights["sem_blocks.0.mlp.fc1.weight"].shape == (8 * mlp_ratio, 8)
    expected = torch.cat([weights["sem_token"].expand(2, -1, -1), tokens], dim=1)
    for index in range(num_blocks):
        expected = one_head_block(weights, f"sem_blocks.{index}", expected)
    expected = F.layer_norm(expected[:, 0], (8,), weights["norm.weight"], weights["norm.bias"], eps=1e-5)
    torch.testing.assert_close(clap.project_audio(tokens), expected, atol=1e-5, rtol=1e-4)


def test_parameters_carry_the_published_names():
    linear = set(Clap(clap_config(), embed_dim=8).state_dict())
    assert linear == {"logit_scale", "text_proj.weight", "text_proj.bias"} | {
        f"audio_proj.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    mlp = set(Clap(clap_config(text_projection="mlp"), embed_dim=8).state_dict())
    assert {name for name in mlp if name.startswith("text")} == {
        f"text_proj.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    semantic = set(Clap(clap_config(dim=8, audio_blocks=1), embed_dim=8).state_dict())
    assert {
        "audio_proj.sem_token",
        "audio_proj.sem_blocks.0.attn.qkv.bias",
        "audio_proj.norm.weight",
    } < semantic


def test_pooling_ignores_padding_on_either_side():
    tokens = torch.tensor([[1.0, 2.0, 9.0], [9.0, 3.0, 5.0]]).unsqueeze(-1)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(tokens, mask, "mean").flatten().tolist() == [1.5, 4.0]
    assert pool(tokens, mask, "cls").flatten().tolist() == [1.0, 3.0]
    assert pool(tokens, mask, "last").flatten().tolist() == [2.0, 5.0]


def test_text_features_are_those_of_transformers(text_folder):
    import transformers

    clap = Clap(clap_config(text_encoder=str(text_folder)), embed_dim=8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_folder)
    model = transformers.AutoModel.from_pretrained(text_folder).eval()
    with torch.no_grad():
        hidden = model(**tokenizer("a dog barks", return_tensors="pt")).last_hidden_state  # no padding at all
        expected = F.linear(hidden.mean(1), clap.text_proj.weight, clap.text_proj.bias)
    actual = clap.encode_text(["a dog barks", "rain falls on the roof"])  # the first is padded here
    torch.testing.assert_close(actual[:1], expected, atol=1e-5, rtol=1e-4)


def test_texts_longer_than_512_tokens_are_cut(text_folder):
    clap = Clap(clap_config(text_encoder=str(text_folder), text_pooling="mean"), embed_dim=8)
    cut = clap.encode_text(["dog " * 510])
    torch.testing.assert_close(clap.encode_text(["dog " * 510 + "rain " * 200]), cut)


@pytest.mark.parametrize("wrapper", ["", "model."])
def test_text_encoder_inside_the_checkpoint_is_used_and_kept(text_folder, wrapper):
    import transformers

    torch.manual_seed(1)
    other = transformers.BertModel(transformers.AutoConfig.from_pretrained(text_folder)).eval()
    inside = {f"text_encoder.{wrapper}{name}": value for name, value in other.state_dict().items()}
    clap = Clap(clap_config(text_encoder=str(text_folder)), embed_dim=8).eval()
    clap.load_state_dict(clap.state_dict() | inside)
    batch = transformers.AutoTokenizer.from_pretrained(text_folder)("a dog", return_tensors="pt")
    with torch.no_grad():
        expected = clap.text_proj(other(**batch).last_hidden_state.mean(1))
    torch.testing.assert_close(clap.encode_text(["a dog"]), expected, atol=1e-5, rtol=1e-4)
    assert inside.keys() < clap.state_dict().keys()
    doubled = {name: 2 * value if value.is_floating_point() else value for name, value in inside.items()}
    clap.load_state_dict(clap.state_dict() | doubled)
    assert not torch.allclose(clap.encode_text(["a dog"]), expected, atol=1e-3)


def test_text_encoder_inside_that_does_not_fit_lists_the_names(text_folder):
    clap = Clap(clap_config(text_encoder=str(text_folder)), embed_dim=8)
    clap.load_state_dict(clap.state_dict() | {"text_encoder.pooler.dense.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"(?s)do not fit .*Missing key.*embeddings"):
        clap.encode_text(["a dog"])


def test_text_encoder_of_another_width_is_refused(text_folder):
    clap = Clap(clap_config(text_encoder=str(text_folder), text_dim=32), embed_dim=8)
    with pytest.raises(CheckpointError, match="returns 16 features but the projection expects 32"):
        clap.encode_text(["a dog"])


@pytest.mark.parametrize("texts", ["a dog", [], ["a dog", 3]])
def test_encode_text_takes_lists_of_strings_only(texts):
    with pytest.raises(ConfigError) as error:
        Clap(clap_config(), embed_dim=8).encode_text(texts)
    assert str(error.value) == f"texts must be a list of one or more strings, got {texts!r}."


def test_a_missing_text_encoder_explains_how_to_work_offline(hub_cache_without_network):
    pytest.importorskip("transformers")
    with pytest.raises(DownloadError) as error:
        Clap(clap_config(), embed_dim=8).encode_text(["a dog"])
    assert str(error.value).startswith("The text encoder 'thenlper/gte-base' could not be loaded: ")
    assert "hf download thenlper/gte-base --local-dir FOLDER" in str(error.value)
    assert "model.clap.load_text_encoder('FOLDER')" in str(error.value)


def test_text_encoder_is_loaded_from_a_copied_folder(text_folder, hub_cache_without_network):
    clap = Clap(clap_config(), embed_dim=8)
    clap.load_text_encoder(text_folder)
    assert clap.encode_text(["a dog"]).shape == (1, 12)


def test_repository_with_code_of_its_own_is_not_run_unasked(tmp_path, text_folder):
    pytest.importorskip("transformers")
    for file in text_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = '{"model_type": "unheard-of", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}'
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match=r"load_text_encoder\(trust_remote_code=True\)"):
        load_text_encoder(str(tmp_path), "own")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def clap_model(text_folder):
    """A tiny model with a text space, random weights and the small text encoder."""
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 32), embed_dim=64, depth=1)
    config = ModelConfig(encoder=encoder, clap=clap_config(text_encoder=str(text_folder)), name="tiny-clap")
    return m2d_hub.M2D(config).eval()


def test_audio_and_text_meet_in_one_space(clap_model):
    audio = clap_model.encode_audio_text_space(torch.randn(2, 16_000), normalize=True)
    text = clap_model.encode_text(["a dog barks", "rain", "the roof"], normalize=True)
    assert (audio.shape, text.shape) == ((2, 12), (3, 12))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(audio.norm(dim=1), torch.ones(2))
    assert not torch.allclose(clap_model.encode_text(["rain"]).norm(dim=1), torch.ones(1), atol=1e-3)


@pytest.mark.parametrize("projection", [{}, {"dim": 64, "text_dim": 64, "audio_blocks": 1}])
def test_a_clip_is_projected_from_all_its_tokens(projection):
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 32), embed_dim=64, depth=1)
    model = m2d_hub.M2D(ModelConfig(encoder=encoder, clap=clap_config(**projection))).eval()
    waveforms = [torch.randn(20_000), torch.randn(3_000)]
    found = model.encode_audio_text_space(waveforms, batch_size=3)
    with torch.no_grad():
        expected = [
            model.clap.project_audio(frames_to_tokens(model.encode_frames(own).features, num_freq=5))
            for own in waveforms
        ]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)


def test_texts_are_ranked_by_their_scaled_cosine_with_each_clip(clap_model):
    waveform, texts = torch.randn(2, 16_000), ["a dog barks", "rain", "the roof"]
    audio = clap_model.encode_audio_text_space(waveform)
    cosine = F.cosine_similarity(audio[:, None], clap_model.encode_text(texts)[None], dim=-1)
    scores = (cosine / 0.07).softmax(dim=1)  # a fresh model's temperature
    for tags, expected in zip(classify_by_text(clap_model, waveform, texts, top_k=2), scores, strict=True):
        order = expected.argsort(descending=True)[:2].tolist()
        assert [tag.label for tag in tags] == [texts[index] for index in order]
        assert [tag.index for tag in tags] == order
        assert [tag.score for tag in tags] == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_tag_command_scores_each_of_several_texts(clap_model, tmp_path):
    clap_model.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--device", "cpu", "--json", str(CLIP)]
    expected = classify_by_text(clap_model, CLIP, ["a dog barks", "rain", "the roof"], top_k=2)[0]
    texts = ["--texts", "a dog barks", "--texts", "rain", "--top", "2", "--texts", "the roof"]
    result = CliRunner().invoke(main, ["tag", *texts, *arguments])
    assert result.exit_code == 0, result.output
    tags = json.loads(result.stdout)[0]["tags"]
    assert [(tag["label"], tag["index"]) for tag in tags] == [(tag.label, tag.index) for tag in expected]
    assert [tag["score"] for tag in tags] == pytest.approx([tag.score for tag in expected], abs=1e-6)


def test_text_encoder_inside_travels_through_saving_and_loading(clap_model, text_folder, tmp_path):
    import transformers

    torch.manual_seed(1)
    other = transformers.BertModel(transformers.AutoConfig.from_pretrained(text_folder)).eval()
    inside = {f"clap.text_encoder.{name}": value for name, value in other.state_dict().items()}
    clap_model.load_state_dict(clap_model.state_dict() | inside)
    clap_model.save_pretrained(tmp_path)
    loaded = m2d_hub.load_model(tmp_path, device="cpu")
    assert torch.equal(loaded.encode_text(["rain"]), clap_model.encode_text(["rain"]))
    loaded.clap._text_tensors.clear()
    loaded.clap.load_text_encoder()
    assert not torch.equal(loaded.encode_text(["rain"]), clap_model.encode_text(["rain"]))
