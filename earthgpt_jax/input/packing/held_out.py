"""Hold out a share of the training images, for the validation of datasets that have no split for it.

Images are held out, not records: all records with the same image file, in any dataset of the run, are either trained on
or not. Tiles of a scene count as its image.
"""

from __future__ import annotations

import numpy as np

from earthgpt_jax.datasets.image_digests import NO_IMAGE, read_image_digests
from earthgpt_jax.datasets.manifest import read_manifest, record_counts
from earthgpt_jax.datasets.store import RecordSource

Records = dict[RecordSource, np.ndarray]  # numbers of the records to use, i64[n] in ascending order, by dataset


def hold_out(datasets: Records, *, split: str, share: float) -> tuple[Records, Records]:
    """Return the records to train on, and those held out of each dataset that has no split `split`.

    The digest of an image decides about it, so that the choice depends neither on the other images nor on a seed, and a
    larger share holds out the same images and more.

    Args:
        datasets: the training records.
        split: name of the validation split.
        share: share of the images to hold out, below 1.

    Raises:
        EarthGPTError: a dataset has no image digests.
    """
    digests = {
        dataset: read_image_digests(dataset.directory)[dataset.split][records] for dataset, records in datasets.items()
    }
    limit = np.uint64(int(share * 2**64))
    chosen = {
        dataset: (values < limit) & (values != NO_IMAGE)
        for dataset, values in digests.items()
        if not _has_split(dataset, split)
    }
    images = np.concatenate([np.zeros(0, np.uint64), *(digests[dataset][mask] for dataset, mask in chosen.items())])
    trained = {dataset: records[~np.isin(digests[dataset], images)] for dataset, records in datasets.items()}
    return trained, {dataset: datasets[dataset][mask] for dataset, mask in chosen.items()}


def _has_split(dataset: RecordSource, split: str) -> bool:
    return record_counts(read_manifest(dataset.directory)).get(split, 0) > 0
