"""Whether the data carry what the offline network learns from, told before the first step."""

from __future__ import annotations

from m2d_hub.errors import ConfigError

from ..data.manifest import Manifest
from .config import OfflineConfig


def check_signal(offline: OfflineConfig | None, manifest: Manifest) -> None:
    """Refuses data without the training signal.

    Labels may be missing of some clips, which then take no part in the label loss; captions, and features
    that were computed beforehand, must be there for all clips or for none.

    Raises:
        ConfigError: The message counts the clips and names the first one.
    """
    entries = manifest.entries
    if offline is None:
        return
    if offline.kind == "labels" and not any(entry.labels for entry in entries):
        raise ConfigError(
            f"{manifest.name} has no labels, which the offline network learns from: add a column 'label', or "
            "set offline to none."
        )
    lack_features = [entry for entry in entries if not entry.features_path]
    if offline.kind != "labels" and lack_features and len(lack_features) < len(entries):
        raise ConfigError(
            f"{manifest.name}: {len(lack_features):,} of {len(entries):,} clips lack features, the first is "
            f"{lack_features[0]}: give features for all clips, or for none."
        )
    lack_text = [entry for entry in entries if not (entry.caption or entry.labels)]
    if offline.kind == "text" and lack_features and lack_text:
        raise ConfigError(
            f"{manifest.name}: {len(lack_text):,} of {len(entries):,} clips have neither caption nor label, "
            f"the first is {lack_text[0]}: contrastive learning needs a text for each clip."
        )
