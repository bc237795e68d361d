"""Weights from Hub ids: the real loading code on a local Hub cache, offline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from support.fixtures_vim import DATA, load_fixture, relative_l2
from vim_embed import load_model
from vim_embed.errors import WeightsError
from vim_embed.weights.catalogue import CATALOGUE, ModelArgumentError, parse_model
from vim_embed.weights.hub import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put(cache: Path, repo: str, files: dict[str, Path], *, ref: str = "main") -> None:
    """Lay the files out as huggingface_hub caches a snapshot."""
    commit = COMMIT if ref == "main" else OTHER
    folder = cache / ("models--" + repo.replace("/", "--"))
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    for name, path in files.items():
        shutil.copy(path, snapshot / name)


def test_a_cached_repository(cache: Path) -> None:
    put(cache, "someone/vim", {"weights.pth": DATA / "vim_micro.pth", "README.md": __file__})  # type: ignore[dict-item]
    fixture = load_fixture("vim_micro")
    model = load_model("mine", "someone/vim", device="cpu")
    assert relative_l2(model.embed(fixture.pixel_values), fixture.mean) < 1e-5
    weights = model.info.weights
    assert (weights.source, weights.revision) == ("someone/vim", COMMIT)
    assert (weights.file, weights.random) == ("weights.pth", False)


def test_a_revision_and_a_file(cache: Path) -> None:
    files = {"a.pth": DATA / "vim_micro.pth", "b.pth": DATA / "vim_micro_stride8.pth"}
    put(cache, "someone/vim", files)
    put(cache, "someone/vim", files, ref="v2")
    with pytest.raises(WeightsError, match=r"several weight files; found: a\.pth, b\.pth"):
        load_model("mine", "someone/vim")
    model = load_model("mine", "someone/vim@v2:b.pth", device="cpu")
    assert model.info.dim == 32
    assert model.info.weights.revision == OTHER


def test_the_released_file_names(cache: Path) -> None:
    put(
        cache,
        "hustvl/Vim-tiny-midclstok",
        {
            "vim_t_midclstok_76p1acc.pth": DATA / "vim_micro.pth",
            "vim_t_midclstok_ft_78p3acc.pth": DATA / "vim_micro_stride8.pth",
        },
    )
    for name, file in (
        ("vim-tiny", "vim_t_midclstok_76p1acc.pth"),
        ("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
        ("vim-tiny-plus", "vim_t_midclstok_ft_78p3acc.pth"),
    ):
        assert locate(parse_model(name)).path.name == file


def test_an_absent_file_says_what_was_found(cache: Path) -> None:
    put(cache, "hustvl/Vim-base-midclstok", {"renamed.pth": DATA / "vim_micro.pth"})
    with pytest.raises(WeightsError, match=r"no vim_b_midclstok_81p9acc\.pth; found: renamed\.pth"):
        locate(CATALOGUE["vim-base"])


def test_nothing_cached_and_offline(cache: Path) -> None:
    with pytest.raises(WeightsError, match="vim-tiny=PATH"):
        load_model("vim-tiny")


def test_model_arguments() -> None:
    assert parse_model("hustvl/Vim-small-midclstok").name == "vim-small"
    assert parse_model(f"mine={DATA / 'vim_micro.pth'}").path == DATA / "vim_micro.pth"
    entry = parse_model("vim-tiny=hustvl/Vim-tiny-midclstok@abc")
    assert (entry.revision, entry.file) == ("abc", "vim_t_midclstok_76p1acc.pth")
    assert parse_model("mine=a/b@refs/pr/1:c/d.pth").revision == "refs/pr/1"


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("resnet", "vim-tiny"),
        ("mine=/no/such/file.pth", "existing path"),
        ("mine=no/file.pth", "existing path"),
        ("mine=", "neither"),
        ("a/b=c/d", "no slash"),
    ],
)
def test_unreadable_model_arguments(argument: str, says: str) -> None:
    with pytest.raises(ModelArgumentError, match=says):
        parse_model(argument)
