"""What others are given: a model with the adapter merged into it, and uploads to the hub."""

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.errors import DataError
from ..data.files import add_seal, hash_file, name_errors, write_sealed
from ..prompts.wording import read_wording
from .adapter import CARD, Found, load_adapter, read_card
from .backbone import choose_stored_dtype, load_model, load_tokenizer
from .checkpoints import name_failed_writes
from .console import format_memory, progress, say
from .manifest import list_outputs
from .model_card import find_hub_name, write_model_card

PAGE = "README.md"


def merge_adapter(found: Found, folder: Path) -> str:
    """Write the base model with the adapter merged into it, and all that goes with it. Returns what was written.

    It is added up in float32 on the CPU, over the whole base model where the adapter was trained over 4 bits, and
    written in `model.dtype`, with "auto" that of the base model's files. `AutoModelForCausalLM.from_pretrained` loads
    the folder, and so does erckit. Raises DataError where the folder is there already or nothing can be merged.
    """
    if found.merged:
        raise DataError(f"{found.folder}: merged already. Use it as it is.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder}: it is there already. Name another folder, or remove it.")
    whole = found.config.model.model_copy(update={"quantization": "none", "device": "cpu", "dtype": "float32"})
    config, wording = found.config.model_copy(update={"model": whole}), read_wording(found.config.prompts.template)
    say(f"  merging {found.folder} into {whole.name}, in float32 on the CPU")
    tokenizer = load_tokenizer(whole)
    model = load_adapter(load_model(whole), found.folder, config, found.labels, wording)
    dtype = choose_stored_dtype(found.config.model)
    merged = model.merge_and_unload(safe_merge=True).to(dtype)
    card = _shorten_card(found.folder)
    card |= {"merged": True, "base_model": find_hub_name(card), "dtype": str(dtype).partition(".")[2]}
    with _fill(folder) as made:
        with name_failed_writes(folder):
            merged.save_pretrained(made)
            tokenizer.save_pretrained(made)
        wording.write(made / "wording")
        card |= {"sha256": {path.relative_to(made).as_posix(): hash_file(path) for path in list_outputs(made)}}
        write_sealed(made / CARD, card)
        (made / PAGE).write_text(write_model_card(found, folder.resolve().name, card), encoding="utf-8")
        return f"{folder}: {_describe(list_outputs(made))}"


def push(found: Found, repository: str, *, public: bool) -> str:
    """Upload an adapter, or what `merge_adapter` wrote, in one commit. Returns what was uploaded.

    The repository is made where there is none, private unless `public`. Raises DataError without a token, where the
    hub does not take it, where an adapter's base model is not on the hub, and where something that was not called
    public would be seen by all.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    files = gather_files(found, repository)
    if get_token() is None:
        raise DataError(
            "no token for the hub: nobody is logged in here. Run `hf auth login`, or set HF_TOKEN to a token that may "
            "write."
        )
    with _telling_why(repository):
        api = HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        is_private = api.model_info(repository).private
    if not public and not is_private:
        raise DataError(f"{repository}: it is there already, and everybody sees it. Say --public if that is meant.")
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    with _telling_why(repository):
        # One by one, large files first go by themselves; the commit then has them all at once.
        for operation in progress(operations, len(operations), "files uploaded"):
            api.preupload_lfs_files(repository, [operation])
        api.create_commit(repository, operations, commit_message="Upload with erckit")
    return f"{repository}: {_describe(files.values())}, {'private' if is_private else 'public'}"


def gather_files(found: Found, repository: str) -> dict[str, Path | bytes]:
    """Return what is to be uploaded by its path there: files, or what stands in for one that names this machine.

    A model card is written where a run has the numbers, or where there is none.
    """
    card = _shorten_card(found.folder)
    if not found.merged and find_hub_name(card) is None:
        raise DataError(
            f"{found.folder}: its base model is the folder {card['base_model']!r}, which nobody else has. Use `erckit "
            "merge`, and push what that writes."
        )
    files: dict[str, Path | bytes] = {
        path.relative_to(found.folder).as_posix(): path for path in list_outputs(found.folder)
    }
    files[CARD] = json.dumps(add_seal(card), ensure_ascii=False, indent=1).encode() + b"\n"
    if found.run or PAGE not in files:
        files[PAGE] = write_model_card(found, repository.rpartition("/")[2], card).encode()
    return files


def _shorten_card(folder: Path) -> dict[str, Any]:
    """Return what a model was made for, without the path of its wording, a copy of which lies beside it."""
    card = read_card(folder)
    return card | {"protocol": card["protocol"] | {"template": Path(card["protocol"]["template"]).name}}


def _describe(files: Collection[Path | bytes]) -> str:
    sizes = [len(file) if isinstance(file, bytes) else file.stat().st_size for file in files]
    return f"{len(sizes)} files, {format_memory(sum(sizes) / 2**20)}"


@contextmanager
def _fill(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes its place when the block ends well, else it goes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with name_errors(folder):
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            yield temporary
            for path in (temporary, *temporary.rglob("*")):  # made private: by mkdtemp, and where weights are written
                path.chmod(0o755 if path.is_dir() else 0o644)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _telling_why(repository: str) -> Iterator[None]:
    """Say in one line why the hub does not do what is asked."""
    # That of whichever HTTP library the hub's own uses.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise DataError(
            f"{repository}: the hub did not take it ({reason}). Check the name (OWNER/NAME), what the token may do, "
            "and the network."
        ) from error
