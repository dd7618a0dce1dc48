// Validation videos: prompts by rows, steps by columns, the base model at the left, all on one clock.
//
// A video is loaded when it comes into view and let go when it leaves. Those in view play by themselves; each frame the
// clock compares them with its own time and hurries or holds back those that are off. At the end all go back to the start
// together, and none starts before the last one is there.

const clock = {
  playing: false,
  wrapping: false,
  rate: 1,
  // Seconds; while it plays, when it was zero.
  time: 0,
  zero: 0,
  active: new Set(),
  fps: 8,
  frames: 1,
  show() {},

  now() {
    return this.playing && !this.wrapping ? ((performance.now() - this.zero) / 1000) * this.rate : this.time;
  },

  duration() {
    const known = [...this.active].map((video) => video.duration).filter(Number.isFinite);
    return known.length > 0 ? Math.max(...known) : this.frames / this.fps;
  },

  set(time) {
    this.time = time;
    this.zero = performance.now() - (time / this.rate) * 1000;
  },

  play() {
    if (this.playing) return;
    const time = this.time >= this.duration() - 0.5 / this.fps ? 0 : this.time;
    this.playing = true;
    this.from(time);
  },

  pause() {
    // The middle of a frame, so that all show the same one.
    this.seek(this.frame(this.now()));
  },

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  },

  frame(time) {
    return Math.max(0, Math.floor(time * this.fps + 1e-3));
  },

  // Stands still at a frame.
  seek(frame) {
    this.playing = false;
    this.wrapping = false;
    const last = Math.max(0, Math.round(this.duration() * this.fps) - 1);
    this.set((Math.max(0, Math.min(last, frame)) + 0.5) / this.fps);
    for (const video of this.active) {
      video.pause();
      this.place(video);
    }
    this.show();
  },

  step(by) {
    const count = Math.max(1, Math.round(this.duration() * this.fps));
    this.seek((this.frame(this.now()) + by + count) % count);
  },

  place(video) {
    if (video.readyState > 0) video.currentTime = Math.min(this.time, Math.max(0, video.duration - 0.25 / this.fps));
  },

  // Plays on from a time, once all videos are there.
  async from(time) {
    this.wrapping = true;
    this.set(time);
    const there = [...this.active].map((video) => {
      video.pause();
      if (video.readyState < 1) return null;
      const sought = new Promise((done) => video.addEventListener("seeked", done, { once: true }));
      video.playbackRate = this.rate;
      this.place(video);
      return sought;
    });
    const patience = new Promise((done) => setTimeout(done, 500));
    await Promise.race([Promise.all(there), patience]);
    if (!this.playing || !this.wrapping) return;
    this.set(time);
    this.wrapping = false;
    this.show();
  },

  tick() {
    if (this.playing && !this.wrapping && this.active.size > 0) {
      const time = this.now();
      if (time >= this.duration()) this.from(0);
      else for (const video of this.active) this.follow(video, time);
      this.show();
    }
    requestAnimationFrame(() => this.tick());
  },

  // Brings a video to the clock's time. A shorter one stays at its end.
  follow(video, time) {
    if (video.readyState < 2 || video.seeking || time >= video.duration - 0.02) return;
    const off = video.currentTime - time;
    if (video.ended || Math.abs(off) > 0.3) {
      video.currentTime = time;
      return;
    }
    if (video.paused) video.play().catch(() => {});
    const wanted = Math.abs(off) < 0.02 ? this.rate : this.rate * (1 - Math.sign(off) * Math.min(0.5, Math.abs(off) * 3));
    if (Math.abs(video.playbackRate - wanted) > 0.01) video.playbackRate = wanted;
  },
};

const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
// Whether videos play as soon as they are seen.
let mayStart = !isStill;

function videoOf(source, label) {
  const video = el("video", { muted: true, playsinline: true, preload: "auto", "aria-label": label, tabindex: -1 });
  video.muted = true;
  video.disablePictureInPicture = true;
  video.addEventListener("loadeddata", () => {
    if (!clock.active.has(video)) return;
    if (!clock.playing) clock.place(video);
    if (mayStart && !clock.playing) {
      mayStart = false;
      clock.play();
    }
  });
  video.addEventListener("error", () => {
    if (video.src) video.replaceWith("cannot be played");
    clock.active.delete(video);
  });
  video.src = source;
  clock.active.add(video);
  return video;
}

// Takes the video out of its place, and its decoder out of memory.
function release(video) {
  clock.active.delete(video);
  video.pause();
  video.removeAttribute("src");
  video.load();
  video.remove();
}

const stepName = (step) => (step === 0 ? "base model" : `step ${number.format(step)}`);

// Columns of all runs, run by run or step by step, and rows by prompt: the n-th row of a prompt in one run stands beside
// the n-th in another.
function layOut(isByStep) {
  const cols = runs.flatMap((run) => run.grid.steps.map((step, at) => ({ run, step, at, isByStep })));
  if (isByStep) cols.sort((a, b) => a.step - b.step);
  cols.forEach((col, i) => {
    const before = cols[i - 1];
    col.first = several && (isByStep ? before?.step !== col.step : before?.run !== col.run);
  });
  const rows = new Map();
  for (const run of runs) {
    const seen = new Map();
    for (const row of run.grid.rows) {
      const nth = seen.get(row.prompt) ?? 0;
      seen.set(row.prompt, nth + 1);
      const key = `${nth} ${row.prompt}`;
      if (!rows.has(key)) rows.set(key, new Map());
      rows.get(key).set(run, row);
    }
  }
  return { cols, rows: [...rows.values()] };
}

function cell(row, col) {
  const entry = row.get(col.run);
  const source = entry?.videos[col.at];
  const any = entry ?? [...row.values()][0];
  const [height, width] = any.size ?? [2, 3];
  const where = `${several ? `${col.run.label}, ` : ""}${stepName(col.step)}`;
  const label = `${any.prompt}: ${where}`;
  const box = el("div", { class: "video", style: { "aspect-ratio": `${width} / ${height}` } }, source ? "" : "no video");
  const td = el("td", { role: "gridcell", tabindex: -1, "aria-label": source ? label : `${label}: no video` }, box);
  if (col.step === 0) td.classList.add("base");
  if (col.first) td.classList.add("first");
  td.video = source && { source: col.run.base + source, label, box, entry, col, row };
  return td;
}

function watch(cells) {
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const { video: told } = target;
        if (isIntersecting && !told.video) {
          told.video = videoOf(told.source, told.label);
          told.box.replaceChildren(told.video);
        } else if (!isIntersecting && told.video) {
          release(told.video);
          told.video = null;
        }
      }
    },
    { rootMargin: "160px", scrollMargin: "160px" },
  );
  cells.forEach((td) => td.video && seen.observe(td));
  // Ends it, and lets all go.
  return () => {
    seen.disconnect();
    cells.forEach((td) => td.video?.video && release(td.video.video));
  };
}

// One video large, beside what the base model of the same run makes of the prompt.
function enlarger() {
  const prompt = el("p", {});
  const pair = el("div", { class: "pair", tabindex: -1, autofocus: true });
  const close = el("button", { type: "button" }, "Close");
  const dialog = el("dialog", { "aria-label": "Video" }, el("div", { class: "head" }, prompt, close), pair);
  let open = [];
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => open.splice(0).forEach(release));
  document.body.append(dialog);
  return (told) => {
    open.splice(0).forEach(release);
    prompt.textContent = told.entry.prompt;
    const base = told.col.run.grid.steps[0] === 0 && told.col.step !== 0 && told.entry.videos[0];
    const shown = [];
    if (base) shown.push({ source: told.col.run.base + base, name: stepName(0) });
    shown.push({ source: told.source, name: stepName(told.col.step) });
    const figures = shown.map(({ source, name }) => {
      const video = videoOf(source, name);
      open.push(video);
      return el(
        "figure",
        {},
        el("div", { class: "video", style: { "aspect-ratio": told.box.style.getPropertyValue("aspect-ratio") } }, video),
        el("figcaption", {}, several ? `${told.col.run.label}, ${name}` : name),
      );
    });
    pair.replaceChildren(...figures);
    if (!dialog.open) dialog.showModal();
  };
}

function table(cols, rows) {
  const body = rows.map((row) => {
    const first = [...row.values()][0];
    const head = el(
      "th",
      { scope: "row" },
      el("div", { class: "prompt", title: first.prompt }, first.prompt),
      first.details && el("div", { class: "details" }, first.details),
    );
    return el("tr", { role: "row" }, head, cols.map((col) => cell(row, col)));
  });
  const name = (col) => {
    const marks = [col.step === 0 && "base", col.first && "first"].filter(Boolean).join(" ");
    const text = stepName(col.step);
    const run = col.isByStep && [swatch(col.run), col.run.label, ", "];
    return el("th", { scope: "col", class: marks || null }, run, run ? text : text[0].toUpperCase() + text.slice(1));
  };
  const groups = runs.filter((run) => run.grid.steps.length > 0);
  const group = (run) =>
    el(
      "th",
      { scope: "colgroup", colspan: run.grid.steps.length, class: "first" },
      el("span", { class: "run" }, swatch(run), run.label),
    );
  const isGrouped = several && !cols[0].isByStep;
  return el(
    "table",
    { class: several ? "videos" : "videos pin", role: "grid", "aria-label": "Validation videos" },
    el(
      "thead",
      {},
      isGrouped && el("tr", { class: "runs" }, el("th", { class: "corner" }), groups.map(group)),
      el("tr", {}, el("th", { class: "corner", scope: "col" }, "Prompt"), cols.map(name)),
    ),
    el("tbody", {}, body),
  );
}

// The grid takes the focus as one, and arrow keys go about in it.
function moveAbout(grid, enlarge) {
  const lines = [...grid.tBodies[0].rows].map((line) => [...line.cells].slice(1));
  let [y, x] = [0, 0];
  lines[0][0].tabIndex = 0;
  const go = (to, at) => {
    lines[y][x].tabIndex = -1;
    [y, x] = [Math.max(0, Math.min(lines.length - 1, to)), Math.max(0, Math.min(lines[0].length - 1, at))];
    const td = lines[y][x];
    td.tabIndex = 0;
    td.focus({ preventScroll: true });
    td.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  const place = (td) => {
    const to = lines.findIndex((line) => line.includes(td));
    return to < 0 ? null : [to, lines[to].indexOf(td)];
  };
  grid.addEventListener("focusin", (event) => {
    const found = place(event.target.closest("td"));
    if (!found || (found[0] === y && found[1] === x)) return;
    lines[y][x].tabIndex = -1;
    [y, x] = found;
    lines[y][x].tabIndex = 0;
  });
  grid.addEventListener("click", (event) => {
    const td = event.target.closest("td");
    if (td?.video) enlarge(td.video);
  });
  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const ways = {
      ArrowLeft: [y, x - 1],
      ArrowRight: [y, x + 1],
      ArrowUp: [y - 1, x],
      ArrowDown: [y + 1, x],
      Home: [y, 0],
      End: [y, Infinity],
      PageUp: [0, x],
      PageDown: [Infinity, x],
    };
    if (event.key in ways) go(...ways[event.key]);
    else if (event.key === "Enter" && lines[y][x].video) enlarge(lines[y][x].video);
    else return;
    event.preventDefault();
  });
}

function controls() {
  const play = el("button", { type: "button", id: "play", onclick: () => clock.toggle() }, "Play");
  const frame = el("output", { id: "frame" });
  const seek = el("input", {
    type: "range",
    class: "seek",
    min: 0,
    step: 1,
    value: 0,
    "aria-label": "Frame",
    oninput: () => clock.seek(Number(seek.value)),
  });
  const rate = el(
    "select",
    {
      "aria-label": "Speed",
      onchange: () => {
        const time = clock.now();
        clock.rate = Number(rate.value);
        if (clock.playing) clock.from(time);
      },
    },
    [0.25, 0.5, 1, 2].map((value) => el("option", { value, selected: value === 1 }, `${value}×`)),
  );
  const resize = (value) => document.documentElement.style.setProperty("--video", `${value}px`);
  const size = el("input", {
    type: "range",
    min: 80,
    max: 480,
    step: 10,
    value: remembered.get("video", "200"),
    "aria-label": "Size of the videos",
    oninput: () => {
      resize(size.value);
      remembered.set("video", size.value);
    },
  });
  if (size.value !== "200") resize(size.value);
  clock.show = () => {
    const count = Math.max(1, Math.round(clock.duration() * clock.fps));
    const at = Math.min(count - 1, clock.frame(clock.now()));
    play.textContent = clock.playing ? "Pause" : "Play";
    seek.max = count - 1;
    seek.value = at;
    frame.textContent = `${at + 1} / ${count}`;
  };
  return [play, el("label", {}, seek, frame), rate, el("label", {}, "Size", size)];
}

function showVideos() {
  const { rows } = layOut(false);
  if (rows.length === 0) {
    const why = "No validation video yet. Prompts stand under validation.prompts in the run file.";
    section("videos", "Videos", [], el("p", { class: "empty" }, why));
    return;
  }
  const known = rows.flatMap((row) => [...row.values()]);
  clock.fps = Math.max(...known.map((row) => row.fps ?? 0)) || 8;
  clock.frames = Math.max(...known.map((row) => row.num_frames ?? 1));
  const frame = el("div", { class: "videos-frame" });
  const enlarge = enlarger();
  let leave = () => {};
  const build = (isByStep) => {
    leave();
    const laid = layOut(isByStep);
    const grid = table(laid.cols, laid.rows);
    frame.replaceChildren(grid);
    moveAbout(grid, enlarge);
    leave = watch([...grid.querySelectorAll("td")]);
  };
  const order = el(
    "select",
    { "aria-label": "Order of the columns", id: "order", onchange: () => build(order.value === "step") },
    el("option", { value: "run" }, "Run by run"),
    el("option", { value: "step" }, "Step by step"),
  );
  const keys = [
    ["Space", "play or pause"],
    [",", "and"],
    [".", "one frame"],
    ["← → ↑ ↓", "move"],
    ["Home", "base model"],
    ["End", "last step"],
    ["Enter", "large, beside the base model"],
  ];
  const told = keys.flatMap(([key, what], i) => [el("kbd", {}, key), ` ${what}${what === "and" ? " " : i < keys.length - 1 ? " · " : ""}`]);
  section("videos", "Videos", [several && order, controls()], frame, el("p", { class: "keys" }, told));
  build(false);
  window.vtrain.videos = clock;
  clock.show();
  clock.tick();
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isText(event.target)) return;
    if (event.key === " " && !event.target.matches("button, input, summary, a")) clock.toggle();
    else if (event.key === ",") clock.step(-1);
    else if (event.key === ".") clock.step(1);
    else return;
    event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && clock.playing) {
      clock.pause();
      mayStart = false;
      document.addEventListener("visibilitychange", () => clock.play(), { once: true });
    }
  });
}
