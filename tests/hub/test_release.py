"""The cache of published weights: downloaded once, checked, converted, verified ever after."""

import contextlib
import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from safetensors import SafetensorError

import m2d_hub.pretrained.archive
import m2d_hub.pretrained.cache
import m2d_hub.pretrained.download
import m2d_hub.pretrained.release
from m2d_hub.config import EncoderConfig, ModelConfig
from m2d_hub.errors import CheckpointError, ChecksumError, DownloadError, UnknownModelError
from m2d_hub.pretrained.cache import model_info, release_url
from m2d_hub.pretrained.folder import load_checkpoint, save_checkpoint
from m2d_hub.pretrained.registry import MODELS, find_model
from m2d_hub.pretrained.release import fetch, load_all_tensors

from ..nobody import as_nobody
from .release_server import (
    Fault,
    checkpoint_bytes,
    clap_tensors,
    encoder_tensors,
    fine_tuned_tensors,
    pretraining_tensors,
    release_zip,
    tiny_info,
    zip_bytes,
)

TINY = tiny_info()


@pytest.fixture
def server(release_host, monkeypatch):
    """The release host with one tiny encoder."""
    monkeypatch.setitem(MODELS, "tiny", TINY)
    publish(release_host, TINY, encoder_tensors())
    return release_host


def publish(server, info, tensors, **options):
    server.files[f"/{info.url_path}"] = release_zip(info, tensors, **options)


def left_in(root):
    """Files of the cache, without locks."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    )


@contextlib.contextmanager
def read_only(folder):
    """Nothing below ``folder`` can be written; root, who may write anywhere, acts as nobody meanwhile."""
    paths = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    for path in paths:
        path.chmod(0o555)
    try:
        with as_nobody(folder):
            yield
    finally:
        for path in paths:
            path.chmod(0o755)


def assert_nothing_left(root):
    assert left_in(root) == []
    assert not (root / ".work" / "tiny").exists()


def fails(server, root, error, info=TINY, **options):
    with pytest.raises(error) as raised:
        fetch(info, cache_dir=root, **options)
    return str(raised.value)


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
    loaded = load_checkpoint(fetch(info, cache_dir=tmp_path))
    heads = {"module.head.mlp.mlp.0": "head.linear", "module.head.norm": "head.norm"}
    for name, tensor in loaded.tensors.items():
        endings = [name, name.removeprefix("encoder."), name.removeprefix("clap.")]
        endings += [name.replace(own, theirs) for theirs, own in heads.items()]
        source = [key for key in published if any(key == e or key.endswith(f"backbone.{e}") for e in endings)]
        assert len(source) == 1, name
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, published[source[0]]), name
    assert (loaded.config.name, loaded.config.license, loaded.config.source) == (
        "tiny",
        info.license,
        info.source,
    )
    expected = (-6.5, 3.5) if "norm_stats" in published else (-7.1, 4.2)
    assert (loaded.config.frontend.mean, loaded.config.frontend.std) == pytest.approx(expected)


def test_first_load_leaves_the_converted_weights_and_no_zip(server, tmp_path):
    folder = fetch(TINY, cache_dir=tmp_path)
    assert folder == tmp_path / "tiny"
    assert left_in(tmp_path) == [
        f"hashes/{TINY.folder}.zip.sha256",
        "tiny/config.json",
        "tiny/model.safetensors",
        "tiny/origin.json",
    ]


def test_weights_may_be_read_by_whoever_may_read_the_cache(server, tmp_path):
    info = replace(TINY, pretraining=True)
    publish(server, info, encoder_tensors() | pretraining_tensors())
    previous = os.umask(0o022)
    try:
        folder = fetch(info, cache_dir=tmp_path)
    finally:
        os.umask(previous)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_cache_that_may_only_be_read_serves_what_it_has(server, tmp_path):
    folder = fetch(TINY, cache_dir=tmp_path)
    os.utime(folder / "model.safetensors", (1, 1))  # as a copy has it: the hash is taken, and cannot be noted
    with read_only(tmp_path):
        assert fetch(TINY, cache_dir=tmp_path) == folder
        message = fails(server, tmp_path, DownloadError, tiny_info("other"))
    assert f"{tmp_path}/.locks cannot be written (" in message
    assert "Change its permissions, or name another folder" in message


def test_second_load_touches_no_network(server, tmp_path):
    fetch(TINY, cache_dir=tmp_path)
    before = len(server.requests)
    assert fetch(TINY, cache_dir=tmp_path) == fetch(TINY, cache_dir=tmp_path, local_files_only=True)
    assert len(server.requests) == before == 1


def test_cache_is_beside_the_hubs_in_hf_home(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert fetch(TINY) == tmp_path / "m2d_hub" / "tiny"


def test_pretraining_parts_lie_apart_and_come_back_under_their_published_names(server, tmp_path):
    info, statistics = replace(TINY, pretraining=True), torch.tensor([-6.5, 3.5])
    published = encoder_tensors() | pretraining_tensors() | {"norm_stats": statistics}
    publish(server, info, published)
    folder = fetch(info, cache_dir=tmp_path)
    assert all(name.startswith("encoder.") for name in load_checkpoint(folder).tensors)
    tensors = load_all_tensors(folder)
    assert tensors.keys() == published.keys()
    assert all(torch.equal(tensors[name], published[name]) for name in published)


def test_url_is_the_authors_release_unless_a_mirror_is_named(server, monkeypatch):
    path = "v0.1.0/m2d_vit_base-80x608p16x16-221006-mr7.zip"
    monkeypatch.setenv("M2D_HUB_MIRROR", "https://mirror.example/m2d/")
    assert release_url(find_model("m2d-0.7")) == f"https://mirror.example/m2d/{path}"
    monkeypatch.delenv("M2D_HUB_MIRROR")
    assert release_url(find_model("m2d-0.7")) == f"https://github.com/nttcslab/m2d/releases/download/{path}"


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE"])
def test_offline_without_weights_says_what_to_fetch_and_where_to_put_it(server, tmp_path, monkeypatch, how):
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = fails(server, tmp_path, DownloadError, local_files_only=how == "local_files_only")
    assert message == (
        f"'tiny' is not in the cache ({tmp_path}/tiny) and the network is not to be used (local_files_only "
        "or HF_HUB_OFFLINE). "
        f"To go on offline, fetch {server.url}/{TINY.url_path} on another machine and put "
        f"it at {tmp_path}/downloads/{TINY.folder}.zip."
    )
    assert server.requests == []


def test_zip_put_there_by_hand_is_used_offline(server, tmp_path):
    (tmp_path / "downloads").mkdir()
    zip_path = tmp_path / "downloads" / f"{TINY.folder}.zip"
    zip_path.write_bytes(server.files[f"/{TINY.url_path}"])
    folder = fetch(TINY, cache_dir=tmp_path, local_files_only=True)
    assert load_checkpoint(folder).config.name == "tiny"
    assert not zip_path.exists()
    assert server.requests == []


def test_damaged_zip_put_there_by_hand_is_left_to_its_owner(server, tmp_path):
    (tmp_path / "downloads").mkdir()
    zip_path = tmp_path / "downloads" / f"{TINY.folder}.zip"
    zip_path.write_bytes(b"PK not really")
    message = fails(server, tmp_path, CheckpointError)
    assert (
        message
        == f"{zip_path} cannot be read as a zip (File is not a zip file). Delete it and fetch it again."
    )
    assert zip_path.exists()


def test_interrupted_download_goes_on_in_the_next_call(server, tmp_path):
    server.faults[f"/{TINY.url_path}"] = [Fault(cut_after=1000), Fault(status=403)]
    message = fails(server, tmp_path, DownloadError)
    assert (
        f"{server.url}/{TINY.url_path} could not be downloaded: the server answered 403 Forbidden." in message
    )
    assert f"put it at {tmp_path}/downloads/{TINY.folder}.zip." in message
    assert not (tmp_path / "tiny").exists()
    fetch(TINY, cache_dir=tmp_path)
    assert server.requests[-1][2]["Range"] == "bytes=1000-"


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "a web page"])
def test_damaged_zip_is_refused_and_the_next_call_starts_anew(server, tmp_path, damage):
    whole = server.files[f"/{TINY.url_path}"]
    middle = len(whole) // 2
    server.files[f"/{TINY.url_path}"] = {
        "flipped byte": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "truncated": whole[:middle],
        "a web page": b"<html>Sign in to continue</html>",
    }[damage]
    message = fails(server, tmp_path, CheckpointError)
    assert message.startswith(f"{tmp_path}/downloads/{TINY.folder}.zip cannot be read as a zip (")
    assert message.endswith("Delete it and fetch it again.")
    assert_nothing_left(tmp_path)
    server.files[f"/{TINY.url_path}"] = whole
    fetch(TINY, cache_dir=tmp_path)


def test_file_other_than_announced_is_refused(server, tmp_path):
    digest = hashlib.sha256(server.files[f"/{TINY.url_path}"]).hexdigest()
    message = fails(server, tmp_path, ChecksumError, replace(TINY, sha256="0" * 64))
    assert message == (
        f"{tmp_path}/downloads/{TINY.folder}.zip is not the published file: its sha256 is {digest}, "
        f"announced is {'0' * 64}. Fetch it from its publisher again."
    )
    assert_nothing_left(tmp_path)
    fetch(replace(TINY, sha256=digest), cache_dir=tmp_path)


def test_file_other_than_at_the_first_download_is_refused(server, tmp_path):
    first = hashlib.sha256(server.files[f"/{TINY.url_path}"]).hexdigest()
    folder = fetch(TINY, cache_dir=tmp_path)
    for path in folder.iterdir():
        path.unlink()
    publish(server, TINY, encoder_tensors(seed=9))
    second = hashlib.sha256(server.files[f"/{TINY.url_path}"]).hexdigest()
    record = tmp_path / "hashes" / f"{TINY.folder}.zip.sha256"
    message = fails(server, tmp_path, ChecksumError)
    assert f"its sha256 is {second}, recorded is {first}." in message
    assert message.endswith(f"delete {record} and load the model again.")
    assert left_in(tmp_path) == [f"hashes/{TINY.folder}.zip.sha256"]
    record.unlink()
    fetch(TINY, cache_dir=tmp_path)


def test_changed_weights_are_refused(server, tmp_path):
    path = fetch(TINY, cache_dir=tmp_path) / "model.safetensors"
    recorded = hashlib.sha256(path.read_bytes()).hexdigest()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = fails(server, tmp_path, ChecksumError)
    now = hashlib.sha256(content).hexdigest()
    assert message == (
        f"{path} has changed since it was written: its sha256 is {now}, recorded is {recorded}."
        f" Delete {path.parent} and load the model again."
    )


def test_missing_weights_are_told(server, tmp_path):
    path = fetch(TINY, cache_dir=tmp_path) / "model.safetensors"
    path.unlink()
    message = fails(server, tmp_path, ChecksumError)
    assert message == f"{path} is missing. Delete {path.parent} and load the model again."


def test_damaged_record_is_told(server, tmp_path):
    path = fetch(TINY, cache_dir=tmp_path) / "origin.json"
    path.write_text("{")
    assert f"{path} cannot be read as the record of a download (" in fails(server, tmp_path, ChecksumError)


def test_copied_weights_are_hashed_once(server, tmp_path, monkeypatch):
    os.utime(fetch(TINY, cache_dir=tmp_path) / "model.safetensors", (1, 1))
    fetch(TINY, cache_dir=tmp_path)
    monkeypatch.setattr(
        m2d_hub.pretrained.provenance, "sha256_of", lambda path: pytest.fail(f"{path} was hashed again")
    )
    fetch(TINY, cache_dir=tmp_path)


def test_unsafe_paths_in_a_zip_are_refused(server, tmp_path):
    root = tmp_path / "cache"
    for name in ("../../evil.pth", "/tmp/evil.pth", "a\\..\\..\\evil.pth", "C:evil.pth"):
        server.files[f"/{TINY.url_path}"] = zip_bytes(
            {f"{TINY.folder}/checkpoint-300.pth": b"", name: b"evil"}
        )
        message = fails(server, root, CheckpointError)
        assert message == (
            f"{root}/downloads/{TINY.folder}.zip was not unpacked: it holds {name!r}, and its path leads "
            "outside the folder. Delete it and fetch it from its publisher."
        )
        assert_nothing_left(root)
        assert os.listdir(tmp_path) == ["cache"]


def special_entry(**attributes):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo(f"{TINY.folder}/checkpoint-300.pth")
        for name, value in attributes.items():
            setattr(entry, name, value)
        archive.writestr(entry, b"/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (special_entry(external_attr=0o120777 << 16), "it is a link or another special file"),
        (
            special_entry(compress_type=zipfile.ZIP_LZMA),
            r"it is compressed by method 14 \(0 and 8 are allowed\)",
        ),
    ],
    ids=["link", "unusual compression"],
)
def test_special_entries_of_a_zip_are_refused(server, tmp_path, content, problem):
    server.files[f"/{TINY.url_path}"] = content
    with pytest.raises(
        CheckpointError, match=rf"it holds '{TINY.folder}/checkpoint-300.pth', and {problem}\."
    ):
        fetch(TINY, cache_dir=tmp_path)
    assert_nothing_left(tmp_path)


def test_encrypted_zip_is_refused(server, tmp_path):
    content = bytearray(special_entry())
    for header in (b"PK\x03\x04", b"PK\x01\x02"):
        content[content.index(header) + (6 if header == b"PK\x03\x04" else 8)] |= 1
    server.files[f"/{TINY.url_path}"] = bytes(content)
    assert "and it is encrypted." in fails(server, tmp_path, CheckpointError)


def test_zip_bomb_is_refused_before_it_is_unpacked(server, tmp_path):
    content = zip_bytes({f"{TINY.folder}/checkpoint-300.pth": bytes(20_000_000)})
    server.files[f"/{TINY.url_path}"] = content
    message = fails(server, tmp_path, CheckpointError)
    assert f"was not unpacked: 1 entries of 20000000 bytes in {len(content)} bytes; allowed are" in message
    assert_nothing_left(tmp_path)


class Evil:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["torch file", "bare pickle"])
def test_malicious_pickle_is_not_run(server, tmp_path, kind):
    root, ran = tmp_path / "cache", tmp_path / "ran"
    contents = encoder_tensors() | {"evil": Evil(ran)}
    content = (
        checkpoint_bytes(contents, wrapped=False)
        if kind == "torch file"
        else pickle.dumps(Evil(ran), protocol=2)
    )
    server.files[f"/{TINY.url_path}"] = zip_bytes({f"{TINY.folder}/checkpoint-300.pth": content})
    message = fails(server, root, CheckpointError)
    assert "checkpoint-300.pth" in message
    assert not ran.exists()
    assert_nothing_left(root)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop("norm.bias"), "missing encoder.norm.bias"),
        (lambda t: t.update(surprise=torch.ones(1)), "unknown layout: surprise"),
        (
            lambda t: t.update({"norm.bias": torch.ones(3)}),
            r"encoder\.norm\.bias is \(3,\) but must be \(64,\)",
        ),
        (
            lambda t: t.update({"norm.bias": torch.full((64,), torch.nan)}),
            r"non-finite weights in norm\.bias",
        ),
        (
            lambda t: t.update({"blocks.2." + k[9:]: v for k, v in t.items() if "blocks.1." in k}),
            "depth is 3 but must be 2",
        ),
        (lambda t: t.update(pretraining_tensors()), "pretraining is True but must be False"),
        (lambda t: t.update(clap_tensors()), "text_space is True but must be False"),
    ],
)
def test_zip_with_other_tensors_than_this_models_is_refused(server, tmp_path, change, problem):
    tensors = encoder_tensors()
    change(tensors)
    publish(server, TINY, tensors)
    with pytest.raises(CheckpointError, match=problem):
        fetch(TINY, cache_dir=tmp_path)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("target_norm.bias", None, r"missing target_norm\.bias"),
        ("target_blocks.2.norm1.weight", (64,), r"unexpected target_blocks\.2\.norm1\.weight"),
        ("decoder_pos_embed", (1, 12, 32), r"decoder_pos_embed is \(1, 12, 32\) but must be \(1, 11, 32\)"),
        (
            "offline_predictor.weight",
            (7, 64),
            r"offline_predictor\.weight is \(7, 64\) but must be \(7, 320\)",
        ),
    ],
)
def test_pretraining_tensors_are_checked_too(server, tmp_path, name, shape, problem):
    info, tensors = replace(TINY, pretraining=True), encoder_tensors() | pretraining_tensors()
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = torch.ones(shape)
    publish(server, info, tensors)
    with pytest.raises(CheckpointError, match=problem):
        fetch(info, cache_dir=tmp_path)


def test_settings_that_contradict_the_registry_are_told(server, tmp_path):
    info = replace(TINY, input_size=(80, 48), sample_rate=32_000)
    publish(server, info, encoder_tensors())
    message = fails(server, tmp_path, CheckpointError, info)
    assert message == (
        f"checkpoint-300.pth of {TINY.folder}.zip is not 'tiny' as published: sample_rate is 16000 but must "
        "be 32000; input_size is (80, 32) but must be (80, 48)."
    )


def test_zip_of_several_checkpoints_gives_the_one_of_the_registry(server, tmp_path):
    files = {f"{TINY.folder}/checkpoint-{epoch}.pth": encoder_tensors(seed=epoch) for epoch in (100, 300)}
    server.files[f"/{TINY.url_path}"] = zip_bytes(
        {name: checkpoint_bytes(value) for name, value in files.items()}
    )
    message = fails(server, tmp_path, CheckpointError)
    assert "must hold one .pth file, it holds " + ", ".join(files) + "." in message
    info = replace(TINY, filename="checkpoint-300.pth")
    loaded = load_checkpoint(fetch(info, cache_dir=tmp_path)).tensors
    assert torch.equal(loaded["encoder.cls_token"], encoder_tensors(seed=300)["cls_token"])


def test_zip_without_a_checkpoint_lists_what_it_holds(server, tmp_path):
    server.files[f"/{TINY.url_path}"] = zip_bytes({"readme.txt": b"moved"})
    assert "must hold one .pth file, it holds readme.txt." in fails(server, tmp_path, CheckpointError)


def test_what_a_killed_conversion_left_is_cleared(server, tmp_path):
    (tmp_path / ".work" / "tiny").mkdir(parents=True)
    (tmp_path / ".work" / "tiny" / "checkpoint-300.pth").write_bytes(b"half")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"half")
    assert not model_info("tiny", cache_dir=tmp_path).on_disk
    fetch(TINY, cache_dir=tmp_path)
    assert not (tmp_path / ".work" / "tiny").exists()


def test_disk_that_fills_up_while_converting_keeps_only_the_whole_zip(server, tmp_path, monkeypatch):
    text = (
        "Error while serializing: I/O error: No space left on device (os error 28)"  # as safetensors says it
    )
    with monkeypatch.context() as patch:

        def save(*_, **__):
            raise SafetensorError(text)

        patch.setattr(m2d_hub.pretrained.release, "save_checkpoint", save)
        message = fails(server, tmp_path, DownloadError)
    assert message.startswith(f"The disk of {tmp_path}/.work/tiny is full (")
    assert "Free some space, or name another folder: load_model(..., cache_dir=FOLDER)" in message
    assert left_in(tmp_path) == [f"downloads/{TINY.folder}.zip"]
    fetch(TINY, cache_dir=tmp_path)
    assert server.count(f"/{TINY.url_path}") == 1


@pytest.fixture(params=["300k", "600k", "1000k"], ids=["download", "unpacking", "conversion"])
def small_disk(tmp_path, request):
    """A file system that the zip (430 kB), the checkpoint in it or the converted weights fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_leaves_nothing_half_written(server, small_disk):
    message = fails(server, small_disk, DownloadError)
    assert f"The disk of {small_disk}" in message and "is full (" in message
    assert [name for name in left_in(small_disk) if not name.startswith("downloads/")] == []
    assert not any(name.endswith(".partial") for name in left_in(small_disk))


def test_ten_processes_download_once(server, tmp_path):
    script = f"""
        import os, sys
        from m2d_hub.pretrained.registry import ModelInfo
        from m2d_hub.pretrained.release import fetch
        info = {TINY!r}
        children = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = 0 if fetch(info, cache_dir={str(tmp_path)!r}).name == "tiny" else 2
                finally:
                    os._exit(code)
            children.append(child)
        sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
    assert server.count(f"/{TINY.url_path}") == 1
    assert load_checkpoint(tmp_path / "tiny").config.name == "tiny"


def test_weights_that_the_installation_lacks_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(m2d_hub.pretrained.release, "PACKAGED", tmp_path)
    message = fails(None, tmp_path, DownloadError, find_model("m2d-mini"))
    assert message == (
        f"The weights of 'm2d-mini' belong inside this package, but {tmp_path}/m2d-mini holds none: this "
        "version is without them, or not whole. Load another name of list_models(), or install the package "
        "again."
    )


def test_model_info_of_packaged_weights_reads_their_own_configuration(tmp_path, monkeypatch):
    monkeypatch.setattr(m2d_hub.pretrained.cache, "PACKAGED", tmp_path)
    encoder = EncoderConfig(input_size=(80, 48), patch_size=(16, 8), embed_dim=128, depth=3)
    save_checkpoint(tmp_path / "m2d-mini", {"weight": torch.ones(2)}, ModelConfig(encoder=encoder))
    info = model_info("m2d-mini")
    assert (info.on_disk, info.input_size, info.patch_size) == (True, (80, 48), (16, 8))
    assert (info.embed_dim, info.depth, info.sha256) == (128, 3, None)


def test_model_info_tells_what_is_on_disk(server, tmp_path):
    before = model_info("tiny", cache_dir=tmp_path)
    assert (before.on_disk, before.sha256, before.download_bytes, before.disk_bytes) == (
        False,
        None,
        None,
        None,
    )
    folder = fetch(TINY, cache_dir=tmp_path)
    after = model_info("tiny", cache_dir=tmp_path)
    content = server.files[f"/{TINY.url_path}"]
    assert (after.on_disk, after.sha256) == (True, hashlib.sha256(content).hexdigest())
    assert after.download_bytes == len(content)
    assert after.disk_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert json.loads((folder / "origin.json").read_text())["url"] == f"{server.url}/{TINY.url_path}"


def test_model_info_of_an_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(UnknownModelError, match=r"Unknown model 'm2d-9'\. Available: "):
        model_info("m2d-9", cache_dir=tmp_path)
