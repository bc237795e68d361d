"""The pictures of docs/tutorial.md, by its own commands: docs/pictures/tutorial-*.

    make tutorial-pictures

The commands run in a temporary folder, in the order of the page, until all pictures are drawn.
A picture keeps the digest of the weights that it was made with, so that a test sees when the
packaged ones are others.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from support.doc_blocks import Reader, blocks_of
from vim_embed_client.scoring.embedding_files import read_embeddings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
# What a command of the page draws, and the picture that the page shows of it.
PICTURES = {
    "mknn.png": "tutorial-mknn.png",
    "sheet.png": "tutorial-sheet.jpg",
    "map.png": "tutorial-map.png",
}
WIDTH = 980  # pixels at most
COLOURS = 256  # of a PNG
WEIGHTS = "Weights"  # the field with the digest


def write_picture(drawn: Path, path: Path, digest: str) -> None:
    """The figure as the page shows it: small, with the digest of the weights in its metadata."""
    with Image.open(drawn) as figure:
        image = figure.convert("RGB")
    image.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    if path.suffix == ".jpg":
        image.save(path, quality=85, optimize=True, comment=f"{WEIGHTS}: {digest}")
        return
    about = PngInfo()
    about.add_text(WEIGHTS, digest)
    few = image.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True, pnginfo=about)


def digest_of(path: Path) -> str:
    """The digest of the weights that a picture was made with; "" if it has none."""
    with Image.open(path) as image:
        if path.suffix == ".jpg":
            comment = image.info.get("comment", b"").decode()
            return str(comment.removeprefix(f"{WEIGHTS}: "))
        return str(image.info.get(WEIGHTS, ""))


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        with Reader(folder, None, {}) as reader:
            for block in blocks_of(PAGE, ROOT):
                if block.language == "bash":
                    print(block.code, end="", flush=True)
                    reader.run(block)
                if all((folder / drawn).exists() for drawn in PICTURES):
                    break
            else:
                sys.exit(f"{PAGE} does not draw all of {', '.join(PICTURES)}")
        digest = read_embeddings(str(folder / "hubble.parquet")).provenance["weights_digest"]
        for drawn, picture in PICTURES.items():
            path = PAGE.parent / "pictures" / picture
            write_picture(folder / drawn, path, digest)
            print(f"Written: {path.relative_to(ROOT)} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
