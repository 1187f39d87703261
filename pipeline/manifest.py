"""The record of a stage: what it was made from, what it made, and the folder in which both stand."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from ..data.files import read_json, write_json

MANIFEST, STARTED = "manifest.json", "started.json"


def key_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def begin_folder(folder: Path, key: str, *, parts: bool = False) -> None:
    """Make the folder ready: what was begun under the same key and not finished stays, all else goes.

    Of a stage with `parts` all files stay, and it looks itself which of them still hold.
    """
    started, manifest = folder / STARTED, folder / MANIFEST
    if not manifest.exists() and started.is_file() and read_json(started) == {"key": key}:
        return
    # In this order, a kill between any two lines leaves a folder that counts neither as finished nor as begun.
    started.unlink(missing_ok=True)
    manifest.unlink(missing_ok=True)
    if folder.exists() and not parts:
        shutil.rmtree(folder)
    write_json(started, {"key": key})


def list_outputs(folder: Path) -> list[Path]:
    """The finished files of a stage: no checkpoints, no temporary files, none of the two records."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and (parts := path.relative_to(folder).parts) not in ((MANIFEST,), (STARTED,))
        and parts[0] != "checkpoints"
        and not any(part.startswith(".") for part in parts)
    )


def recorded_outputs(folder: Path, prefix: str) -> list[str]:
    """The outputs under `prefix` that a stage's manifest lists."""
    if not (folder / MANIFEST).is_file():
        return []
    return [path for path in read_json(folder / MANIFEST)["outputs"] if path.startswith(prefix)]


def explain_difference(manifest: dict[str, Any], record: dict[str, Any]) -> str:
    """Say in a few words why a manifest no longer matches."""
    if manifest.get("erckit") != record["erckit"]:
        return f"erckit changed: {manifest.get('erckit')} -> {record['erckit']}"
    reasons = []
    for section, values in record["config"].items():
        old = manifest.get("config", {}).get(section, {})
        reasons += [
            f"{section}.{key} changed: {old.get(key)} -> {new}" for key, new in values.items() if old.get(key) != new
        ]
    old_inputs, new_inputs = manifest.get("inputs", {}), record["inputs"]
    for path in sorted(old_inputs.keys() | new_inputs.keys()):
        if path not in old_inputs:
            reasons.append(f"{path} is new")
        elif new_inputs.get(path) is None:
            reasons.append(f"{path} is missing")
        elif old_inputs[path] != new_inputs[path]:
            reasons.append(f"{path} changed")
    if manifest.get("fingerprint") != record["fingerprint"]:
        reasons.append("its wording, model or method changed")
    if not reasons:
        return f"its {MANIFEST} was edited"
    return reasons[0] + (f" and {len(reasons) - 1} more" if len(reasons) > 1 else "")
