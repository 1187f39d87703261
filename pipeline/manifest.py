"""The record of a stage: what it was made from, what it made, and the folder in which both stand."""

import shutil
from pathlib import Path
from typing import Any

from ..data.errors import DataError
from ..data.files import hash_file, read_json, read_sealed, write_json

MANIFEST, STARTED = "manifest.json", "started.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what the stage of this folder recorded. Raises DataError where it is missing or was changed."""
    return read_sealed(folder / MANIFEST, "Use `erckit run`, which makes it anew.")


def begin_folder(folder: Path, key: str, *, parts: bool = False) -> None:
    """Make the folder ready: what was begun under the same key and not finished stays, all else goes.

    Of a stage with `parts` all files stay, and it looks itself which of them still hold.
    """
    started, manifest = folder / STARTED, folder / MANIFEST
    if not manifest.exists() and _reads_as(started, {"key": key}):
        for path in folder.rglob(".*"):
            if path.is_file():
                path.unlink()  # a temporary file of the process that was killed
        return
    # In this order, a kill between any two lines leaves a folder that counts neither as finished nor as begun.
    started.unlink(missing_ok=True)
    manifest.unlink(missing_ok=True)
    if folder.exists() and not parts:
        shutil.rmtree(folder)
    write_json(started, {"key": key})


def _reads_as(path: Path, value: Any) -> bool:
    try:
        return read_json(path) == value
    except DataError:
        return False


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
    try:
        return [path for path in read_manifest(folder)["outputs"] if path.startswith(prefix)]
    except DataError:
        return []


def find_change(folder: Path, manifest: dict[str, Any], prefix: str = "") -> str | None:
    """Say which output under `prefix` is no longer as the stage wrote it, None where all are."""
    for path, output in manifest["outputs"].items():
        if path.startswith(prefix) and not (folder / path).is_file():
            return f"output {path} is missing"
        if path.startswith(prefix) and hash_file(folder / path) != output["sha256"]:
            return f"output {path} was changed"
    return None


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
