"""Finds the file or folder of a catalogue entry: a local path, the local Hub cache, the Hub, or a
file of this package.

`HF_HUB_OFFLINE=1`, `HF_HOME`, `HF_TOKEN` and the rest are huggingface_hub's own settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vim_embed.errors import WeightsError
from vim_embed.weights.catalogue import CatalogueEntry
from vim_embed.weights.download_progress import Tell, telling_bars

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
PACKAGED = Path(__file__).parent / "packaged"
PACKAGED_SOURCE = "packaged with vim-embed, a demonstration"
_VIT_CONFIG = ["config.json", "preprocessor_config.json", "processor_config.json"]


@dataclass(frozen=True, kw_only=True)
class Located:
    """Weights on the local disk. path: the Vim weights file, or the ViT folder."""

    kind: str
    path: Path
    source: str
    revision: str | None

    @property
    def files(self) -> list[Path]:
        """The weight files themselves, sorted; those of a ViT folder are its shards."""
        if self.path.is_file():
            return [self.path]
        return vit_weight_files(self.path)


def locate(entry: CatalogueEntry, tell: Tell | None = None) -> Located:
    """Bring the entry's weights to the local disk. Raises WeightsError.

    tell: hears of a download's progress; without it that is drawn on the terminal, if there is one.
    """
    if entry.path is not None:
        return _located(entry, entry.path, str(entry.path), None)
    if entry.repo is None and entry.packaged:
        path = PACKAGED / entry.packaged
        if not path.exists():
            raise WeightsError(f"{path} is not there: install vim-embed anew")
        return Located(kind="vim", path=path, source=PACKAGED_SOURCE, revision=None)
    if entry.repo is None:
        raise WeightsError(
            f"model {entry.name!r} has no weights: give {entry.name}=PATH or {entry.name}=org/repo"
        )
    folder = _snapshot(entry, _patterns(entry), tell)
    if entry.kind == "vit" and not vit_weight_files(folder):
        folder = _snapshot(entry, [*_VIT_CONFIG, "pytorch_model*.bin*"], tell)
    path = folder / entry.file if entry.file else folder
    if not path.exists():
        raise WeightsError(
            f"{entry.repo} holds no {entry.file}; found: {_listing(_remote_files(entry, folder))}. "
            f"Name the file with {entry.name}={entry.repo}:FILE"
        )
    return _located(entry, path, entry.repo, folder.name)


def digest_files(files: Iterable[Path]) -> str:
    """sha256 of the file's bytes; of several files, of their concatenated digests in name order."""
    digests = [_sha256(path) for path in sorted(files)]
    if len(digests) == 1:
        return "sha256:" + digests[0].hex()
    return "sha256:" + hashlib.sha256(b"".join(digests)).hexdigest()


def vit_weight_files(folder: Path) -> list[Path]:
    """The weight files transformers would read there: safetensors first, else its .bin files."""
    shards = sorted(folder.glob("model*.safetensors"))
    return shards or sorted(folder.glob("pytorch_model*.bin"))


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _patterns(entry: CatalogueEntry) -> list[str]:
    if entry.file:
        return [entry.file]
    if entry.kind == "vit":
        return [*_VIT_CONFIG, "model*.safetensors*"]
    return [*_VIT_CONFIG, *(f"*{suffix}" for suffix in WEIGHT_SUFFIXES)]


def _located(entry: CatalogueEntry, path: Path, source: str, revision: str | None) -> Located:
    if path.is_file():
        if entry.kind == "vit":
            raise WeightsError(
                f"{path} is a file: an encoder of transformers is a folder with a config.json"
            )
        return Located(kind="vim", path=path, source=source, revision=revision)
    if entry.kind != "vim" and (path / "config.json").exists():
        if not vit_weight_files(path):
            raise WeightsError(
                f"{path} has a config.json but neither model*.safetensors nor pytorch_model*.bin"
            )
        return Located(kind="vit", path=path, source=source, revision=revision)
    return Located(kind="vim", path=_only_weights(entry, path), source=source, revision=revision)


def _only_weights(entry: CatalogueEntry, folder: Path) -> Path:
    names = [entry.file] if entry.file else []
    expected = [folder / name for name in names if (folder / name).exists()]
    found = expected or [p for p in sorted(folder.iterdir()) if p.suffix in WEIGHT_SUFFIXES]
    if len(found) == 1:
        return found[0]
    what = _listing(p.name for p in folder.iterdir())
    raise WeightsError(
        f"{folder} holds {'several weight files' if found else 'no weight file'}; found: {what}. "
        f"Name the file itself with {entry.name}=PATH"
    )


def _snapshot(entry: CatalogueEntry, patterns: list[str], tell: Tell | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    assert entry.repo is not None
    at = f" at revision {entry.revision}" if entry.revision else ""
    try:
        return Path(
            snapshot_download(
                entry.repo,
                revision=entry.revision,
                allow_patterns=patterns,
                tqdm_class=telling_bars(tell) if tell else None,
            )
        )
    except errors.GatedRepoError as error:
        raise WeightsError(f"{entry.repo} is gated: accept its terms and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{entry.repo} has no revision {entry.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"the Hub has no repository {entry.repo} (or it is private: set HF_TOKEN)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise WeightsError(
            f"{entry.repo}{at} is not in the local Hub cache, and the Hub cannot be reached "
            f"(or HF_HUB_OFFLINE is set): connect once, give a local file with "
            f"{entry.name}=PATH, or try vim-micro, whose weights are in the package"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise WeightsError(f"{entry.repo}{at} could not be fetched: {error}") from error


def _remote_files(entry: CatalogueEntry, folder: Path) -> list[str]:
    from huggingface_hub import HfApi, errors

    assert entry.repo is not None
    try:
        return HfApi().list_repo_files(entry.repo, revision=entry.revision)
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError):
        return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]


def _listing(names: Iterable[str]) -> str:
    shown = sorted(names)
    text = ", ".join(shown[:20]) or "nothing"
    return text + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")
