// The page: asks for the runs every two seconds, and for the curves of those that changed.
"use strict";

const EVERY = 2000;
const FIRST = 6; // runs that are chosen at first
const CHARTS = [
  ["loss", "Training loss (nats per token)", short, true],
  ["bpb", "Bits per byte (line: training, dots: validation)", short, true],
  ["grad_norm", "Gradient norm before clipping", short, true],
  ["lr", "Learning rates by group", short, false],
  ["tokens_per_second", "Tokens per second", short, false],
  ["memory", "Memory (bytes)", short, false],
];
const LABELS = { seconds: "training time", tokens: "tokens", step: "steps" };

const state = { runs: [], details: new Map(), chosen: new Map(), kinds: new Map(), failed: 0 };
const $ = (id) => document.getElementById(id);
const charts = CHARTS.map(([, title]) => new Chart(title, $("charts")));

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

const named = (ids) => ids.map((id) => `run=${encodeURIComponent(id)}`).join("&");
const chosen = () => state.runs.filter((run) => state.chosen.get(run.id));
const detailed = () => chosen().map((run) => state.details.get(run.id)).filter(Boolean);
const kind = (id) => state.kinds.get(id);

async function refresh() {
  try {
    const { runs, left_out } = await ask("/api/runs");
    state.runs = runs;
    for (const run of runs) {
      if (!state.kinds.has(run.id)) {
        state.kinds.set(run.id, state.kinds.size);
        state.chosen.set(run.id, state.kinds.size <= FIRST);
      }
    }
    const changed = await load();
    list();
    if (changed) draw();
    const training = runs.filter((run) => run.state === "training").length;
    const rest = left_out ? `, ${left_out} older ones left out` : "";
    say(`${runs.length} ${runs.length === 1 ? "run" : "runs"}, ${training} training${rest}`);
    state.failed = 0;
  } catch (error) {
    state.failed += 1;
    say(`No answer from the dashboard (${state.failed}). Is niblick dashboard still running?`);
  }
  setTimeout(refresh, document.hidden ? 5 * EVERY : EVERY);
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

/** Fetch what changed of the chosen runs; whether anything did, or the choice itself. */
async function load() {
  let changed = false;
  for (const run of chosen()) {
    const known = state.details.get(run.id);
    if (!known || known.revision !== run.revision) {
      state.details.set(run.id, { ...await ask(`/api/run?${named([run.id])}`),
        revision: run.revision });
      changed = true;
    }
  }
  return changed;
}

function list() {
  const body = $("run-table").tBodies[0];
  const rows = new Map([...body.rows].map((row) => [row.dataset.id, row]));
  $("none").hidden = state.runs.length > 0;
  $("run-table").hidden = !state.runs.length;
  state.runs.forEach((run, place) => {
    const row = rows.get(run.id) || add(run);
    rows.delete(run.id);
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] || null);
    fillRow(row, run);
  });
  for (const row of rows.values()) row.remove();
  options();
}

function add(run) {
  const number = kind(run.id), row = make("tr");
  row.dataset.id = run.id;
  const box = make("input", { type: "checkbox" });
  box.checked = state.chosen.get(run.id);
  box.addEventListener("change", async () => {
    state.chosen.set(run.id, box.checked);
    await load();
    draw();
    options();
  });
  const drawn = swatch({ kind: number, dash: dash(number) });
  row.append(make("th", { scope: "row" }, make("label", {}, box, drawn, run.id)));
  for (let i = 0; i < 10; i += 1) row.append(make("td"));
  row.cells[2].append(make("progress", { max: 1, "aria-label": "Budget spent" }));
  return row;
}

function fillRow(row, run) {
  const quiet = run.state === "training" && run.age > 20 ? `, quiet for ${duration(run.age)}` : "";
  const texts = [
    run.state + quiet, null, short(run.step), short(run.loss), fixed(run.bpb),
    fixed(run.validation_bpb), fixed(run.packed_bpb) + (run.valid ? "" : " NOT VALID"),
    run.artifact_bytes === null ? "-" : run.artifact_bytes.toLocaleString("en"),
    short(run.tokens_per_second),
    run.resident_bytes === null ? "-" : `${short(run.resident_bytes)}B`,
  ];
  texts.forEach((text, i) => {
    const cell = row.cells[i + 1];
    if (text !== null && cell.textContent !== text) cell.textContent = text;
  });
  row.cells[7].classList.toggle("bad", !run.valid);
  row.querySelector("progress").value = run.fraction || 0;
}

const fixed = (value) => value === null || value === undefined ? "-" : value.toFixed(4);
const dash = (number) => Math.floor(number / COLOURS) % 4 || number % 4;

/** Curves of one run for a chart: [name, column, dash]. */
function columns(name, training, number) {
  if (name === "lr") {
    const rates = Object.keys(training).filter((key) => key.startsWith("lr_"));
    return rates.map((key, i) => [` ${key.slice(3)}`, key, i]);
  }
  if (name === "memory") {
    return [[" process", "resident_bytes", 0], [" GPU", "gpu_peak_bytes", 1]];
  }
  return [["", name, dash(number)]];
}

function draw() {
  const against = $("against").value, weight = Number($("smoothing").value);
  const from = Number($("part").value), runs = detailed();
  const most = max(runs.map((run) => max((run.training[against] || []).map((x) => x || 0))));
  const timed = against === "seconds", unit = timed ? unitOf(most)[1] : 1;
  const formatX = timed ? (x) => duration(x, most) : short;
  CHARTS.forEach(([name, , formatY, smoothed], i) => {
    const series = runs.flatMap((run) => curvesOf(run, name, against, from,
      smoothed ? weight : 0));
    charts[i].show(series, formatX, formatY, LABELS[against], unit);
  });
  bytes(runs);
  records(runs);
}

function curvesOf(run, name, against, from, weight) {
  const number = kind(run.id), { training, validation } = run, xs = training[against] || [];
  const end = xs.length ? xs[xs.length - 1] : 0;
  const shown = ([x]) => x !== null && x >= from * end;
  return columns(name, training, number).map(([suffix, key, dashes]) => {
    const values = smooth(training[key] || [], weight);
    const points = values.map((y, i) => [xs[i], y]).filter(shown);
    const marks = name === "bpb" ? (validation.validation_bpb || []).map((y, i) =>
      [(validation[against] || [])[i] ?? null, y]).filter(shown) : [];
    const known = points.some(([, y]) => y !== null) ? points : [];
    return { name: run.id + suffix, kind: number, dash: dashes, points: known, marks };
  });
}

function bytes(runs) {
  const with_ = runs.filter((run) => Object.keys(run.bytes).length);
  if (!with_.length) {
    $("bytes-body").textContent = "No chosen run is packed yet.";
    return;
  }
  const most = (part) => max(with_.map((run) => run.bytes[part] || 0));
  const parts = [...new Set(with_.flatMap((run) => Object.keys(run.bytes)))]
    .sort((a, b) => most(b) - most(a));
  const legend = make("ul", { class: "legend" }, ...parts.slice(0, COLOURS).map((part, i) =>
    make("li", {}, make("svg", { class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true" },
      make("rect", { class: `f${i}`, width: 26, height: 10 })), part)));
  const rows = parts.map((part) => [part, ...with_.map((run) =>
    (run.bytes[part] || 0).toLocaleString("en"))]);
  const scroll = make("div", { class: "wide", tabindex: "0", role: "region",
    "aria-label": "Bytes by part" }, table(["Part", ...with_.map((run) => run.id)], rows));
  const width = Math.max(260, $("bytes-body").clientWidth);
  $("bytes-body").replaceChildren(
    bars(with_.map((run) => [run.id, run.bytes]), parts, width), legend, scroll);
}

function records(runs) {
  for (const [place, key, none] of [["cards-body", "card", "No chosen run has a card yet."],
    ["machines-body", "machine", "No chosen run says where it ran."]]) {
    const told = runs.filter((run) => run[key].length);
    const labels = [...new Set(told.flatMap((run) => run[key].map(([label]) => label)))];
    const rows = labels.map((label) => [label, ...told.map((run) =>
      (run[key].find(([each]) => each === label) || ["", "-"])[1])]);
    $(place).replaceChildren(told.length
      ? table(["", ...told.map((run) => run.id)], rows, null, "texts") : none);
  }
}

function options() {
  const scored = chosen().filter((run) => run.state === "scored").map((run) => run.id);
  const select = $("baseline"), before = [...select.options].map((option) => option.value);
  if (scored.join("\n") !== before.join("\n")) {
    const kept = select.value;
    select.replaceChildren(...scored.map((id) => make("option", { value: id }, id)));
    if (scored.includes(kept)) select.value = kept;
  }
  for (const control of $("compare-form").elements) control.disabled = !scored.length;
}

$("compare-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const first = $("baseline").value;
  const others = [...$("baseline").options].map((option) => option.value)
    .filter((id) => id !== first);
  const body = $("compare-body");
  body.textContent = "Comparing.";
  try {
    const found = await ask(`/api/compare?${named([first, ...others.slice(0, 11)])}`);
    const told = [found.error, found.warning].filter(Boolean)
      .map((text) => make("p", { class: "bad" }, text));
    const tables = (found.tables || []).map(([head, ...rows]) => table(head, rows));
    const said = (found.verdicts || []).map((text) => make("p", {}, text));
    body.replaceChildren(...told, ...tables, ...said);
  } catch (error) {
    body.textContent = "The comparison failed.";
  }
});

$("controls").addEventListener("input", draw);
$("controls").addEventListener("submit", (event) => event.preventDefault());
refresh();
