// Line charts and stacked bars as SVG, without a library. Texts are set as text, never as markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const LEGEND = 18; // curves that a chart names

/** An SVG or HTML element with attributes and children (strings become text). */
function make(name, attributes = {}, ...children) {
  const drawn = ["svg", "g", "path", "line", "text", "circle", "rect", "title"].includes(name);
  const element = drawn ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A number in the fewest characters that tell it: 0.0421, 1,234, 5.2 M. */
function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= unit) {
      const scale = letter === "k" ? 1e3 : unit;
      return `${trim((value / scale).toFixed(size / scale >= 100 ? 0 : 2))} ${letter}`;
    }
  }
  if (size >= 100) return Math.round(value).toLocaleString("en");
  if (size === 0 || size >= 0.01) return trim(value.toFixed(size >= 10 ? 2 : 4));
  return value.toExponential(1);
}

function trim(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** The unit that suits durations up to `most` seconds, and its seconds. */
function unitOf(most) {
  return most < 300 ? ["s", 1] : most < 18000 ? ["min", 60] : ["h", 3600];
}

/** Seconds in the unit that suits durations up to `most`: 42 s, 3.5 min, 2 h. */
function duration(seconds, most = seconds) {
  const [unit, size] = unitOf(most);
  return `${trim((seconds / size).toFixed(seconds / size < 10 ? 2 : 1))} ${unit}`;
}

/** Up to about `count` round values from `low` to `high`. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-6; at += 1) {
    found.push(at * step);
  }
  return found;
}

/** An exponential mean without the pull of its start; null stays a gap. */
function smooth(values, weight) {
  let mean = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

/**
 * One chart that is drawn anew with each `show`: series of {name, kind, dash, points, marks},
 * points and marks as [x, y]. Focus stays where it is; the readout follows pointer and arrow keys.
 */
class Chart {
  constructor(title, parent) {
    this.series = [];
    this.cursor = null;
    this.title = title;
    this.svg = make("svg", { role: "img", tabindex: "0" });
    this.readout = make("output", { "aria-live": "polite" });
    this.table = make("div", { class: "wide" });
    const details = make("details", {}, make("summary", {}, "As a table"), this.table);
    details.addEventListener("toggle", () => details.open && this.fill());
    this.details = details;
    this.legend = make("ul", { class: "legend" });
    this.figure = make("figure", { class: "chart" }, make("h3", {}, title), this.legend,
      this.svg, this.readout, details);
    parent.append(this.figure);
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.move(null));
    this.svg.addEventListener("blur", () => this.move(null));
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  /** Series, how values are written, the horizontal axis' label and what is 1 on it. */
  show(series, formatX, formatY, label, unit) {
    this.series = series.filter((each) => each.points.length || each.marks.length);
    this.formatX = formatX;
    this.formatY = formatY;
    this.label = label;
    this.unit = unit;
    this.figure.hidden = !this.series.length;
    const named = this.series.length > 1 ? this.series.slice(0, LEGEND) : [];
    this.legend.replaceChildren(...named.map((each) => make("li", {}, swatch(each), each.name)));
    this.draw();
    if (this.details.open) this.fill();
  }

  bounds() {
    const all = this.series.flatMap((each) => [...each.points, ...each.marks]);
    const known = all.filter(([, y]) => y !== null);
    const xs = known.map(([x]) => x), ys = known.map(([, y]) => y);
    let [left, right, low, high] = [min(xs), max(xs), min(ys), max(ys)];
    if (right === left) right = left + 1;
    const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [left, right, low >= 0 && low < margin ? 0 : low - margin, high + margin];
  }

  draw() {
    if (this.figure.hidden || !this.series.length) return;
    const width = Math.max(260, this.figure.clientWidth - 24), height = Math.min(300, width * 0.6);
    const [left, right, low, high] = this.bounds();
    const inner = { left: 58, right: width - 12, top: 12, bottom: height - 38 };
    this.x = (value) => inner.left + (value - left) / (right - left) * (inner.right - inner.left);
    this.y = (value) => inner.bottom - (value - low) / (high - low) * (inner.bottom - inner.top);
    this.unx = (at) => left + (at - inner.left) / (inner.right - inner.left) * (right - left);
    this.inner = inner;
    const parts = [...this.axes(width, height, left, right, low, high)];
    for (const each of this.series) parts.push(...this.curve(each));
    this.overlay = make("g");
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("aria-label", this.summary());
    this.svg.replaceChildren(...parts, this.overlay);
    this.mark();
  }

  *axes(width, height, left, right, low, high) {
    const { inner } = this;
    for (const value of ticks(low, high, 5)) {
      const y = this.y(value);
      yield make("line", { class: "grid", x1: inner.left, x2: inner.right, y1: y, y2: y });
      yield make("text", { x: inner.left - 6, y: y + 4, "text-anchor": "end" },
        this.formatY(value));
    }
    const { unit } = this, count = Math.max(2, Math.floor(width / 110));
    for (const value of ticks(left / unit, right / unit, count).map((each) => each * unit)) {
      const x = this.x(value), last = x > inner.right - 24;
      yield make("text", { x: last ? inner.right + 8 : x, y: inner.bottom + 16,
        "text-anchor": last ? "end" : "middle" }, this.formatX(value));
    }
    yield make("text", { x: (inner.left + inner.right) / 2, y: height - 4,
      "text-anchor": "middle" }, this.label);
  }

  *curve(each) {
    let path = "", open = false;
    for (const [x, y] of each.points) {
      if (y !== null) path += `${open ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
      open = y !== null;
    }
    if (path) {
      yield make("path", { class: `curve k${each.kind % COLOURS} d${each.dash % 4}`, d: path });
    }
    for (const [x, y] of each.marks) {
      yield make("circle", { class: `mark f${each.kind % COLOURS}`, cx: this.x(x), cy: this.y(y),
        r: 4 });
    }
  }

  summary() {
    const ends = this.series.map((each) => {
      const known = [...each.points, ...each.marks].filter(([, y]) => y !== null);
      const last = known[known.length - 1], first = known[0];
      return last ? `${each.name} from ${this.formatY(first[1])} to ${this.formatY(last[1])}` : "";
    });
    return `${this.title} against ${this.label}: ${ends.filter(Boolean).join("; ")}`;
  }

  key(event) {
    const xs = [...new Set(this.series.flatMap((each) => each.points.map(([x]) => x)))]
      .sort((a, b) => a - b);
    if (!xs.length) return;
    const at = this.cursor === null ? (event.key === "ArrowLeft" ? xs.length : -1)
      : xs.findIndex((x) => x >= this.cursor);
    const jump = Math.max(1, Math.round(xs.length / 60));
    const next = { ArrowRight: at + jump, ArrowLeft: at - jump, Home: 0, End: xs.length - 1 };
    if (!(event.key in next)) return;
    event.preventDefault();
    this.move(xs[Math.min(xs.length - 1, Math.max(0, next[event.key]))]);
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const scale = this.svg.viewBox.baseVal.width / box.width;
    this.move(this.unx((event.clientX - box.left) * scale));
  }

  move(x) {
    this.cursor = x;
    this.mark();
  }

  mark() {
    if (!this.overlay) return;
    this.overlay.replaceChildren();
    if (this.cursor === null) {
      this.readout.textContent = "";
      return;
    }
    const told = [], x = this.x(this.cursor);
    this.overlay.append(make("line", { class: "cursor", x1: x, x2: x, y1: this.inner.top,
      y2: this.inner.bottom }));
    for (const each of this.series) {
      const found = nearest(each.points.length ? each.points : each.marks, this.cursor);
      if (!found) continue;
      told.push(`${each.name} ${this.formatY(found[1])}`);
      this.overlay.append(make("circle", { class: `mark f${each.kind % COLOURS}`,
        cx: this.x(found[0]), cy: this.y(found[1]), r: 4 }));
    }
    this.readout.textContent = `${this.formatX(this.cursor)}: ${told.join(", ")}`;
  }

  fill() {
    const rows = this.series.flatMap((each) => {
      const all = (each.points.length ? each.points : each.marks).filter(([, y]) => y !== null);
      const step = Math.max(1, Math.ceil(all.length / 12));
      return all.filter((_, i) => i % step === 0 || i === all.length - 1)
        .map(([x, y]) => [each.name, this.formatX(x), this.formatY(y)]);
    });
    this.table.replaceChildren(table(["Curve", this.label, this.title], rows));
  }
}

/** A short piece of a curve, for a legend. */
function swatch({ kind, dash }) {
  return make("svg", { class: "swatch", "aria-hidden": "true", viewBox: "0 0 26 10" },
    make("line", { class: `curve k${kind % COLOURS} d${dash % 4}`, x1: 0, x2: 26, y1: 5, y2: 5 }));
}

function min(values) { return values.reduce((a, b) => Math.min(a, b), Infinity); }
function max(values) { return values.reduce((a, b) => Math.max(a, b), -Infinity); }

function nearest(points, x) {
  let best = null;
  for (const point of points) {
    if (point[1] !== null && (!best || Math.abs(point[0] - x) < Math.abs(best[0] - x))) {
      best = point;
    }
  }
  return best;
}

/** A table of texts; the first column is each row's header. */
function table(head, rows, caption = null, kind = null) {
  const made = make("table", { class: kind });
  if (caption) made.append(make("caption", {}, caption));
  made.append(make("thead", {}, make("tr", {},
    ...head.map((cell) => make("th", { scope: "col" }, cell)))));
  made.append(make("tbody", {}, ...rows.map((row) => make("tr", {},
    ...row.map((cell, i) => i ? make("td", {}, cell) : make("th", { scope: "row" }, cell))))));
  return made;
}

/** Where each run's bytes went: a bar for each of [name, {part: bytes}], parts alike coloured. */
function bars(runs, parts, width) {
  const most = max(runs.map(([, sizes]) => parts.reduce((sum, p) => sum + (sizes[p] || 0), 0)));
  const svg = make("svg", { viewBox: `0 0 ${width} ${runs.length * 46}`, role: "img",
    "aria-label": "Bytes of each artifact by part; the table below has the figures" });
  runs.forEach(([name, sizes], row) => {
    let at = 0;
    svg.append(make("text", { x: 0, y: row * 46 + 13 }, name));
    parts.forEach((part, i) => {
      const size = sizes[part] || 0;
      if (!size) return;
      const wide = size / most * width;
      svg.append(make("rect", { class: `bar f${i % COLOURS}`, x: at, y: row * 46 + 18,
        width: wide, height: 20 }, make("title", {}, `${part}: ${size.toLocaleString("en")}`)));
      at += wide;
    });
  });
  return svg;
}
