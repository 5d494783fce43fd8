"""Read class folders, `<class>/<image>`: the folder name is the scene class of its images."""

from __future__ import annotations

from collections.abc import Iterator

from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part, is_image


def parse(part: Part, card: Card) -> Iterator[Entry]:
    for folder in sorted(path for path in part.paths["images"].iterdir() if path.is_dir()):
        for path in sorted(path for path in folder.iterdir() if path.is_file() and is_image(path)):
            yield Entry(
                id=f"{part.prefix}{folder.name}/{path.stem}",
                image=path.relative_to(part.paths["images"]).as_posix(),
                file=part.name(path),
                split=part.split,
                label=folder.name,
            )
