"""Each python and bash block of README.md and docs/ is run against a real server.

A new page is taken up by itself. Blocks of one page run in order, in a folder with the files that
`_reader_s_files` makes; those that cannot run here stand in NOT_RUN with the reason, pages with a
test of their own in RUN_BY.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from generate_docs import ROOT
from PIL import Image

from support.doc_blocks import Block, BlockFailed, Reader, blocks_of, pages
from support.embedding_files import write_embeddings
from support.encoders import saved
from support.fixtures_vim import DATA
from support.serving import running
from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
from vim_embed.http.app import create_app
from vim_embed.models.vim import VIM_CONFIGS, Vim, init_random
from vim_embed.settings import Settings
from vim_embed.weights.catalogue import CATALOGUE, CatalogueEntry
from vim_embed_client.results import Provenance

# (page, first line of the block): why it is not run
NOT_RUN = {
    ("README.md", "git clone REPOSITORY vim-embed && cd vim-embed"): (
        "clones and installs; tests/client/demo runs the demo"
    ),
    ("README.md", "make test"): "this is part of it",
    ("README.md", "python3 -m venv ~/vim-embed-env && . ~/vim-embed-env/bin/activate"): (
        "installs from the package index"
    ),
    ("README.md", "cp .env.example .env          # every line is optional"): (
        "needs Docker and a GPU; make container-test"
    ),
    (
        "README.md",
        'pip install . platonic-universe "polars<2"           '
        "# 1. beside each other, in this folder",
    ): (
        "installs from the package index and downloads a survey; "
        "tests/client/platonic runs the rest"
    ),
    (
        "docs/containers.md",
        "docker compose run --rm vim-embed fetch vim-tiny vim-tiny-proxy  # with a network",
    ): "needs Docker; docker/verify/offline.sh runs the same with a small checkpoint",
    (
        "docs/containers.md",
        "TORCH=cu126 docker compose build                     # or a line of .env",
    ): ("needs Docker and PyTorch's own index"),
    (
        "docs/containers.md",
        "docker run --gpus all -p 127.0.0.1:8000:8000 -v vim-embed-cache:/cache --read-only "
        "--tmpfs /tmp \\",
    ): "needs Docker and a GPU",
    ("docs/containers.md", "python3 -m venv /opt/vim-embed"): "installs a unit of systemd",
    (
        "docs/containers.md",
        "apptainer build vim-embed.sif docker/apptainer/vim-embed.def",
    ): "needs Apptainer",
    (
        "docs/containers.md",
        "MODEL=vim-tiny sbatch docker/slurm/one-node.sbatch hsc/ hsc.parquet",
    ): "needs SLURM",
    ("docs/models.md", "vim-embed-server serve --model dinov2=hf:facebook/dinov2-base"): (
        "downloads weights; tests/service/models/test_encoders.py serves small ones"
    ),
    ("docs/platonic-universe.md", "vim-embed attach --models dino"): (
        "downloads weights and a survey; the twins' tests run the same on small ones"
    ),
    (
        "docs/platonic-universe.md",
        'table = polars.read_parquet("data/jwst_vim-remote.parquet")',
    ): "needs a run's table; the tests in the real host compare the digests",
    ("docs/v2.md", 'pip install "tritonclient[http]"'): "installs from the package index",
    ("docs/v2.md", "import numpy as np"): "tests/service/http/test_v2_docs.py runs it",
    ("docs/ray.md", 'pip install -c constraints.txt ".[service,ray]"'): (
        "needs Ray and a GPU; make ray-test runs a cluster"
    ),
    ("docs/ray.md", "docker build --build-arg EXTRAS=service,otel,ray -t vim-embed:gpu ."): (
        "needs Docker and a GPU"
    ),
    (
        "docs/ray.md",
        "python -m vim_embed.cluster.bulk /survey/*.npy /survey/stamps.parquet "
        "-o embeddings.parquet --model vim-tiny",
    ): "needs Ray; make ray-test runs the command on files of its own",
}
# page: the test that runs each of its blocks
RUN_BY = {
    "docs/bulk.md": "tests/client/bulk/test_docs_bulk.py",
    "docs/sky.md": "tests/client/bulk/test_docs_sky.py",
    "docs/scoring.md": "tests/client/figures/test_pictures_docs.py",
    "docs/tutorial.md": "tests/client/demo/test_tutorial.py",
}
SOURCES = 50  # of each survey
RUN = ("bash", "python")
SHOWN = ("", "text", "json", "yaml", "toml", "ini", "nginx", "console", "promql", "dockerfile")
PAGES = [path for path in pages(ROOT) if blocks_of(path, ROOT)]
BLOCKS = [block for path in PAGES for block in blocks_of(path, ROOT)]


def _to_run(path: Path) -> list[Block]:
    """The blocks of a page that are run here, in order."""
    return [
        block
        for block in blocks_of(path, ROOT)
        if block.language in RUN
        and block.page not in RUN_BY
        and (block.page, block.first_line) not in NOT_RUN
    ]


def _reader_s_files(folder: Path) -> None:
    """The files that the pages speak of: pixels, images, two surveys and a checkpoint."""
    rng = np.random.default_rng(7)
    np.save(folder / "galaxies.npy", rng.integers(0, 256, (4, 3, 64, 64), dtype=np.uint8))
    images = ["ngc1300.png", "survey/a.png", "survey/b.png", "more-galaxies/c.png"]
    for name in ("hsc", "jwst"):
        ids = [f"{name}/g{row:02}.png" for row in range(SOURCES)]
        embeddings = rng.normal(size=(SOURCES, 16)).astype(np.float32)
        provenance = Provenance(model="vim-tiny")
        write_embeddings(folder / f"{name}.parquet", embeddings, ids, provenance)
        images += ids
    for image in images:
        path = folder / image
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    fluxes = rng.random((4, 40, 40), dtype=np.float32)
    for name in ("galaxy", "field1", "field2"):  # of fields, each place is a galaxy
        fits.PrimaryHDU(fluxes).writeto(folder / f"{name}.fits")
    redshifts = [f"g{row:02},{row / SOURCES}" for row in range(SOURCES)]
    (folder / "catalogue.csv").write_text("\n".join(["id,z", *redshifts]))
    (folder / "data").mkdir()
    shutil.copy(DATA / "vim_micro.pth", folder / "data" / "my_vim.pth")


@pytest.fixture(scope="session")
def service() -> Iterator[str]:
    """A server whose vim-tiny is a small checkpoint, so that pages do not take minutes."""
    names = ("vim-tiny", "vim-small", "vim-base")
    path = DATA / "vim_micro.pth"
    entries = [CatalogueEntry(name=name, kind="vim", path=path) for name in names]
    engine = TorchEngine(entries, EngineOptions(device=torch.device("cpu")))
    with running(create_app(Settings(model_control=True), engine)) as url:
        yield url


def _snapshot(home: Path, name: str) -> Path:
    """The folder of a catalogue model's files in a Hub cache."""
    repo = CATALOGUE[name].repo
    assert repo is not None
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    revision = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache with random weights: a vim-tiny for small images, and a small ViT for its proxy.

    Small images take a tenth of the time of the check at load.
    """
    home = tmp_path_factory.mktemp("hub")
    file = CATALOGUE["vim-tiny"].file
    assert file is not None
    vim = Vim(replace(VIM_CONFIGS["vim-tiny"], image_size=64))
    init_random(vim, 0)
    torch.save({"model": vim.state_dict()}, _snapshot(home, "vim-tiny") / file)
    saved("vit", _snapshot(home, "vim-tiny-proxy"))
    return home


@pytest.fixture
def reader(tmp_path: Path, service: str, hub: Path) -> Iterator[Reader]:
    _reader_s_files(tmp_path)
    (tmp_path / ".curlrc").write_text("fail-with-body\n")  # curl alone takes a 404 for success
    env = {
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "CURL_HOME": str(tmp_path),
    }
    with Reader(tmp_path, service, env) as reader:
        yield reader


@pytest.mark.parametrize("path", [p for p in PAGES if _to_run(p)], ids=lambda path: path.name)
def test_blocks_run(path: Path, reader: Reader) -> None:
    for block in _to_run(path):
        reader.run(block)


def test_every_block_has_a_language_that_is_run_or_shown() -> None:
    odd = [f"{b.name}: {b.language}" for b in BLOCKS if b.language not in RUN + SHOWN]
    assert not odd, f"use one of {RUN + SHOWN}"


def test_what_is_not_run_exists() -> None:
    known = {(b.page, b.first_line) for b in BLOCKS}
    assert set(NOT_RUN) <= known
    assert all(NOT_RUN.values())
    assert set(RUN_BY) <= {page for page, _ in known}


def test_what_is_said_to_run_them_does_read_the_page() -> None:
    named = [(page, test) for page, test in RUN_BY.items()]
    for (page, _), reason in NOT_RUN.items():
        named += [(page, test) for test in re.findall(r"tests/\S+\.py", reason)]
    assert len(named) > len(RUN_BY)
    for page, test in named:
        assert f'"{Path(page).name}"' in (ROOT / test).read_text(), f"{test} does not read {page}"


@pytest.mark.parametrize(
    ("language", "code", "told"),
    [
        ("bash", "echo begun\nfalse | true\n", "begun"),
        ("bash", "curl -s http://127.0.0.1:8000/no-such-route\n", "ended with 22"),
        ("bash", "vim-embed-server serve --no-such-flag\n", "No such option"),
        ("python", "value = 1\nraise OSError('lost')\n", "OSError: lost"),
        ("python", "import os\nos._exit(1)\n", "the interpreter ended"),
    ],
)
def test_a_wrong_block_is_found(reader: Reader, language: str, code: str, told: str) -> None:
    with pytest.raises(BlockFailed, match=told):
        reader.run(Block("page.md", 1, language, code))


def test_python_blocks_of_a_page_share_their_names(reader: Reader) -> None:
    reader.run(Block("page.md", 1, "python", "answer = 6 * 7\n"))
    reader.run(Block("page.md", 5, "python", "assert answer == 42\n"))
