"""Opens a run's page in headless Chromium, from the disk, and goes about in it as a reader would.

    python scripts/checks/check_page.py PAGE [--screenshots FOLDER]

Nothing may reach beyond the disk or be an error; charts must have the points of metrics.jsonl, and videos must play, in
step and in order; keys must do what the page says. Ends with an error that says what is not so. Needs playwright (the
package alone) and a Chromium: `chromium` or what CHROMIUM names.
"""

import argparse
import json
import math
import os
import shutil
import struct
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

from playwright.sync_api import sync_playwright

# Seconds by which two videos may differ while they play: on a busy machine, two frames.
IN_STEP = 0.25
PLAYING = "[...vtrain.videos.active].filter(v => v.readyState >= 2)"
STANDING = "[...vtrain.videos.active].every(v => v.paused && !v.seeking && v.readyState >= 2)"


def as_f32(value):
    return None if value is None else struct.unpack("f", struct.pack("f", value))[0]


def until(page, what, arg=None, seconds=20):
    """Waits for it to be so. (Playwright's own waiting compiles text in the page, which its policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(what, arg):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        page.wait_for_timeout(30)


def log_of(run):
    path = Path(run["folder"]) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = {}
    for line in lines:
        try:
            line = json.loads(line)
            steps[line["step"]] = line
        except ValueError:
            pass  # half a line
    return steps


def check_charts(page, runs):
    logs = [log_of(run) for run in runs]
    # Of a long log not every step is drawn: see src/report/curves.rs.
    thinned = any(run["curves"]["logged"] > len(run["curves"]["step"]) for run in runs)
    assert all(run["curves"]["logged"] == len(log) for run, log in zip(runs, logs, strict=True)), "steps of the log are missing"
    xs = sorted(set().union(*(run["curves"]["step"] for run in runs) if thinned else logs))
    names = page.evaluate("Object.keys(vtrain.charts)")
    told = {key for log in logs for line in log.values() for key, value in line.items() if value is not None}
    assert set(names) == told & {"loss", "lr", "grad_norm", "step_seconds", "peak_memory_bytes"}, names
    for name in names:
        drawn = page.evaluate(
            "n => { const c = vtrain.charts[n]; return {data: c.data.map(d => [...d]), of: c.series.map(s => [s.run, s.kind])} }",
            name,
        )
        assert drawn["data"][0] == xs, f"{name}: {len(drawn['data'][0])} points, the logs have {len(xs)} steps"
        drawn_steps = [set(run["curves"]["step"]) for run in runs]
        for (run, kind), values in zip(drawn["of"][1:], drawn["data"][1:], strict=True):
            if kind != "logged":
                continue
            for x, value in zip(xs, values, strict=True):
                wanted = logs[run].get(x, {}).get(name) if not thinned or x in drawn_steps[run] else None
                if wanted is None or value is None:
                    same = value is wanted
                else:
                    same = math.isclose(value, as_f32(wanted), rel_tol=1e-6)
                assert same, f"{name} of run {run} at step {x}: {value}, the log says {wanted}"
        inked = page.evaluate(
            """n => { const c = vtrain.charts[n].ctx.canvas, d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
                 const seen = new Set();
                 for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 200) seen.add(d[i] + ',' + d[i + 1] + ',' + d[i + 2]);
                 return seen.size }""",
            name,
        )
        assert inked > 3, f"{name}: the canvas is empty"
    if names:
        plot = page.locator(f'[data-chart="{names[0]}"] .plot')
        readout = page.locator(f'[data-chart="{names[0]}"] .readout')
        plot.hover(position={"x": 100, "y": 80})
        hovered = readout.inner_text()
        plot.focus()
        page.keyboard.press("Home")
        assert f"step {xs[0]:,}" in readout.inner_text(), readout.inner_text()
        page.keyboard.press("ArrowRight")
        assert f"step {xs[min(1, len(xs) - 1)]:,}" in readout.inner_text(), readout.inner_text()
        assert len(xs) < 20 or hovered != readout.inner_text(), "the charts cannot be read by hovering"
    return len(names), len(xs)


def check_order(page, runs):
    """Base model at the left, steps ascending, a row a prompt; every video is where its cell says."""
    heads = page.locator("table.videos thead tr:last-child th").all_inner_texts()
    wanted = [("Base model" if step == 0 else f"Step {step:,}") for run in runs for step in run["grid"]["steps"]]
    assert heads == ["Prompt", *wanted], heads
    for run in runs:
        assert run["grid"]["steps"] == sorted(run["grid"]["steps"])
        on_disk = {p.relative_to(run["folder"]).as_posix() for p in Path(run["folder"]).glob("validation/step-*/[!.]*.mp4")}
        on_page = {unquote(video) for row in run["grid"]["rows"] for video in row["videos"] if video}
        assert on_page == on_disk, on_page ^ on_disk


def check_videos(page):
    """Each video of the grid, once it is in view, has a picture to show."""
    cells = page.locator("table.videos td")
    ready = 0
    for i in range(cells.count()):
        cell = cells.nth(i)
        if "no video" in cell.get_attribute("aria-label"):
            continue
        cell.scroll_into_view_if_needed()
        shown = "td => { const v = td.querySelector('video'); return v && v.readyState >= 2 && v.videoWidth > 0 }"
        until(page, shown, cell.element_handle())
        source = page.evaluate("td => td.querySelector('video').src", cell.element_handle())
        assert Path(unquote(urlparse(source).path)).is_file(), source
        ready += 1
    return ready


def check_playing(page):
    page.locator("#videos").scroll_into_view_if_needed()
    first = page.locator("table.videos td").first
    first.focus()
    page.keyboard.press("Home")
    if not page.evaluate("vtrain.videos.playing"):
        page.keyboard.press(" ")
    assert page.evaluate("vtrain.videos.playing"), "space does not play"
    spreads = []
    for _ in range(12):
        page.wait_for_timeout(150)
        running = f"{PLAYING}.filter(v => !v.ended && !v.seeking)"
        times = page.evaluate(f"vtrain.videos.wrapping ? [] : {running}.map(v => v.currentTime)")
        if len(times) > 1:
            spreads.append(max(times) - min(times))
    spreads.sort()
    assert not spreads or spreads[len(spreads) // 2] < IN_STEP, f"videos are out of step by {spreads}"
    page.keyboard.press(" ")
    assert not page.evaluate("vtrain.videos.playing"), "space does not pause"
    until(page, STANDING)
    still = f"[...new Set({PLAYING}.map(v => Math.floor(v.currentTime * vtrain.videos.fps + 1e-3)))]"
    frames = page.evaluate(still)
    assert len(frames) == 1, f"paused at different frames: {frames}"
    count = round(page.evaluate("vtrain.videos.duration() * vtrain.videos.fps"))
    page.keyboard.press(".")
    until(page, STANDING)
    assert page.evaluate(still) == [(frames[0] + 1) % count], "a full stop does not go on by a frame"
    page.keyboard.press(",")
    until(page, STANDING)
    assert page.evaluate(still) == frames, "a comma does not go back by a frame"
    return spreads[len(spreads) // 2] if spreads else 0.0


def check_keys(page):
    """Arrow keys, Home and End in the grid; Enter enlarges and Escape goes back."""
    rows = page.locator("table.videos tbody tr")
    width, height = rows.first.locator("td").count(), rows.count()

    def focused():
        return page.evaluate(
            "() => { const td = document.activeElement, head = td.closest('table').tHead.rows.length;"
            " return [td.parentElement.rowIndex - head, td.cellIndex - 1] }"
        )

    page.locator("table.videos td").first.focus()
    assert focused() == [0, 0]
    for key, place in [
        ("End", [0, width - 1]),
        ("ArrowRight", [0, width - 1]),
        ("Home", [0, 0]),
        ("ArrowDown", [min(1, height - 1), 0]),
        ("ArrowRight", [min(1, height - 1), min(1, width - 1)]),
    ]:
        page.keyboard.press(key)
        assert focused() == place, f"{key}: {focused()}, not {place}"
    at_most_one = page.evaluate("document.querySelectorAll('table.videos td[tabindex=\"0\"]').length")
    assert at_most_one == 1, "the grid is one stop of the Tab key"
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] video").count() >= 1, "Enter does not enlarge"
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0, "Escape does not go back"


def check_pictures(page):
    images = page.locator("#data img")
    for i in range(images.count()):
        images.nth(i).scroll_into_view_if_needed()
        until(page, "i => i.complete && i.naturalWidth > 0", images.nth(i).element_handle())
    return images.count()


def shoot(page, folder):
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ["light", "dark"]:
        page.emulate_media(color_scheme=theme)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"{theme}-top.png")
        for part in ["videos", "data", "config"]:
            page.evaluate("id => document.getElementById(id).scrollIntoView()", part)
            page.wait_for_timeout(500)
            page.screenshot(path=folder / f"{theme}-{part}.png")


def check_themes(page):
    seen = []
    for theme in ["light", "dark"]:
        page.emulate_media(color_scheme=theme)
        seen.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    button = page.locator("#theme")
    page.emulate_media(color_scheme="dark")
    button.click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == seen[0], "the theme cannot be chosen"
    button.click()
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == seen[1] != seen[0]
    button.click()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshots", type=Path)
    args = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1360, "height": 900}, offline=True)
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: message.type in ("error", "warning") and said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(args.page.resolve().as_uri())
        runs = page.evaluate("data.runs")
        charts, points = check_charts(page, runs)
        check_themes(page)
        videos, spread = 0, 0.0
        if any(run["grid"]["rows"] for run in runs):
            check_order(page, runs)
            videos = check_videos(page)
            spread = check_playing(page)
            check_keys(page)
        pictures = check_pictures(page)
        shoot(page, args.screenshots)
        beyond = [url for url in asked if urlparse(url).scheme not in ("file", "data", "blob")]
        assert not beyond, f"requests that leave the disk: {beyond}"
        assert not said, f"the console says: {said}"
        browser.close()
    print(
        f"{charts} charts of {points} steps, {videos} videos ready, {1000 * spread:.0f} ms apart, {pictures} pictures, "
        f"{len(asked)} requests, all from the disk"
    )


if __name__ == "__main__":
    main()
