// The clips, the settings, the machine.

const bucketName = ([frames, height, width]) => `${counted(frames, "frame", "frames")} · ${width}×${height}`;

function clipCard(run, clip) {
  const picture = clip.picture
    ? el("img", { src: run.base + clip.picture, alt: "", loading: "lazy", decoding: "async" })
    : el("div", { class: "blank" });
  const details = [clip.name, bucketName(clip.bucket), `${digits(clip.fps)} fps`];
  if (clip.repeats !== 1) details.push(`${clip.repeats} times`);
  const caption = el("p", { class: "caption", title: clip.caption }, clip.caption);
  caption.addEventListener("click", () => caption.classList.toggle("open"));
  return el("li", {}, picture, el("div", { class: "text" }, caption, el("p", { class: "details" }, details.join(" · "))));
}

function clipList(run, isTitled) {
  const { total, listed } = run.clips;
  const cards = listed.map((clip) => ({
    clip,
    card: clipCard(run, clip),
    text: `${clip.name} ${clip.caption}`.toLowerCase(),
    bucket: bucketName(clip.bucket),
  }));
  const counts = new Map();
  cards.forEach(({ bucket }) => counts.set(bucket, (counts.get(bucket) ?? 0) + 1));
  let chosen = null;
  const found = el("span", { class: "quiet small", role: "status" });
  const search = el("input", { type: "search", placeholder: "Search captions", "aria-label": "Search captions" });
  const sift = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { card, text, bucket } of cards) {
      const fits = (chosen === null || bucket === chosen) && words.every((word) => text.includes(word));
      card.hidden = !fits;
      shown += fits;
    }
    found.textContent = shown < cards.length ? `${number.format(shown)} shown` : "";
  };
  search.addEventListener("input", sift);
  const chips = [...counts].map(([bucket, count]) => {
    const chip = el("button", { type: "button", "aria-pressed": "false" }, `${bucket} (${number.format(count)})`);
    chip.addEventListener("click", () => {
      chosen = chosen === bucket ? null : bucket;
      chips.forEach((other) => other.setAttribute("aria-pressed", String(other === chip && chosen !== null)));
      sift();
    });
    return chip;
  });
  const more = total > listed.length && `${number.format(total - listed.length)} more clips are not listed here.`;
  return [
    isTitled && el("h3", { style: { margin: "18px 0 8px" } }, swatch(run), run.label),
    el("div", { class: "head" }, el("div", { class: "chips", style: { flex: "1" } }, chips), found, search),
    el("ul", { class: "clips" }, cards.map(({ card }) => card)),
    more && el("p", { class: "keys" }, more),
  ];
}

function showClips() {
  const known = runs.filter((run) => run.clips && run.clips.listed.length > 0);
  if (known.length === 0) {
    section("data", "Data set", [], el("p", { class: "empty" }, "Training left no list of its clips."));
    return;
  }
  // Runs on the same clips share a list.
  const told = (run) => JSON.stringify([run.clips.total, run.clips.listed.map(({ picture, ...clip }) => clip)]);
  const lists = known.filter((run, i) => known.findIndex((other) => told(other) === told(run)) === i);
  const isTitled = lists.length > 1;
  const count = isTitled ? [] : el("span", { class: "quiet" }, counted(lists[0].clips.total, "clip", "clips"));
  section("data", "Data set", count, lists.map((run) => clipList(run, isTitled)));
}

// YAML with its keys in colour.
function yaml(text) {
  const pre = el("pre", { class: "settings", tabindex: 0, "aria-label": "config.yaml" });
  let part = pre;
  for (const line of text.trimEnd().split("\n")) {
    const [, before, key, rest] = /^(\s*(?:- )?)([\w.-]+:)(.*)$/s.exec(line) ?? [];
    if (key && before === "") part = pre.appendChild(el("span", {}));
    if (key) part.append(before, el("b", {}, key), `${rest}\n`);
    else part.append(`${line}\n`);
  }
  return pre;
}

// Keys by rows and runs by columns, those that differ first.
function comparison() {
  const values = runs.map((run) => new Map(run.settings.keys));
  const keys = [...new Set(runs.flatMap((run) => run.settings.keys.map(([key]) => key)))];
  const differs = (key) => values.some((of) => of.get(key) !== values[0].get(key));
  const rows = (list, isMarked) =>
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        { class: "plain" },
        el("thead", {}, el("tr", {}, el("th", {}, "Key"), runs.map((run) => el("th", {}, swatch(run), run.label)))),
        el(
          "tbody",
          {},
          list.map((key) =>
            el(
              "tr",
              { class: isMarked ? "differs" : null },
              el("th", { scope: "row" }, el("code", {}, key)),
              values.map((of) => el("td", {}, el("code", {}, of.get(key) ?? "–"))),
            ),
          ),
        ),
      ),
    );
  const [apart, alike] = [keys.filter(differs), keys.filter((key) => !differs(key))];
  return [
    apart.length > 0 ? rows(apart, true) : el("p", { class: "empty" }, "The runs have the same settings."),
    el("details", {}, el("summary", {}, `${counted(alike.length, "key is", "keys are")} the same`), rows(alike, false)),
  ];
}

function showSettings() {
  if (several) {
    section("config", "Config", el("span", { class: "quiet" }, "what differs"), comparison());
    return;
  }
  const [{ settings: of }] = runs;
  if (!of.text) {
    section("config", "Config", [], el("p", { class: "empty" }, "The run's folder has no config.yaml."));
    return;
  }
  const copy = el("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(of.text);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Not allowed here";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  section("config", "Config", [el("code", { class: "quiet" }, "config.yaml"), copy], yaml(of.text));
}

function showEnvironment() {
  const keys = [...new Set(runs.flatMap((run) => run.environment.map(([key]) => key)))];
  if (keys.length === 0) {
    section("environment", "Environment", [], el("p", { class: "empty" }, "Training left no note of it."));
    return;
  }
  const values = runs.map((run) => new Map(run.environment));
  const differs = (key) => values.some((of) => of.get(key) !== values[0].get(key));
  const head = several && el("thead", {}, el("tr", {}, el("th", {}, ""), runs.map((run) => el("th", {}, swatch(run), run.label))));
  const body = keys.map((key) =>
    el(
      "tr",
      { class: differs(key) ? "differs" : null },
      el("th", { scope: "row" }, key),
      values.map((of) => el("td", {}, of.get(key) ?? "–")),
    ),
  );
  section("environment", "Environment", [], el("div", { class: "scroll" }, el("table", { class: "plain" }, head, el("tbody", {}, body))));
}
