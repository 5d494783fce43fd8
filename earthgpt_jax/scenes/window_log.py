"""The answers of windows as they come, in files that a killed run continues from.

With `--out boxes.gpkg`, a process appends to `boxes.gpkg.windows.jsonl`; process 0 of 2 to
`boxes.gpkg.windows-0-of-2.jsonl`. The first line says what the answers depend on. The files of all processes count, so
a run may continue with another number of them. They stay when the run is complete: merging again, or filtering in
another way, then needs no model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.common import json_lines
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.inference.processes import Process
from earthgpt_jax.scenes.merging import SceneObject
from earthgpt_jax.scenes.windows import Window


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WindowAnswer:
    """What the model says about a window.

    Attributes:
        objects: in pixels of the scene, in the order of the answer.
        rejected: the parts of the answer that look like a box but cannot be read.
        text: the answer; None if the window has no data and the model was not asked.
    """

    objects: tuple[SceneObject, ...] = ()
    rejected: tuple[str, ...] = ()
    text: str | None = None


class WindowLog:
    """Answers by scene and window, in memory and, if there is a path, in files."""

    def __init__(self, out: Path | None, header: Mapping[str, Any], process: Process):
        """Read the answers that earlier processes wrote.

        Args:
            out: the file that the run writes in the end; None to keep answers in memory only.
            header: what the answers depend on.

        Raises:
            EarthGPTError: a file belongs to another run.
        """
        self.scenes: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, dict[Window, WindowAnswer]] = {}
        self._out, self._header = out, json.loads(json.dumps(header))  # tuples become lists, as in a file
        self._file: json_lines.JsonLines | None = None
        if out is None:
            return
        for path in self._paths():
            self._read(path)
        part = "" if process.count == 1 else f"-{process.index}-of-{process.count}"
        path = out.with_name(f"{out.name}.windows{part}.jsonl")
        try:
            self._file = json_lines.JsonLines(path)
        except OSError as error:
            raise EarthGPTError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        if not self._file.earlier:
            self._file.write({"run": self._header})

    def add_scene(self, image: str, facts: Mapping[str, Any]) -> None:
        """Record what a scene is.

        Raises:
            EarthGPTError: it was another file when its first windows were answered.
        """
        is_new = image not in self.scenes
        facts = json.loads(json.dumps(facts))
        earlier = self.scenes.setdefault(image, dict(facts))
        if earlier != facts:
            changed = next(name for name in facts if facts[name] != earlier.get(name))
            raise EarthGPTError(
                f"image {image}: its {changed} was {earlier.get(changed)} when {self._out} was begun, and is "
                f"{facts[changed]}; delete {self._out}.windows*.jsonl to begin again"
            )
        if self._file and is_new:
            self._file.write({"scene": image, **facts})

    def add(self, image: str, window: Window, answer: WindowAnswer) -> None:
        """Record an answer."""
        self.answers.setdefault(image, {})[window] = answer
        if self._file:
            self._file.write({"image": image, "window": dataclasses.astuple(window), **_to_json(answer)})

    def of_scene(self, image: str, windows: Sequence[Window]) -> list[WindowAnswer]:
        """Return the answers about a scene, in the order of its windows."""
        known = self.answers.get(image, {})
        missing = [window for window in windows if window not in known]
        if missing:
            raise EarthGPTError(
                f"image {image}: {len(missing)} of {len(windows)} windows have no answer; do all processes see the "
                "same folder? Run the same command again to answer them"
            )
        return [known[window] for window in windows]

    def read_others(self) -> None:
        """Read what other processes have written meanwhile."""
        for path in self._paths():
            self._read(path)

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _paths(self) -> list[Path]:
        assert self._out is not None
        folder, start = self._out.parent, f"{self._out.name}.windows"
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if path.name.startswith(start) and path.suffix == ".jsonl")

    def _read(self, path: Path) -> None:
        for line in json_lines.read(path):
            if "run" in line:
                self._check(path, line["run"])
            elif "scene" in line:
                image = line.pop("scene")
                self.scenes.setdefault(image, line)
            else:
                window = Window(*line["window"])
                self.answers.setdefault(line["image"], {})[window] = _from_json(line, window)

    def _check(self, path: Path, saved: Mapping[str, Any]) -> None:
        differing = [
            f"{key} was {saved.get(key)!r}, is {self._header.get(key)!r}"
            for key in sorted(saved.keys() | self._header.keys())
            if saved.get(key) != self._header.get(key)
        ]
        if differing:
            raise EarthGPTError(
                f"{path} holds answers of another run: {'; '.join(differing)}. Choose another --out, or delete the file"
            )


def _to_json(answer: WindowAnswer) -> dict[str, Any]:
    boxes = [
        [item.label, item.kind.value, item.polygon.reshape(-1).tolist(), item.confidence] for item in answer.objects
    ]
    return {"answer": answer.text, "boxes": boxes, "rejected": list(answer.rejected)}


def _from_json(line: Mapping[str, Any], window: Window) -> WindowAnswer:
    objects = tuple(
        SceneObject(
            label=label, kind=BoxKind(kind), polygon=np.array(polygon, np.float64).reshape(4, 2),
            confidence=confidence, window=window,
        )
        for label, kind, polygon, confidence in line["boxes"]
    )  # fmt: skip
    return WindowAnswer(objects=objects, rejected=tuple(line["rejected"]), text=line["answer"])
