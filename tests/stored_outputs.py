"""Outputs of ``m2d-hub embed`` with other embeddings."""

import io
import zipfile

import numpy as np


def change_embeddings(path, change):
    """Apply a function, in place or by its result, to the first array of embeddings in a ``.npz`` output."""
    with zipfile.ZipFile(path) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    name = next(name for name in members if name.startswith("embedding"))
    embeddings = np.load(io.BytesIO(members[name]))
    changed = change(embeddings)
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(embeddings if changed is None else changed, np.float32))
    members[name] = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as stored:
        for name, content in members.items():
            stored.writestr(name, content)
