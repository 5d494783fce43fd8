"""The images that a command works on: files, folders and patterns on its command line."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError

if TYPE_CHECKING:
    from earthgpt_jax.models.model_dir import ModelDir
    from earthgpt_jax.raster.decode import Picture
    from earthgpt_jax.raster.policy import StretchPolicy
    from earthgpt_jax.scenes.windows import Window

HELP = (
    "an image file (PNG, JPEG, TIFF, JPEG 2000, VRT), a folder of images, a quoted pattern such as 'scenes/**/*.tif', "
    "or a STAC item (.json)"
)
STRETCH_HELP = (
    "how images become 8 bits, as YAML: 'bands: [4, 3, 2]', '{values: intensity, range: [-25, 0]}' (default: 8 bits as "
    "stored, others between the 2nd and 98th percentile of each band)"
)
TINY_FACTOR = 8  # an image this many times larger than the model's input gets a warning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=HELP)
    parser.add_argument("--asset", metavar="NAME", help="of STAC items, the asset to read (default: its only image)")
    parser.add_argument("--stretch", metavar="POLICY", help=STRETCH_HELP)
    parser.add_argument("--quiet", action="store_true", help="print no summary and no warnings on standard error")


def stretch_policy(args: argparse.Namespace) -> StretchPolicy:
    """Return the policy of `--stretch`.

    Raises:
        EarthGPTError: the option is invalid.
    """
    from earthgpt_jax.raster.policy import StretchPolicy

    return StretchPolicy.parse(args.stretch) if args.stretch is not None else StretchPolicy()


def find(words: Sequence[str], *, asset: str | None = None) -> list[Path]:
    """Return the image files that the words of a command line name, each once, in their order.

    A folder stands for the images in it and in its subfolders, by name; other files in it are left out.

    Raises:
        EarthGPTError: a folder or a pattern has no images, or a word is a web address. A missing file is found out
            when it is read.
    """
    return list(dict.fromkeys(path for word in words for path in _find(word, asset)))


def _find(word: str, asset: str | None) -> list[Path]:
    from earthgpt_jax.cli.stac import image_of_item
    from earthgpt_jax.datasets.readers.native_tree import is_image

    if word.startswith(("http://", "https://")):
        raise EarthGPTError(f"image {word}: expected a file, got a web address; download it and give the file")
    path = files.path(word)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if is_image(file) and file.is_file())
        where = "folder"
    elif glob.has_magic(word) and not path.exists():
        found = [file for file in files.glob(word) if is_image(file) or file.suffix.lower() == ".vrt"]
        where = "pattern"
    else:
        return [image_of_item(path, asset) if path.suffix.lower() == ".json" else path]
    if not found:
        raise EarthGPTError(f"{where} {word}: expected images such as PNG, JPEG or TIFF, found none")
    return found


class Images:
    """Reads images one after another; one that cannot be read is reported and passed over.

    Attributes:
        paths: the images.
        failed: the number of images that could not be read so far.
    """

    def __init__(self, paths: Sequence[Path], policy: StretchPolicy, *, window: Window | None = None):
        """Create a reader; `window` is the part of each image to read, default: all."""
        self.paths, self.failed = paths, 0
        self._policy, self._window = policy, window

    def read(self) -> Iterator[tuple[Path, Picture]]:
        """Yield (path, picture).

        Raises:
            EarthGPTError: the only image cannot be read, or none of several.
        """
        from earthgpt_jax.raster.scene_file import read_scene

        part = None if self._window is None else self._window.extent
        for path in self.paths:
            try:
                picture = read_scene(path, self._policy, window=part)
            except EarthGPTError as error:
                if len(self.paths) == 1:
                    raise
                self.failed += 1
                print(f"error: {error}", file=sys.stderr)
                continue
            yield path, picture
        if self.failed == len(self.paths):
            raise EarthGPTError(f"none of {len(self.paths)} images could be read")

    def status(self) -> int:
        """Report how many images could not be read, and return the exit status."""
        if self.failed:
            print(f"error: {self.failed} of {len(self.paths)} images could not be read", file=sys.stderr)
        return 2 if self.failed else 0


def warn_about_model(model: ModelDir) -> None:
    """Print a warning if the model has seen synthetic scenes only."""
    if model.provenance.get("source") == "synthetic":
        _warn(f"{model.path.name} was trained on synthetic scenes only: its answers about real images mean nothing")


def warn_about_size(
    path: Path, *, width: int, height: int, image_size: int, advice: str = "choose a part of it with --window"
) -> None:
    """Print a warning if an image loses most of its detail when it is resized to the model's input."""
    longest = max(width, height)
    if longest >= TINY_FACTOR * image_size:
        pixel = longest / image_size
        _warn(
            f"{path}: the model sees {width} x {height} pixels at {image_size} x {image_size}: objects "
            f"smaller than {pixel:.0f} pixels cannot be seen; {advice}"
        )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
