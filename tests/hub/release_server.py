"""A local server in place of the release host and the Hugging Face hub; builders of tiny published zips."""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
import threading
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from m2d_hub.nn.encoder import Block, Encoder, EncoderConfig
from m2d_hub.pretrained.registry import ModelInfo

TINY = {"input_size": (80, 32), "embed_dim": 64, "depth": 2, "release": "v0.0.1", "filename": None}


@dataclass
class Fault:
    """A failure of one request to a path."""

    status: int | None = None  # HTTP status to return
    cut_after: int | None = None  # close the connection after so many bytes


class ReleaseServer:
    """Files by path and Hugging Face repositories, with planned faults and a record of all requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # repository, revision, file
        self.faults: defaultdict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.ranges = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ReleaseServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, path: str, method: str = "GET") -> int:
        """Requests of a path so far."""
        return sum((method, path) == request[:2] for request in self.requests)


def _handler(server: ReleaseServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._get()

        def do_GET(self) -> None:
            self._get()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self._note()
            if server.faults[path]:
                self._send(server.faults[path].pop(0).status or 500, b"")
            elif path == "/api/repos/create":
                request = json.loads(body)
                name = (
                    request["name"]
                    if "/" in request["name"]
                    else f"{request['organization']}/{request['name']}"
                )
                server.repositories.setdefault(name, {"main": {}})
                self._json({"url": f"{server.url}/{name}"})
            elif match := re.fullmatch(r"/api/models/(.+)/preupload/.+", path):
                modes = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
                self._json({"files": [mode | {"shouldIgnore": False} for mode in modes]})
            elif match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        content = base64.b64decode(entry["value"]["content"])
                        server.repositories[match[1]][match[2]][entry["value"]["path"]] = content
                self._json({"commitUrl": f"{server.url}/{match[1]}/commit/{'0' * 40}", "commitOid": "0" * 40})
            elif path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            else:
                self._send(404, b"")

        def _note(self) -> str:
            path = self.path.partition("?")[0]
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.requests.append((self.command, path, headers))
            return path

        def _get(self) -> None:
            path = self._note()
            fault = server.faults[path].pop(0) if server.faults[path] else Fault()
            if fault.status is not None:
                self._send(fault.status, b"")
            elif path in server.files:
                self._file(server.files[path], fault)
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self._repository(match[1], match[2] or "main")
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._repository_file(*match.groups())
            else:
                self._send(404, b"")

        def _file(self, content: bytes, fault: Fault, headers: dict[str, str] | None = None) -> None:
            headers = dict(headers or {})
            headers.setdefault("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            start, status = 0, 200
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked and server.ranges:
                start, status = int(asked[1]), 206
                if start >= len(content):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                    return
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(status, content[start:], headers, fault)

        def _repository(self, name: str, revision: str) -> None:
            files = self._files_of(name, revision)
            if files is not None:
                siblings = [{"rfilename": file} for file in files]
                commit = commit_of(name, revision)
                self._json({"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings})

        def _repository_file(self, name: str, revision: str, file: str) -> None:
            files = self._files_of(name, revision)
            if files is not None and file not in files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            elif files is not None:
                self._file(files[file], Fault(), {"X-Repo-Commit": commit_of(name, revision)})

        def _files_of(self, name: str, revision: str) -> dict[str, bytes] | None:
            revisions = server.repositories.get(name)
            if revisions is None:
                self._send(
                    404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
                )
                return None
            by_commit = {commit_of(name, known): known for known in revisions}
            revision = by_commit.get(revision, revision)
            if revision not in revisions:
                self._send(
                    404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}
                )
                return None
            return revisions[revision]

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
        ) -> None:
            fault = fault or Fault()
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: fault.cut_after])
            if fault != Fault():
                self.close_connection = True

    return Handler


def commit_of(name: str, revision: str) -> str:
    """A commit hash for each revision of a repository."""
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


def tiny_info(name: str = "tiny", **overrides: Any) -> ModelInfo:
    """A row of the registry for a tiny encoder, 80x32 in patches of 16x16, 64 wide and 2 deep."""
    fields = TINY | {"folder": f"m2d_vit_base-80x32p16x16-{name}"} | overrides
    return ModelInfo(name, fields.pop("contents", "encoder only"), **fields)


def encoder_tensors(
    input_size: tuple[int, int] = (80, 32), seed: int = 0, depth: int = 2
) -> dict[str, torch.Tensor]:
    """A random encoder under the published names."""
    torch.manual_seed(seed)
    return dict(Encoder(EncoderConfig(input_size=input_size, embed_dim=64, depth=depth)).state_dict())


def pretraining_tensors() -> dict[str, torch.Tensor]:
    """Some tensors of a predictor, a target encoder and an offline network, under published names."""
    torch.manual_seed(1)
    names = ("mask_token", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.bias", "decoder_norm.weight")
    names += ("target_blocks.0.mlp.fc1.weight", "target_norm.bias", "offline_predictor.weight")
    return {name: torch.randn(3, 5) for name in names}


def fine_tuned_tensors(num_classes: int = 6, in_features: int = 320) -> dict[str, torch.Tensor]:
    """An encoder and head under the names of the fine-tuning wrapper, with what it leaves beside them."""
    torch.manual_seed(2)
    encoder = {f"module.ar.runtime.backbone.{name}": value for name, value in encoder_tensors().items()}
    return encoder | {
        "module.ar.runtime.to_spec.mel_basis": torch.ones(80, 201),
        "module.head.norm.running_mean": torch.randn(in_features),
        "module.head.norm.running_var": torch.rand(in_features) + 0.5,
        "module.head.norm.num_batches_tracked": torch.tensor(9),
        "module.head.mlp.mlp.0.weight": torch.randn(num_classes, in_features),
        "module.head.mlp.mlp.0.bias": torch.randn(num_classes),
    }


def clap_tensors(width: int = 64, text_dim: int = 16) -> dict[str, torch.Tensor]:
    """Two-layer audio projection, linear text projection and temperature under the published names."""
    torch.manual_seed(3)
    shapes = {f"audio_proj.{layer}.weight": (width, width) for layer in (0, 2)}
    shapes |= {f"audio_proj.{layer}.bias": (width,) for layer in (0, 2)}
    shapes |= {"text_proj.weight": (width, text_dim), "text_proj.bias": (width,), "logit_scale": ()}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def semantic_tensors(width: int = 64) -> dict[str, torch.Tensor]:
    """The audio projection of one block and a semantic token, under the published names: 15 tensors."""
    block = Block(width, num_heads=1, mlp_ratio=1).state_dict()
    tensors = {f"audio_proj.sem_blocks.0.{name}": value for name, value in block.items()}
    tensors |= {f"audio_proj.norm.{name}": torch.ones(width) for name in ("weight", "bias")}
    return tensors | {"audio_proj.sem_token": torch.randn(1, 1, width)}


def checkpoint_bytes(tensors: Any, *, wrapped: bool = True) -> bytes:
    """A ``.pth``: the tensors alone, or with the settings, optimizer and epoch that training saves."""
    contents = tensors
    if wrapped:
        settings = argparse.Namespace(input_size=[80, 32], patch_size=[16, 16], lr=3e-4, note="x")
        contents = {
            "model": tensors,
            "args": settings,
            "optimizer": {"state": {}},
            "epoch": 299,
            "scaler": {},
        }
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


def zip_bytes(entries: dict[str, bytes]) -> bytes:
    """A zip of the entries given by path."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def release_zip(
    info: ModelInfo, tensors: Any, *, wrapped: bool = True, file: str = "checkpoint-300.pth"
) -> bytes:
    """The zip of a release: a folder of its name with one checkpoint."""
    return zip_bytes({f"{info.folder}/{file}": checkpoint_bytes(tensors, wrapped=wrapped)})
