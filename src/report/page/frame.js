// What all parts of the page share: elements, numbers, the theme. Text from users is only ever set as textContent.

const data = JSON.parse(document.getElementById("facts").textContent);
const runs = data.runs;
const several = runs.length > 1;

// What tests look at.
window.vtrain = { charts: {}, videos: null };

// Runs of one name are told apart by their folders.
runs.forEach((run, i) => {
  run.label = runs.some((other, j) => j !== i && other.name === run.name) ? run.folder : run.name;
  run.tint = `var(--run-${i % 6})`;
});

// el("p", { class: "quiet", onclick: f }, "text", child, ...)
function el(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [name, text] of Object.entries(value)) element.style.setProperty(name, text);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const swatch = (run) => el("span", { class: "swatch", style: { "--tint": run.tint }, "aria-hidden": "true" });

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

// Four digits, and powers of ten only where there is no other way.
function digits(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) return value.toExponential(2).replace(/\.?0*e\+?/, "e");
  return String(Number(value.toPrecision(4)));
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${Number((value * 1000).toPrecision(3))} ms` : `${Number(value.toPrecision(4))} s`;
}

function span(value) {
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor(whole / 60) % 60).padStart(2, "0")} min`;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  const gib = value / 2 ** 30;
  return gib >= 1 ? `${Number(gib.toPrecision(3))} GiB` : `${Number((value / 2 ** 20).toPrecision(3))} MiB`;
}

const counted = (count, one, many) => `${number.format(count)} ${count === 1 ? one : many}`;

// What was chosen last, where the browser lets a page remember.
const remembered = {
  get(key, fallback) {
    try {
      return localStorage.getItem(`vtrain.${key}`) ?? fallback;
    } catch {
      return fallback;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`vtrain.${key}`, value);
    } catch {
      // It is chosen for this time only.
    }
  },
};

// A colour of the style sheet as the canvas takes it.
const probe = document.body.appendChild(el("span", { hidden: true }));
function colour(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

const themeListeners = [];
const THEMES = ["auto", "light", "dark"];
function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themeListeners.forEach((listener) => listener());
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => themeListeners.forEach((f) => f()));

function themeButton() {
  let theme = remembered.get("theme", "auto");
  if (!THEMES.includes(theme)) theme = "auto";
  const button = el("button", { type: "button", id: "theme" });
  const show = () => {
    button.textContent = `Theme: ${theme}`;
    setTheme(theme);
  };
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    remembered.set("theme", theme);
    show();
  });
  show();
  return button;
}

const main = document.getElementById("main");

// A part of the page, with its tools at the right of its title.
function section(id, title, tools, ...children) {
  const heading = `${id}-title`;
  const part = el(
    "section",
    { id, "aria-labelledby": heading },
    el("div", { class: "head" }, el("h2", { id: heading }, title), el("div", { class: "tools" }, tools)),
    children,
  );
  main.append(part);
  return part;
}

const isText = (target) => target.matches?.("input:not([type=range]):not([type=checkbox]), textarea, select");
