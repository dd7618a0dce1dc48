// Curves over steps, drawn by uPlot: as logged, and smoothed. Cursor and zoom of all charts go together.

// Memory is read in powers of two.
const POWERS = Array.from({ length: 50 }, (_, k) => 2 ** k);

const CHARTS = [
  { key: "loss", title: "Loss", smooth: true, log: true, wide: true, show: digits },
  { key: "lr", title: "Learning rate", show: digits },
  { key: "grad_norm", title: "Gradient norm", smooth: true, log: true, show: digits },
  { key: "step_seconds", title: "Step time", smooth: true, show: seconds },
  { key: "peak_memory_bytes", title: "Peak memory", show: bytes, axis: { incrs: POWERS } },
];

// The exponential mean with Adam's correction for its start at zero; a gap of n steps counts as n.
function smoothed(steps, values, decay) {
  let mean = 0;
  let weight = 0;
  return values.map((value, i) => {
    if (value !== null) {
      const kept = decay ** (i > 0 ? steps[i] - steps[i - 1] : 1);
      mean = kept * mean + (1 - kept) * value;
      weight = kept * weight + (1 - kept);
    }
    return weight > 0 ? mean / weight : null;
  });
}

// From the slider's 0..100 to no memory .. ten thousand steps.
const decayOf = (position) => 1 - 10 ** (-4 * (position / 100));

// At first some thirtieth of the longest run.
const START = Math.round(25 * Math.log10(Math.max(10, Math.max(...runs.map((run) => run.step)) / 30)));

const decayText = (decay) => decay.toFixed(decay > 0.9985 ? 4 : decay > 0.985 ? 3 : 2);

const settings = {
  decay: decayOf(START),
  raw: true,
  log: false,
};

function columns(chart) {
  const tables = runs.map(({ curves }) => {
    const raw = curves[chart.key];
    // What is drawn of a long log are its peaks: their mean is not the log's.
    const fair = curves.means?.[chart.key] ?? raw;
    return chart.smooth ? [curves.step, raw, smoothed(curves.step, fair, settings.decay)] : [curves.step, raw];
  });
  return several ? uPlot.join(tables) : tables[0];
}

function series(chart) {
  const list = [{}];
  runs.forEach((run, i) => {
    const stroke = () => colour(`--run-${i % 6}`);
    const common = { stroke, points: { show: run.curves.step.length < 3 } };
    const isFaint = chart.smooth && settings.decay > 0;
    list.push({
      ...common,
      run: i,
      kind: "logged",
      show: settings.raw || !chart.smooth,
      width: isFaint ? 1 : 1.75,
      alpha: isFaint ? (run.curves.step.length > 2000 ? 0.22 : 0.38) : 1,
    });
    if (chart.smooth) list.push({ ...common, run: i, kind: "smoothed", width: 2 });
  });
  return list;
}

// The values under the cursor, or the last ones.
function readout(plot, chart, place) {
  const { idx } = plot.cursor;
  const xs = plot.data[0];
  const at = idx ?? xs.length - 1;
  const parts = [el("span", {}, "step ", el("b", {}, number.format(xs[at] ?? 0)))];
  runs.forEach((run, i) => {
    const values = {};
    let from = at;
    plot.series.forEach((line, s) => {
      if (line.run !== i) return;
      // Of several runs not every one has every step.
      let j = at;
      while (several && j > 0 && plot.data[s][j] === undefined) j -= 1;
      values[line.kind] = plot.data[s][j];
      from = Math.min(from, j);
    });
    const name = several ? [swatch(run), run.label, " "] : [];
    const mean = chart.smooth ? [" mean ", el("b", {}, chart.show(values.smoothed))] : [];
    const earlier = from < at ? ` at ${number.format(xs[from])}` : "";
    parts.push(el("span", {}, name, el("b", {}, chart.show(values.logged)), mean, earlier));
  });
  place.replaceChildren(...parts);
}

function draw(chart) {
  const { host, place } = chart;
  chart.plot?.destroy();
  const axis = { stroke: () => colour("--quiet"), font: "12px system-ui, sans-serif", size: 34, gap: 6 };
  axis.grid = { stroke: () => colour("--grid"), width: 1 };
  axis.ticks = { stroke: () => colour("--grid"), width: 1, size: 5 };
  const ys = runs.flatMap(({ curves }) => curves[chart.key]).filter((value) => value !== null);
  const log = chart.log && settings.log && ys.every((value) => value > 0);
  const height = chart.wide ? 300 : 190;
  chart.plot = new uPlot(
    {
      width: Math.max(host.clientWidth, 200),
      height,
      legend: { show: false },
      cursor: { sync: { key: "steps" }, y: false, drag: { x: true, y: false }, points: { size: 7 } },
      scales: { x: { time: false }, y: log ? { distr: 3 } : { range: (_, low, high) => room(chart, low, high) } },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? number.format(tick) : "")) },
        { ...axis, size: 66, ...chart.axis, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : chart.show(tick))) },
      ],
      series: series(chart),
      hooks: { setCursor: [(plot) => readout(plot, chart, place)] },
    },
    columns(chart),
    host,
  );
  readout(chart.plot, chart, place);
  window.vtrain.charts[chart.key] = chart.plot;
}

// A little air above and below; what never changes gets a scale, too.
function room(chart, low, high) {
  if (low === null || high === null) return [0, 1];
  if (chart.key !== "loss" && chart.key !== "grad_norm") low = Math.min(low, 0);
  const air = (high - low || Math.abs(high) || 1) * 0.06;
  return [low === 0 ? 0 : low - air, high + air];
}

// Arrow keys read a chart step by step, Home and End go to its ends, Escape shows all again.
function byKey(chart, event) {
  const { plot } = chart;
  const xs = plot.data[0];
  const ways = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
  let at = plot.cursor.idx ?? xs.length - 1;
  if (event.key in ways) at += ways[event.key];
  else if (event.key === "Home") at = 0;
  else if (event.key === "End") at = xs.length - 1;
  else if (event.key === "Escape") {
    Object.values(window.vtrain.charts).forEach((other) => other.setScale("x", { min: xs[0], max: xs.at(-1) }));
    return;
  } else return;
  event.preventDefault();
  at = Math.max(0, Math.min(xs.length - 1, at));
  plot.setCursor({ left: plot.valToPos(xs[at], "x"), top: 10 }, true, true);
}

function figure(chart) {
  chart.place = el("div", { class: "readout", role: "status" });
  chart.host = el("div", {
    class: "plot",
    tabindex: 0,
    role: "img",
    "aria-label": `${chart.title} over steps. Left and right arrow keys read it.`,
    onkeydown: (event) => byKey(chart, event),
  });
  const caption = el("figcaption", {}, el("h3", {}, chart.title), chart.place);
  return el("figure", { class: chart.wide ? "chart wide" : "chart", "data-chart": chart.key }, caption, chart.host);
}

function showCurves() {
  const there = CHARTS.filter(({ key }) => runs.some(({ curves }) => curves[key].some((value) => value !== null)));
  if (there.length === 0) {
    section("curves", "Curves", [], el("p", { class: "empty" }, "No step is logged yet."));
    return;
  }
  const redraw = () => there.forEach(draw);
  const shown = el("output", {}, decayText(settings.decay));
  const slider = el("input", {
    type: "range",
    min: 0,
    max: 100,
    value: START,
    id: "smoothing",
    "aria-label": "Smoothing",
    oninput: () => {
      settings.decay = decayOf(Number(slider.value));
      shown.textContent = decayText(settings.decay);
      redraw();
    },
  });
  const box = (key, label) => {
    const input = el("input", {
      type: "checkbox",
      checked: settings[key],
      onchange: () => {
        settings[key] = input.checked;
        redraw();
      },
    });
    return el("label", {}, el("span", {}, input, label));
  };
  const tools = [el("label", {}, "Smoothing", slider, shown), box("raw", "As logged"), box("log", "Log scale")];
  const grid = el("div", { class: "charts" }, there.map(figure));
  const thinned = runs.filter(({ curves }) => curves.step.length < curves.logged);
  section(
    "curves",
    "Curves",
    tools,
    grid,
    el(
      "p",
      { class: "keys" },
      "Drag to zoom, double-click or ",
      el("kbd", {}, "Esc"),
      " to see all; ",
      el("kbd", {}, "←"),
      " ",
      el("kbd", {}, "→"),
      " read a chart step by step.",
      thinned.map(
        ({ label, curves }) =>
          ` ${label}: ${number.format(curves.step.length)} of ${number.format(curves.logged)} steps are drawn, every peak among them.`,
      ),
    ),
  );
  redraw();
  themeListeners.push(redraw);
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const chart = there.find(({ host }) => host === target);
      if (chart.plot.width !== target.clientWidth && target.clientWidth > 0) {
        chart.plot.setSize({ width: target.clientWidth, height: chart.plot.height });
      }
    }
  });
  there.forEach(({ host }) => resized.observe(host));
}
