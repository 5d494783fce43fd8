"""Draw docs/images/gallery.png: what the shipped `tiny` says about one synthetic image of each sensor.

    python scripts/docs/gallery.py

The images are the first of each sensor in the synthetic test split that have at least three objects.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import earthgpt_jax as eg
from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.records import Record, Sensor
from earthgpt_jax.synthetic import SyntheticSource

OUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "gallery.png"
SIZE, GAP, TEXT = 410, 20, 136  # pixels
CATEGORY, SHORT = (
    "What is the category of this remote sensing image?",
    "Answer the question using a single word or phrase.",
)
INK, MUTED, PAPER, MARK = "#1f2d3a", "#5b6b7a", "#fbfcfd", "#ff4d3d"


def chosen() -> list[Record]:
    source = SyntheticSource("test", 200)
    records = [source[i] for i in range(60)]
    return [next(r for r in records if r.sensor is sensor and len(r.objects) >= 3) for sensor in Sensor]


def panel(model: eg.Model, record: Record) -> Image.Image:
    pixels = record_pixels(record)
    scale = SIZE / pixels.shape[0]
    image = Image.new("RGB", (SIZE, SIZE + TEXT), PAPER)
    image.paste(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC), (0, 0))
    pen = ImageDraw.Draw(image)
    font, bold = ImageFont.load_default(13), ImageFont.load_default(14)
    for detection in model.detect(record.image, boxes="hbb"):
        corners = [(float(x) * scale, float(y) * scale) for x, y in detection.polygon]
        pen.polygon(corners, outline=MARK, width=3)
        x, y = min(corners, key=lambda corner: corner[1])
        x, y = min(max(x, 2), SIZE - 90), max(y - 20, 2)
        box = pen.textbbox((x, y), detection.label, font=font)
        pen.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=MARK)
        pen.text((x, y), detection.label, font=font, fill="white")
    pen.text((2, SIZE + 10), record.sensor.value.upper(), font=bold, fill=MUTED)
    y = SIZE + 34
    questions = [CATEGORY, *(turn.question for turn in record.turns[:3])]
    answers = model.answer(record.image, [f"{question} {SHORT}" for question in questions], max_new_tokens=16)
    for question, answer in zip(questions, answers, strict=True):
        pen.text((2, y), question, font=font, fill=MUTED)
        pen.text((2 + pen.textlength(question + "  ", font=font), y), answer, font=bold, fill=INK)
        y += 24
    return image


def main() -> None:
    model = eg.load("tiny")
    panels = [panel(model, record) for record in chosen()]
    page = Image.new("RGB", (len(panels) * (SIZE + GAP) + GAP, SIZE + TEXT + 2 * GAP), PAPER)
    for index, image in enumerate(panels):
        page.paste(image, (GAP + index * (SIZE + GAP), GAP))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(128).save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main()
