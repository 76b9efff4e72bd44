"""The table of named models and look-ups in it."""

import pytest

import m2d_hub
from m2d_hub.errors import M2DError, UnknownModelError
from m2d_hub.pretrained.published_names import AUDIOSET_LABELS, AUDIOSET_MIDS
from m2d_hub.pretrained.registry import MODELS, find_model, list_models

# Natural order: 16x4 before 220930 (as numbers) before as2m.
ALL_NAMES = [
    "m2d-0.6",
    "m2d-0.7",
    "m2d-0.7-16x4",
    "m2d-0.7-220930-encoder",
    "m2d-0.7-as2m",
    "m2d-0.7-encoder",
    "m2d-as-0.7",
    "m2d-as-0.7-32k",
    "m2d-as-0.7-32k-as2m",
    "m2d-as-0.7-as2m",
    "m2d-clap-2024",
    "m2d-clap-2024-as2m",
    "m2d-clap-2025",
    "m2d-mini",
    "m2d-mini-tags",
    "m2d-resp-0.7",
    "m2d-s-0.6-4s",
    "m2d-s-0.6-5s",
    "m2d-s-0.6-6s",
]


def test_list_models_gives_every_name_in_natural_order():
    assert list_models() == ALL_NAMES
    assert list_models("*-32K*") == ["m2d-as-0.7-32k", "m2d-as-0.7-32k-as2m"]


def test_each_published_model_states_its_licence_and_the_sizes_of_its_release_folder():
    for name in set(ALL_NAMES) - {"m2d-mini", "m2d-mini-tags"}:
        info = MODELS[name]
        assert info.license == "NTT evaluation licence (non-commercial)" and info.sha256 is None
        project = "eval-audio-repr" if name == "m2d-resp-0.7" else "m2d"
        assert info.source == f"https://github.com/nttcslab/{project}/releases/tag/{info.release}"
        if info.folder is not None:
            (mels, frames), (patch_mels, patch_frames) = info.input_size, info.patch_size
            assert f"-{mels}x{frames}p{patch_mels}x{patch_frames}" in info.folder
            assert ("p32k" in info.folder) == (info.sample_rate == 32_000)
            assert ("AS-FT" in info.folder or "as2m" in info.name) == (info.num_classes == 527)
    assert MODELS["m2d-s-0.6-4s"].url_path == "v0.2.0/m2d_s_vit_base-80x400p80x2-230201.zip"


def test_the_packaged_models_have_the_sizes_of_the_table_and_their_own_licence():
    for name in ("m2d-mini", "m2d-mini-tags"):
        info, config = MODELS[name], m2d_hub.load_model(name, device="cpu").config
        assert info.is_packaged and info.license == config.license == "Apache-2.0"
        assert info.num_classes == (config.head.num_classes if config.head else None)
        for size in ("input_size", "patch_size", "embed_dim", "depth"):
            assert getattr(info, size) == getattr(config.encoder, size)
    assert f" {info.num_classes} everyday sounds" in info.contents


def test_unknown_name_lists_the_likeliest_first_and_says_what_else_is_taken():
    with pytest.raises(UnknownModelError) as error:
        find_model("m2d-as-0.8")
    message = str(error.value)
    assert message.startswith("Unknown model 'm2d-as-0.8'. Available: m2d-as-0.7, ")
    assert all(name in message for name in ALL_NAMES)
    assert message.endswith(
        "See list_models(). A file, a folder, or 'hf-hub:org/repo[@revision]' is accepted as well."
    )
    assert isinstance(error.value, M2DError)


def test_audiosets_labels_follow_its_sorted_identifiers():
    assert list(AUDIOSET_MIDS) == sorted(AUDIOSET_MIDS)
    assert len(set(AUDIOSET_MIDS)) == len(set(AUDIOSET_LABELS)) == 527
    pairs = dict(zip(AUDIOSET_MIDS, AUDIOSET_LABELS, strict=True))
    # From AudioSet's class_labels_indices.csv.
    assert [pairs[mid] for mid in ("/m/09x0r", "/m/0bt9lr", "/m/05zppz", "/g/122z_qxw")] == [
        "Speech",
        "Dog",
        "Male speech, man speaking",
        "Firecracker",
    ]
