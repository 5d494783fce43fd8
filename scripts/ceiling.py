"""Print how well perfect boxes score after being written as text: `python scripts/ceiling.py DATASETS`."""

from __future__ import annotations

import argparse
from pathlib import Path

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.datasets.manifest import dataset_directories, read_manifest
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.evaluation.ceiling import table
from earthgpt_jax.records import Record, Task


def records(folder: Path) -> list[Record]:
    """Return all records with boxes, of every split of every dataset in a folder."""
    selected = []
    for directory in dataset_directories(folder):
        for split in read_manifest(directory)["counts"]:
            selected += [record for record in RecordSource(directory, split) if Task.HBB in record.tasks]
    return selected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", type=Path, help="a dataset directory of `earthgpt data build`, or a folder of them")
    with_boxes = records(parser.parse_args().datasets)
    for kind, title in ((BoxKind.HBB, "Horizontal boxes"), (BoxKind.OBB, "Oriented boxes")):
        print(f"### {title}\n\n{table(with_boxes, kind)}\n")


if __name__ == "__main__":
    main()
