// The page of `niblick serve`: writes and scores through the same interface as any other client.
// Text from the model and from the user goes into the document as text nodes only.
"use strict";

const at = (id) => document.getElementById(id);
const LIKELIEST = 5;
const BINS = [1, 2, 3.5, 5, 7, 9.5, 12]; // bits at which the shades begin
let model = null;
let key = sessionStorage.getItem("key") || "";
let running = null;

function make(tag, text = "", cls = "") {
  const found = document.createElement(tag);
  if (text) found.textContent = text;
  if (cls) found.className = cls;
  return found;
}

function shade(bits) {
  let bin = 0;
  while (bin < BINS.length && bits >= BINS[bin]) bin++;
  return "b" + bin;
}

const shown = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";
const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

function tell(id, text, bad = false) {
  at(id).textContent = text;
  at(id).classList.toggle("bad", bad);
}

// ---- asking the server

async function ask(path, body, signal) {
  const headers = key ? { authorization: "Bearer " + key } : {};
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(path, {
    method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body),
  });
  if (answer.status === 401) at("key-form").hidden = false;
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Error(told?.error?.message || "the server answered " + answer.status);
  }
  return answer;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended early");
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}

// ---- tokens as they are shown

const BYTES = /^bytes:((?:\\x[0-9a-f]{2})+)$/;

// Tokens of `logprobs` as units to show; those that share a character are one unit.
class Units {
  constructor(box) {
    this.box = box;
    this.units = [];
    this.bytes = null;
    this.waiting = 0; // bits of tokens without text, shown with the next one's
  }

  add(logprobs) {
    const lines = document.createDocumentFragment();
    logprobs.tokens.forEach((token, i) => {
      const bits = logprobs.token_logprobs[i] === null ? 0 : -logprobs.token_logprobs[i] / Math.LN2;
      const spelled = BYTES.exec(token);
      if (spelled) this.spell(spelled[1], bits, logprobs.top_logprobs[i], lines);
      else {
        this.bytes = null;
        if (token) this.put(token, bits, logprobs.top_logprobs[i], lines);
        else this.waiting += bits;
      }
    });
    this.box.append(lines);
  }

  spell(text, bits, others, lines) {
    const own = text.slice(2).split("\\x").map((hex) => parseInt(hex, 16));
    if (!this.bytes) {
      this.bytes = { all: [], unit: this.put("", 0, others, lines), whole: false };
    }
    const { all, unit } = this.bytes;
    all.push(...own);
    unit.bits += bits;
    unit.text = new TextDecoder().decode(new Uint8Array(all));
    unit.node.textContent = unit.text;
    unit.node.className = "t " + shade(unit.bits);
    if (!unit.text.includes("\ufffd")) this.bytes = null;
  }

  put(text, own, others, lines) {
    const bits = own + this.waiting;
    this.waiting = 0;
    const node = make("span", text, "t " + shade(bits));
    node.tabIndex = this.units.length ? -1 : 0;
    const unit = { text, bits, others: others || {}, node };
    node.unit = unit;
    this.units.push(unit);
    lines.append(node);
    return unit;
  }
}

function explain(unit) {
  const box = at("detail");
  box.replaceChildren();
  const line = make("div");
  line.append(make("b", shown(unit.text)), ` ${number(unit.bits, 1)} bits`);
  box.append(line);
  for (const [text, nats] of Object.entries(unit.others).sort((a, b) => b[1] - a[1])) {
    const row = make("div", "", "other" + (text === unit.text ? " own" : ""));
    const share = Math.exp(nats);
    const meter = make("meter");
    meter.value = share;
    meter.setAttribute("aria-hidden", "true");
    row.append(make("code", shown(text)), meter, make("span", number(100 * share, share < 0.1 ? 1 : 0) + " %", "share"));
    box.append(row);
  }
  box.hidden = false;
  const place = unit.node.getClientRects()[0] || unit.node.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  box.style.left = Math.max(8, Math.min(place.left, width - box.offsetWidth - 8)) + scrollX + "px";
  const below = place.bottom + box.offsetHeight + 12 < innerHeight || place.top < box.offsetHeight;
  box.style.top = (below ? place.bottom + 6 : place.top - box.offsetHeight - 6) + scrollY + "px";
}

function follow(box) {
  const over = (event) => event.target.unit && explain(event.target.unit);
  box.addEventListener("mouseover", over);
  box.addEventListener("focusin", over);
  box.addEventListener("mouseleave", () => (at("detail").hidden = true));
  box.addEventListener("focusout", () => (at("detail").hidden = true));
  box.addEventListener("click", (event) => event.target.unit && visit(event.target));
  box.addEventListener("keydown", (event) => {
    const nodes = [...box.querySelectorAll(".t")];
    const now = nodes.indexOf(document.activeElement);
    const to = { ArrowRight: now + 1, ArrowDown: now + 10, ArrowLeft: now - 1, ArrowUp: now - 10,
      Home: 0, End: nodes.length - 1 }[event.key];
    if (event.key === "Escape") at("detail").hidden = true;
    if (to === undefined || now < 0) return;
    event.preventDefault();
    visit(nodes[Math.max(0, Math.min(nodes.length - 1, to))]);
  });
}

function visit(node) {
  node.parentNode.querySelectorAll('.t[tabindex="0"]').forEach((other) => (other.tabIndex = -1));
  node.tabIndex = 0;
  node.focus();
}

// ---- writing

async function write() {
  const prompt = at("prompt").value;
  const seed = at("seed").value;
  at("detail").hidden = true;
  at("written").replaceChildren(make("span", prompt, "given"));
  const units = new Units(at("written"));
  const began = performance.now();
  let first = 0, last = began, count = 0, ended = "";
  const speed = () => `${number(count)} tokens · ${number((1000 * count) / (last - began))} tokens per second`;
  running = new AbortController();
  tell("write-status", "");
  at("go").disabled = true;
  at("stop").disabled = false;
  try {
    const answer = await ask("v1/completions", {
      model: model?.id, prompt, stream: true, logprobs: LIKELIEST,
      max_tokens: +at("tokens").value, temperature: +at("temperature").value,
      top_p: +at("top-p").value, top_k: +at("top-k").value,
      seed: seed === "" ? null : +seed, across_documents: at("across").checked,
    }, running.signal);
    for await (const event of events(answer)) {
      const choice = event.choices[0];
      if (!choice) continue;
      last = performance.now();
      first ||= last;
      count += choice.logprobs.tokens.length;
      units.add(choice.logprobs);
      ended = choice.finish_reason || ended;
      at("speed").textContent = speed();
    }
    const why = ended === "stop" ? " · the model ended its text" : "";
    tell("write-status", `${speed()} · first after ${number(first - began)} ms${why}`);
  } catch (error) {
    if (error.name === "AbortError") tell("write-status", speed() + " · stopped");
    else tell("write-status", error.message, true);
  } finally {
    at("speed").textContent = "";
    running = null;
    at("go").disabled = false;
    at("stop").disabled = true;
  }
}

// ---- scoring

async function score() {
  const text = at("any").value;
  for (const id of ["figures", "surprises", "scored"]) at(id).replaceChildren();
  at("detail").hidden = true;
  tell("score-status", "Reading.");
  try {
    const answer = await ask("v1/completions", {
      model: model?.id, prompt: text, max_tokens: 0, echo: true, logprobs: LIKELIEST,
    });
    const choice = (await answer.json()).choices[0];
    const units = new Units(at("scored"));
    units.add(choice.logprobs);
    const bits = -choice.logprobs.token_logprobs.reduce((sum, value) => sum + (value || 0), 0) / Math.LN2;
    const bytes = new TextEncoder().encode(choice.text).length;
    const tokens = choice.logprobs.tokens.length;
    facts("figures", {
      "bits per byte": bytes ? number(bits / bytes, 4) : "none",
      "bits per token": tokens ? number(bits / tokens, 2) : "none",
      tokens: number(tokens), bytes: number(bytes), "compressed to": `${number(Math.ceil(bits / 8))} bytes`,
    });
    const worst = [...units.units].sort((a, b) => b.bits - a.bits).slice(0, 6);
    if (worst.length) at("surprises").append("Most surprised at");
    for (const unit of worst) {
      const button = make("button", `${shown(unit.text)} ${number(unit.bits, 1)}`, shade(unit.bits));
      button.type = "button";
      button.addEventListener("click", () => visit(unit.node));
      at("surprises").append(button);
    }
    tell("score-status", bytes ? `${number(bits / bytes, 4)} bits per byte` : "Nothing to score.");
  } catch (error) {
    tell("score-status", error.message, true);
  }
}

function facts(id, values) {
  at(id).replaceChildren();
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "") continue;
    const box = make("div", "", String(value).length > 24 ? "wide" : "");
    box.append(make("dt", name), make("dd", String(value)));
    at(id).append(box);
  }
}

// ---- card, tabs, start

async function card() {
  try {
    model = await (await ask("card")).json();
  } catch (error) {
    tell("summary", error.message, true);
    return;
  }
  at("key-form").hidden = true;
  document.title = `${model.id} · niblick`;
  at("name").textContent = model.id;
  const size = model.bytes ? `${number(model.bytes)} bytes, ` : "";
  const bpb = model.bpb ? `, ${number(model.bpb, 4)} bits per byte` : "";
  tell("summary", `${size}${number(model.parameters)} parameters${bpb}`);
  facts("facts", {
    description: model.description, "bits per byte": model.bpb && number(model.bpb, 4),
    "file, bytes": model.bytes && number(model.bytes), parameters: number(model.parameters),
    layers: model.depth, context: number(model.context), tokenizer: model.tokenizer,
    "trained, seconds": model.train_seconds && number(model.train_seconds), engine: model.engine,
    "texts at once": model.slots, "SHA-256": model.sha256,
  });
}

function choose(tab) {
  for (const other of document.querySelectorAll("[role=tab]")) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    at(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  at("detail").hidden = true;
}

const tabs = [...document.querySelectorAll("[role=tab]")];
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
});
for (const legend of document.querySelectorAll(".legend")) {
  [0, ...BINS].forEach((bits, i) =>
    legend.append(make("span", i ? String(bits) : "0 bits", "b" + i)));
}
at("write-form").addEventListener("submit", (event) => { event.preventDefault(); write(); });
at("score-form").addEventListener("submit", (event) => { event.preventDefault(); score(); });
at("stop").addEventListener("click", () => running?.abort());
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("write-form").requestSubmit();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value;
  sessionStorage.setItem("key", key);
  card();
});
at("base").textContent = new URL("v1", location.href);
follow(at("written"));
follow(at("scored"));
card();
