"""Read captions from a text file with one caption per line, and the names of their images from a second one.

The second file, `names` in the layout, has one line for every k captions, k being the ratio of the two numbers of
lines; the captions of an image follow each other. Retrieval projects distribute captions in this way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part, read_text


def parse(part: Part, card: Card) -> Iterator[Entry]:
    captions = read_text(part.paths["annotations"]).splitlines()
    names = read_text(part.paths["names"]).splitlines()
    if not names or len(captions) % len(names):
        raise EarthGPTError(
            f"{part.paths['names']}: expected a divisor of the {len(captions)} lines of "
            f"{part.name(part.paths['annotations'])}, got {len(names)} lines; download both files again"
        )
    repeat = len(captions) // len(names)
    rows = zip((name.strip() for name in names for _ in range(repeat)), captions, strict=True)
    for name, group in itertools.groupby(rows, key=lambda row: row[0]):
        yield Entry(
            id=part.prefix + name.rsplit(".", 1)[0],
            image=name,
            file=part.name(part.paths["annotations"]),
            split=part.split,
            problem="" if name else "no image name",
            captions=tuple(caption for _, caption in group),
        )
