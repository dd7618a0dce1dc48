// The head of the page, and all parts in their order.

const last = (values) => values.findLast((value) => value !== null) ?? null;

// What a run comes to, in some numbers.
function summary(run) {
  const { curves } = run;
  const losses = smoothed(curves.step, curves.means?.loss ?? curves.loss, 0.98);
  const facts = [
    ["Step", run.steps ? `${number.format(run.step)} / ${number.format(run.steps)}` : number.format(run.step)],
    ["Recent loss", digits(last(losses))],
    ["Time in steps", curves.step.length > 0 ? span(curves.seconds) : "–"],
    ["Peak memory", bytes(last(curves.peak_memory_bytes))],
    ["Clips", run.clips ? number.format(run.clips.total) : "–"],
  ];
  if (curves.skipped > 0) facts.push(["Steps left out", number.format(curves.skipped)]);
  return facts;
}

function state(run) {
  const text = run.complete ? "complete" : run.steps ? `at step ${number.format(run.step)} of ${number.format(run.steps)}` : "";
  return text && el("span", { class: run.complete ? "state complete" : "state" }, text);
}

function showTop() {
  const top = document.getElementById("top");
  const written = new Date(data.written * 1000);
  const when = el(
    "span",
    { class: "quiet" },
    "written ",
    el("time", { datetime: written.toISOString() }, written.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })),
  );
  const isOpen = runs.some((run) => !run.complete);
  const reload = isOpen && el("button", { type: "button", onclick: () => location.reload() }, "Reload for what came since");
  if (several) {
    const columns = summary(runs[0]).map(([name]) => name).slice(0, 5);
    const rows = runs.map((run) => {
      const of = new Map(summary(run));
      return el(
        "tr",
        {},
        el("th", { scope: "row", title: run.folder }, swatch(run), run.label),
        columns.map((name) => el("td", { class: "number" }, of.get(name))),
      );
    });
    const head = el("thead", {}, el("tr", {}, el("th", {}, "Run"), columns.map((name) => el("th", {}, name))));
    top.append(
      el("h1", {}, `${counted(runs.length, "run", "runs")} compared`),
      el("div", { class: "line" }, when, reload),
      el("div", { class: "scroll", style: { "margin-top": "18px" } }, el("table", { class: "plain" }, head, el("tbody", {}, rows))),
    );
    return;
  }
  const [run] = runs;
  top.append(
    el("h1", {}, run.name),
    el("div", { class: "line" }, state(run), when, reload),
    !run.complete && run.steps
      ? el("div", { class: "progress", "aria-hidden": "true" }, el("div", { style: { width: `${(100 * run.step) / run.steps}%` } }))
      : "",
    el("dl", { class: "tiles" }, summary(run).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
  );
}

function showBar() {
  const parts = [...main.querySelectorAll("section")];
  const links = parts.map((part) => el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent));
  const bar = el(
    "div",
    { class: "bar" },
    el("div", {}, el("span", { class: "mark" }, "vtrain"), el("nav", { "aria-label": "Parts of the page" }, links), themeButton()),
  );
  document.querySelector(".skip").after(bar);
}

showTop();
showCurves();
showVideos();
showClips();
showSettings();
showEnvironment();
showBar();
document.body.append(el("footer", {}, `Made by vtrain ${data.vtrain}. This page needs no network: all it shows lies in or beside it.`));
