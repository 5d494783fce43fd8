"""The map page in a real browser: it needs no network, shows the boxes, zooms and pans."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.boxes import BoxKind, rotated_to_polygon
from earthgpt_jax.raster.policy import Stretch, StretchPolicy
from earthgpt_jax.scenes import quick_look
from earthgpt_jax.scenes.detection import SceneResult
from earthgpt_jax.scenes.merging import SceneObject
from earthgpt_jax.scenes.window_log import WindowAnswer
from earthgpt_jax.scenes.windows import Window

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HERE = Window(0, 0, 300, 400)
DRIVE = """
<script>
picture.addEventListener("load", () => {
  const state = () => [scale, left, top_].map(v => v.toFixed(3)).join(" ");
  const seen = {fit: state()};
  canvas.dispatchEvent(new WheelEvent("wheel", {deltaY: -400, clientX: 100, clientY: 50, cancelable: true}));
  seen.wheel = state();
  window.dispatchEvent(new KeyboardEvent("keydown", {key: "-"}));
  seen.minus = state();
  canvas.dispatchEvent(new PointerEvent("pointermove", {buttons: 1, movementX: 30, movementY: -20}));
  seen.drag = state();
  window.dispatchEvent(new KeyboardEvent("keydown", {key: "0"}));
  seen.all = state();
  const [x, y] = [200 * scale + left, 150 * scale + top_];
  canvas.dispatchEvent(new PointerEvent("pointermove", {buttons: 0, clientX: x, clientY: y}));
  seen.tip = tip.textContent.replaceAll("\\n", ", ");
  const least = document.getElementById("least");
  least.value = 0.6; least.dispatchEvent(new Event("input"));
  seen.sure = document.getElementById("count").textContent;
  least.value = 0; least.dispatchEvent(new Event("input"));
  document.querySelector("#classes input").click();
  seen.hidden = document.getElementById("count").textContent;
  document.querySelector("#classes input").click();
  seen.count = document.getElementById("count").textContent;
  const out = document.createElement("div");
  for (const [name, value] of Object.entries(seen)) out.dataset[name] = value;
  out.id = "seen"; document.body.append(out);
});
</script>
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium")]


def browse(page: Path, *options: str) -> str:
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
         "--window-size=800,700", "--virtual-time-budget=5000", *options, page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_shows_boxes_and_zooms_and_pans(tmp_path: Path):
    Image.new("RGB", (400, 300), (40, 90, 40)).save(tmp_path / "scene.png")
    objects = [
        SceneObject(
            label=label, kind=BoxKind.OBB, confidence=confidence, window=HERE,
            polygon=np.float64(rotated_to_polygon(cx=cx, cy=cy, w=80, h=40, angle=0.4)).reshape(4, 2),
        )
        for label, cx, cy, confidence in (
            ("plane", 300, 220, 0.9), ("ship </script>", 200, 150, 0.5), ("ship", 320, 60, 0.7),
        )
    ]  # fmt: skip
    result = SceneResult(
        path=tmp_path / "scene.png", width=400, height=300, stretch=Stretch(), georeference=None, windows=(HERE,),
        answers=(WindowAnswer(),), objects=tuple(objects),
    )  # fmt: skip
    page = tmp_path / "map.html"
    quick_look.save(page, result, StretchPolicy())
    driven = tmp_path / "driven.html"
    driven.write_text(page.read_text().replace("</html>", f"{DRIVE}</html>"))
    dom = browse(driven, "--dump-dom")
    found = re.search(r'<div id="seen"|<div [^>]*id="seen"[^>]*>', dom)
    assert found, dom[-2000:]
    seen = dict(re.findall(r'data-(\w+)="([^"]*)"', dom[dom.index("data-fit") - 20 :]))
    fit, wheel, minus, drag, everything = (
        [float(v) for v in seen[n].split()] for n in ("fit", "wheel", "minus", "drag", "all")
    )
    assert wheel[0] == pytest.approx(fit[0] * np.e, rel=1e-3)
    for axis, at in ((1, 100), (2, 50)):  # the place under the pointer stays
        assert (at - wheel[axis]) / wheel[0] == pytest.approx((at - fit[axis]) / fit[0], abs=0.01)
    assert minus[0] == pytest.approx(wheel[0] / 1.5, rel=1e-3)
    assert drag == pytest.approx([minus[0], minus[1] + 30, minus[2] - 20], abs=0.01) and everything == fit
    assert seen["tip"].startswith("ship &lt;/script&gt;, confidence 0.5")
    assert (seen["sure"], seen["hidden"], seen["count"]) == ("2 of 3 boxes", "2 of 3 boxes", "3 of 3 boxes")
    browse(page, f"--screenshot={tmp_path / 'page.png'}")
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    for item in objects:
        assert (np.abs(picture - quick_look.colour(item.label)).max(axis=2) < 30).sum() > 100
    assert (np.abs(picture - (40, 90, 40)).max(axis=2) < 12).mean() > 0.3
