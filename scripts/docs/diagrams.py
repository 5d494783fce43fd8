"""Draw the two diagrams of docs/architecture.md as SVG: the path of an image, and the path of a parameter.

    python scripts/docs/diagrams.py

writes docs/images/image_path.svg and docs/images/parameter_path.svg.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "docs" / "images"

COLORS = {"file": "#e8eef4", "host": "#dff0e6", "device": "#fbe8d3", "text": "#efe6f7"}
INK, LINE = "#1f2d3a", "#5b6b7a"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A rounded box with a title, lines of text, and a color that says where it happens."""

    x: int
    y: int
    width: int
    title: str
    lines: Sequence[str] = ()
    kind: str = "host"

    @property
    def height(self) -> int:
        return 34 + 17 * len(self.lines)

    def svg(self) -> str:
        text = "".join(
            f'<text x="{self.x + 12}" y="{self.y + 40 + 17 * i}" font-size="12">{escape(line)}</text>'
            for i, line in enumerate(self.lines)
        )
        return (
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8" '
            f'fill="{COLORS[self.kind]}" stroke="{LINE}"/>'
            f'<text x="{self.x + 12}" y="{self.y + 22}" font-size="14" font-weight="600">{escape(self.title)}</text>'
            f"{text}"
        )


def arrow(start: tuple[int, int], end: tuple[int, int], label: str = "") -> str:
    (x0, y0), (x1, y1) = start, end
    text = ""
    if label:
        x, y, anchor = ((x0 + x1) // 2, y0 - 7, "middle") if y0 == y1 else (x0 + 9, (y0 + y1) // 2 + 4, "start")
        text = f'<text x="{x}" y="{y}" font-size="11" text-anchor="{anchor}" fill="{LINE}">{escape(label)}</text>'
    return (
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{LINE}" stroke-width="1.6" '
        f'marker-end="url(#head)"/>{text}'
    )


def legend(x: int, y: int, names: Sequence[tuple[str, str]]) -> str:
    parts = []
    for kind, name in names:
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="14" rx="3" fill="{COLORS[kind]}" stroke="{LINE}"/>')
        parts.append(f'<text x="{x + 20}" y="{y + 12}" font-size="12">{escape(name)}</text>')
        x += 34 + 7 * len(name)
    return "".join(parts)


def page(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" fill="{INK}" role="img"><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="#fbfcfd"/>'
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>{"".join(parts)}</svg>\n'
    )


def image_path() -> str:
    """From a native file to an answer."""
    record = Box(
        x=20,
        y=20,
        width=200,
        title="Record",
        kind="file",
        lines=("image bytes, as in the file", "boxes in pixels, labels,", "captions, questions"),
    )
    sample = Box(
        x=280,
        y=20,
        width=220,
        title="Sample",
        lines=("question and answer as text,", "boxes written in fractions", "of the padded square"),
    )
    batch = Box(
        x=560,
        y=20,
        width=220,
        title="Batch",
        lines=("packed sequences [B, T],", "images u8 [B, I, S, S, 3],", "padded to a square"),
    )
    vit = Box(
        x=560, y=165, width=220, title="ViT tower (DINOv2)", kind="device", lines=("257 tokens, 4 layers tapped",)
    )
    cnn = Box(
        x=280, y=165, width=220, title="CNN tower (ConvNeXt)", kind="device", lines=("4 scales on the 16 x 16 grid",)
    )
    projector = Box(
        x=420,
        y=262,
        width=220,
        title="Perception and projector",
        kind="device",
        lines=("channels concatenated,", "257 visual tokens of width D"),
    )
    llm = Box(
        x=420,
        y=380,
        width=220,
        title="LLaMA with adapters",
        kind="device",
        lines=("[BOS][start_img] visual", "[end_img] text"),
    )
    answer = Box(
        x=700, y=380, width=180, title="Answer", kind="text", lines=("text; boxes read back", "into image pixels")
    )
    loss = Box(x=160, y=380, width=200, title="Loss", kind="text", lines=("next token, on answers", "only, fp32"))
    parts = [
        *(b.svg() for b in (record, sample, batch, vit, cnn, projector, llm, answer, loss)),
        arrow((220, 60), (280, 60)),
        arrow((500, 60), (560, 60)),
        arrow((670, 105), (670, 165), "to the device"),
        arrow((600, 105), (430, 165)),
        arrow((600, 216), (560, 262)),
        arrow((430, 216), (480, 262)),
        arrow((530, 330), (530, 380)),
        arrow((640, 410), (700, 410)),
        arrow((420, 410), (360, 410)),
        legend(
            20, 470, (("file", "on disk"), ("host", "CPU, input workers"), ("device", "TPU or GPU"), ("text", "result"))
        ),
    ]
    return page(900, 500, "The path of an image through EarthGPT-JAX", parts)


def parameter_path() -> str:
    """From a published checkpoint to an exported one."""
    source = Box(
        x=20,
        y=20,
        width=220,
        title="Published checkpoints",
        kind="file",
        lines=("DINOv2, ConvNeXt, LLaMA", "safetensors, .pth"),
    )
    params = Box(
        x=340,
        y=20,
        width=240,
        title="Params: a flat dict",
        kind="host",
        lines=('"llm/blocks/attn/q/kernel"', "  -> Array[L, D, N*H]"),
    )
    stages = Box(
        x=340,
        y=150,
        width=240,
        title="split(params, stage)",
        kind="host",
        lines=("trainable: fp32", "frozen: bf16 or int8"),
    )
    placed = Box(
        x=340,
        y=290,
        width=240,
        title="Sharded over the mesh",
        kind="device",
        lines=("axes: data, fsdp, tensor", "large weights split by rule"),
    )
    step = Box(
        x=660,
        y=290,
        width=220,
        title="Train step",
        kind="device",
        lines=("gradients of trainable only,", "AdamW, guarded update"),
    )
    checkpoint = Box(
        x=660,
        y=150,
        width=220,
        title="Checkpoints",
        kind="file",
        lines=("trainable, optimizer state,", "position in the data"),
    )
    model = Box(
        x=660,
        y=20,
        width=220,
        title="Model directory, exports",
        kind="file",
        lines=("safetensors; Hugging Face,", "LLaMA2-Accessory"),
    )
    tables = Box(
        x=20,
        y=180,
        width=220,
        title="Tables of rules",
        kind="text",
        lines=(
            "convert/tables.py: keys",
            "training/stages.py: trainable",
            "sharding/rules.py: mesh axes",
            "total and tight",
        ),
    )
    parts = [
        *(b.svg() for b in (source, params, stages, placed, step, checkpoint, model, tables)),
        arrow((240, 54), (340, 54), "import"),
        arrow((460, 88), (460, 150)),
        arrow((460, 218), (460, 290)),
        arrow((580, 324), (660, 324)),
        arrow((770, 290), (770, 218), "save"),
        arrow((580, 54), (660, 54), "export"),
        arrow((240, 200), (340, 75)),
        arrow((240, 220), (340, 185)),
        arrow((240, 250), (340, 310)),
        legend(
            20,
            380,
            (("file", "on disk"), ("host", "in the program"), ("device", "TPU or GPU"), ("text", "decides by path")),
        ),
    ]
    return page(900, 410, "The path of a parameter through EarthGPT-JAX", parts)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for name, drawing in (("image_path", image_path()), ("parameter_path", parameter_path())):
        (OUT / f"{name}.svg").write_text(drawing, encoding="utf-8")
        print(OUT / f"{name}.svg")


if __name__ == "__main__":
    main()
