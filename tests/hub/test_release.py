"""The cache of published weights: checked, converted once, verified at each load."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from m2d_hub.errors import CheckpointError, ChecksumError, DownloadError, UnknownModelError
from m2d_hub.pretrained.checkpoint import load_checkpoint
from m2d_hub.pretrained.registry import MODELS
from m2d_hub.pretrained.release import extract_checkpoint, fetch, load_all_tensors
from m2d_hub.pretrained.source import model_info

from ..nobody import as_nobody
from .release_server import (
    checkpoint_bytes,
    clap_tensors,
    encoder_tensors,
    fine_tuned_tensors,
    pretraining_tensors,
    release_zip,
    semantic_tensors,
    tiny_info,
    zip_bytes,
)

TINY = tiny_info()
ZIP = f"downloads/{TINY.folder}.zip"


@pytest.fixture
def server(release_host, monkeypatch):
    """The release host with one tiny encoder."""
    monkeypatch.setitem(MODELS, "tiny", TINY)
    publish(release_host, TINY, encoder_tensors())
    return release_host


def publish(server, info, tensors, **options):
    server.files[f"/{info.url_path}"] = release_zip(info, tensors, **options)


def get(root, info=TINY, *, offline=False):
    return fetch(info, root, offline=offline)


def refused(root, error, info=TINY, **options):
    with pytest.raises(error) as raised:
        get(root, info, **options)
    return str(raised.value)


def files_in(root):
    """Files of the cache, without locks."""
    paths = (path for path in root.rglob("*") if path.is_file() and ".locks" not in path.parts)
    return sorted(str(path.relative_to(root)) for path in paths)


LAYOUTS = {
    "tensors alone": (TINY, lambda: encoder_tensors(), False),
    "with settings and statistics": (
        TINY,
        lambda: encoder_tensors() | {"norm_stats": torch.tensor([-6.5, 3.5])},
        True,
    ),
    "backbone prefix": (TINY, lambda: {f"backbone.{k}": v for k, v in encoder_tensors().items()}, True),
    "full": (replace(TINY, pretraining=True), lambda: encoder_tensors() | pretraining_tensors(), True),
    "head on frames": (replace(TINY, num_classes=6), lambda: fine_tuned_tensors(in_features=320), False),
    "head on tokens": (replace(TINY, num_classes=6), lambda: fine_tuned_tensors(in_features=64), False),
    "text space": (replace(TINY, text_space=True), lambda: encoder_tensors() | clap_tensors(), True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_published_layout_keeps_its_numbers(server, tmp_path, layout):
    info, make_tensors, wrapped = LAYOUTS[layout]
    published = make_tensors()
    publish(server, info, published, wrapped=wrapped)
    loaded = load_checkpoint(get(tmp_path, info))
    heads = {"module.head.mlp.mlp.0": "head.linear", "module.head.norm": "head.norm"}
    for name, tensor in loaded.tensors.items():
        endings = [name, name.removeprefix("encoder."), name.removeprefix("clap.")]
        endings += [name.replace(own, theirs) for theirs, own in heads.items()]
        source = [key for key in published if any(key == e or key.endswith(f"backbone.{e}") for e in endings)]
        assert len(source) == 1, name
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, published[source[0]]), name
    config = loaded.config
    assert (config.name, config.license, config.source) == ("tiny", info.license, info.source)
    expected = (-6.5, 3.5) if "norm_stats" in published else (-7.1, 4.2)
    assert (config.frontend.mean, config.frontend.std) == pytest.approx(expected)


# Counts of tensors and statistics as the authors' notebooks print them for these files.
AUTHORS_FILES = {
    "m2d-resp-0.7": (151, (-7.1, 4.2), lambda sizes: {}),
    "m2d-clap-2025": (166, (-7.2618, 4.3512), lambda sizes: semantic_tensors()),
}


@pytest.mark.parametrize("name", AUTHORS_FILES)
def test_the_authors_files_without_pretraining_parts_are_accepted(release_host, tmp_path, name):
    number, statistics, extra = AUTHORS_FILES[name]
    info = replace(MODELS[name], embed_dim=64)
    tensors = encoder_tensors(info.input_size, depth=12) | extra(info)
    tensors["norm_stats"] = torch.tensor(statistics)
    assert len(tensors) == number
    publish(release_host, info, tensors, file=info.filename, wrapped=False)
    config = load_checkpoint(get(tmp_path, info)).config
    assert config.frontend.mean == pytest.approx(statistics[0])
    assert config.frontend.std == pytest.approx(statistics[1])
    assert (config.encoder.input_size, config.frontend.sample_rate) == (info.input_size, 16_000)
    if info.text_space:
        assert (config.clap.text_encoder, config.clap.audio_blocks) == ("google-bert/bert-base-uncased", 1)


def test_the_first_load_leaves_converted_weights_that_all_readers_of_the_cache_can_read(server, tmp_path):
    info = replace(TINY, pretraining=True)
    publish(server, info, encoder_tensors() | pretraining_tensors())
    previous = os.umask(0o022)
    try:
        folder = get(tmp_path, info)
    finally:
        os.umask(previous)
    names = ("config.json", "model.safetensors", "origin.json", "pretraining.safetensors")
    assert files_in(tmp_path) == [f"hashes/{TINY.folder}.zip.sha256", *(f"tiny/{name}" for name in names)]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_a_later_load_uses_no_network_and_writes_nothing(server, tmp_path):
    folder = get(tmp_path)
    os.utime(folder / "model.safetensors", (1, 1))  # as in a copy: it is hashed, which cannot be recorded
    paths = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for path in paths:
        path.chmod(0o555)
    with as_nobody(tmp_path):
        assert get(tmp_path) == get(tmp_path, offline=True) == folder
        message = refused(tmp_path, DownloadError, tiny_info("other"))
    for path in paths:
        path.chmod(0o755)
    assert f"{tmp_path}/.locks cannot be written (" in message
    assert len(server.requests) == 1


def test_pretraining_parts_are_stored_apart_and_returned_under_their_published_names(server, tmp_path):
    info, statistics = replace(TINY, pretraining=True), torch.tensor([-6.5, 3.5])
    published = encoder_tensors() | pretraining_tensors() | {"norm_stats": statistics}
    publish(server, info, published)
    folder = get(tmp_path, info)
    assert all(name.startswith("encoder.") for name in load_checkpoint(folder).tensors)
    tensors = load_all_tensors(folder)
    assert tensors.keys() == published.keys()
    assert all(torch.equal(tensors[name], published[name]) for name in published)


def test_without_a_network_the_error_names_the_file_and_its_place_and_a_file_there_is_used(server, tmp_path):
    content = server.files[f"/{TINY.url_path}"]
    assert refused(tmp_path, DownloadError, offline=True) == (
        f"'tiny' is not in the cache ({tmp_path}/tiny), and the network is disabled (local_files_only or "
        f"HF_HUB_OFFLINE). To work offline, download {server.url}/{TINY.url_path} on another machine and put "
        f"it at {tmp_path}/{ZIP}."
    )
    (tmp_path / "downloads").mkdir()
    (tmp_path / ZIP).write_bytes(content)
    assert load_checkpoint(get(tmp_path, offline=True)).config.name == "tiny"
    assert not (tmp_path / ZIP).exists()
    assert server.requests == []


def changed(content, damage):
    middle = len(content) // 2
    return {
        "flipped byte": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        "truncated": content[:middle],
        "a web page": b"<html>Sign in to continue</html>",
    }[damage]


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "a web page"])
def test_a_refused_download_is_kept_until_it_is_deleted(server, tmp_path, damage):
    whole = server.files[f"/{TINY.url_path}"]
    server.files[f"/{TINY.url_path}"] = changed(whole, damage)
    for _ in range(2):
        message = refused(tmp_path, CheckpointError)
        assert message.startswith(f"{tmp_path}/{ZIP} cannot be read as a zip (")
        assert message.endswith(f"The file is kept: delete {tmp_path}/{ZIP} to download it again.")
    assert server.count(f"/{TINY.url_path}") == 1
    assert files_in(tmp_path) == [ZIP]
    (tmp_path / ZIP).unlink()
    server.files[f"/{TINY.url_path}"] = whole
    get(tmp_path)


def test_a_file_with_another_hash_than_published_or_recorded_is_refused(server, tmp_path):
    first = hashlib.sha256(server.files[f"/{TINY.url_path}"]).hexdigest()
    message = refused(tmp_path, ChecksumError, replace(TINY, sha256="0" * 64))
    assert f"its sha256 is {first}, recorded is {'0' * 64}." in message
    for path in get(tmp_path, replace(TINY, sha256=first)).iterdir():
        path.unlink()
    publish(server, TINY, encoder_tensors(seed=9))
    second = hashlib.sha256(server.files[f"/{TINY.url_path}"]).hexdigest()
    message = refused(tmp_path, ChecksumError)
    record = tmp_path / "hashes" / f"{TINY.folder}.zip.sha256"
    assert f"its sha256 is {second}, recorded is {first}." in message
    assert f"delete {record} and load the model again." in message
    record.unlink()
    get(tmp_path)


def test_changed_missing_and_unrecorded_weights_are_refused(server, tmp_path):
    path = get(tmp_path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    hint = f"Delete {path.parent} and load the model again."
    assert refused(tmp_path, ChecksumError) == f"{path} has changed since it was written. {hint}"
    path.unlink()
    assert "No such file" in refused(tmp_path, ChecksumError)
    (path.parent / "origin.json").write_text("{")
    assert "cannot be read as the record of a download (" in refused(tmp_path, ChecksumError)


def test_only_one_member_is_written_under_a_fixed_name_whatever_the_zip_says(tmp_path):
    outside = {"../../evil.txt": b"x", "/tmp/evil.pth.txt": b"x", "._weights.pth": b"x"}
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes({"../" * 9 + "x" * 300 + "\x01.pth": b"weights", **outside}))
    (tmp_path / "out").mkdir()
    assert extract_checkpoint(path, tmp_path / "out").read_bytes() == b"weights"
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "out"]
    assert os.listdir(tmp_path / "out") == ["checkpoint.pth"]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_bytes({"a.pth": bytes(20_000_000)}))
    with pytest.raises(CheckpointError, match=r"its \.pth file has 20,000,000 bytes in"):
        extract_checkpoint(tmp_path / "a.zip", tmp_path)
    assert os.listdir(tmp_path) == ["a.zip"]


def test_a_zip_of_several_checkpoints_gives_the_one_of_the_registry(tmp_path):
    (tmp_path / "a.zip").write_bytes(
        zip_bytes({"x/checkpoint-100.pth": b"100", "x/checkpoint-300.pth": b"300"})
    )
    with pytest.raises(CheckpointError, match=r"it must contain one \.pth file"):
        extract_checkpoint(tmp_path / "a.zip", tmp_path)
    assert extract_checkpoint(tmp_path / "a.zip", tmp_path, "checkpoint-300.pth").read_bytes() == b"300"


class Evil:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["torch file", "bare pickle"])
def test_a_malicious_pickle_does_not_run(server, tmp_path, kind):
    root, ran = tmp_path / "cache", tmp_path / "ran"
    torch_file = checkpoint_bytes(encoder_tensors() | {"evil": Evil(ran)}, wrapped=False)
    content = torch_file if kind == "torch file" else pickle.dumps(Evil(ran), protocol=2)
    server.files[f"/{TINY.url_path}"] = zip_bytes({f"{TINY.folder}/checkpoint-300.pth": content})
    message = refused(root, CheckpointError)
    assert "checkpoint.pth was not loaded: it is damaged, or contains more than tensors" in message
    assert "weights_only" not in message
    assert not ran.exists() and files_in(root) == [ZIP]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop("norm.bias"), r'Missing key.*"encoder\.norm\.bias"'),
        (lambda t: t.update(surprise=torch.ones(1)), "unknown layout: surprise"),
        (lambda t: t.update({"norm.bias": torch.ones(3)}), r"size mismatch for encoder\.norm\.bias"),
        (lambda t: t.update(pretraining_tensors()), "pretraining is True but must be False"),
    ],
)
def test_a_zip_with_other_tensors_than_this_models_is_refused(server, tmp_path, change, problem):
    tensors = encoder_tensors()
    change(tensors)
    publish(server, TINY, tensors)
    with pytest.raises(CheckpointError, match=problem):
        get(tmp_path)
    assert files_in(tmp_path) == [ZIP]


def test_files_of_a_killed_conversion_are_replaced(server, tmp_path):
    for folder in ("tiny.partial", "tiny"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(b"half")
    assert not model_info("tiny", cache_dir=tmp_path).on_disk
    assert load_checkpoint(get(tmp_path)).config.name == "tiny"
    assert not (tmp_path / "tiny.partial").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system that the zip (430 kB) and the weights in it fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs permission to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named_and_leaves_no_incomplete_weights(server, small_disk):
    message = refused(small_disk, DownloadError)
    assert f"The disk of {small_disk}" in message and "is full (" in message
    assert [name for name in files_in(small_disk) if not name.startswith("downloads/")] == []


def test_model_info_reports_the_cache_even_where_it_is_damaged(server, tmp_path):
    before = model_info("tiny", cache_dir=tmp_path)
    assert (before.on_disk, before.sha256, before.disk_bytes) == (False, None, None)
    folder = get(tmp_path)
    after = model_info("tiny", cache_dir=tmp_path)
    content = server.files[f"/{TINY.url_path}"]
    assert (after.on_disk, after.sha256) == (True, hashlib.sha256(content).hexdigest())
    assert after.download_bytes == len(content)
    assert after.disk_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert json.loads((folder / "origin.json").read_text())["url"] == f"{server.url}/{TINY.url_path}"
    (folder / "origin.json").write_text("[]")
    assert not model_info("tiny", cache_dir=tmp_path).on_disk
    with pytest.raises(UnknownModelError, match=r"Unknown model 'm2d-9'\. Available: "):
        model_info("m2d-9", cache_dir=tmp_path)
