"use strict";
/* The page: a prompt, the text that follows token by token, what each token cost. */

const $ = (id) => document.getElementById(id);
const SLICE = 12, SHOWN = 5; // milliseconds of work between two looks at the page; alternatives

/* Lets the browser draw and listen; sooner than a timer would. */
const channel = new MessageChannel(), waiting = [];
channel.port1.onmessage = () => waiting.shift()();
const breathe = () => new Promise((go) => { waiting.push(go); channel.port2.postMessage(0); });

let model = null, running = null, told = [], chosen = -1;

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

/* A span for what tokens have just completed; without text they wait for the next one. */
class Writer {
  constructor(kind, after) {
    this.kind = kind;
    this.decoder = model.tokenizer.stream(after);
    this.bits = 0;
    this.before = this.decoder.state;
  }

  push(token, bits, alternatives) {
    this.bits += bits;
    this.show(this.decoder.push(token), token, alternatives);
    this.before = this.decoder.state;
  }

  flush() { this.show(this.decoder.flush(), -1, []); }

  show(text, token, alternatives) {
    if (!text) return;
    const span = document.createElement("span");
    span.className = this.kind;
    span.textContent = text;
    span.style.setProperty("--bits", this.bits.toFixed(2));
    span.dataset.at = told.length;
    told.push({ span, text, token, bits: this.bits, before: this.before, alternatives });
    this.bits = 0;
    $("text").append(span);
  }
}

const visible = (text) => "“" + text.replaceAll("\n", "↵") + "”";

function name(token, before) {
  const own = model.tokenizer;
  if (token === own.bos) return "end of the document";
  if (token === own.title) return "a capital letter";
  if (token === own.caps) return "a word in capitals";
  return visible(new TextDecoder().decode(own.next(token, before)[0]));
}

/* What a token cost, and what else might have stood there. */
function tell(at) {
  if (chosen >= 0 && told[chosen]) told[chosen].span.classList.remove("chosen");
  chosen = at;
  const { span, text, bits, before, alternatives } = told[at];
  span.classList.add("chosen");
  const bold = document.createElement("b");
  bold.textContent = visible(text);
  const others = alternatives.map(([id, p]) => `${name(id, before)} ${(100 * p).toFixed(1)}%`);
  $("token").replaceChildren(bold, ` ${bits.toFixed(2)} bits.`,
    others.length ? ` Likeliest here: ${others.join(", ")}` : "");
}

/* Probabilities of the likeliest tokens, from one token's bits and its logit. */
function likeliest(token, bits) {
  const logits = model.logits(), total = logits[token] + bits * Math.LN2;
  return model.best(SHOWN).map(([id, logit]) => [id, Math.exp(logit - total)]);
}

/* Reads the prompt, the bits of all its tokens included. */
async function readPrompt(ids, work) {
  const writer = new Writer("prompt", ids.slice(0, 1));
  model.reset();
  for (let at = 0; at < ids.length; at += model.columns) {
    const part = ids.slice(at, at + model.columns), next = ids.slice(at + 1, at + 1 + part.length);
    model.read(part, 2);
    const bits = next.length ? model.bits([...next, ...part.slice(next.length)]) : [];
    next.forEach((token, i) => writer.push(token, bits[i], []));
    await breathe();
    if (work.stopped) break;
  }
  writer.flush();
}

function figures(count, bits, first, seconds) {
  $("count").textContent = count.toLocaleString("en");
  $("bits").textContent = count ? (bits / count).toFixed(2) : "–";
  $("first").textContent = first === null ? "–" : `${first.toFixed(first < 10 ? 1 : 0)} ms`;
  $("speed").textContent = seconds > 0 && count > 1
    ? Math.round((count - 1) / seconds).toLocaleString("en") : "–";
}

/* Writes up to `tokens` tokens; gives why it ended. */
async function write(settings, work) {
  const began = performance.now(), ids = [model.tokenizer.bos,
    ...model.tokenizer.encode(settings.prompt)];
  told = []; chosen = -1;
  $("text").replaceChildren();
  await readPrompt(ids, work);
  const writer = new Writer("", ids);
  let bits = 0, count = 0, first = null, looked = performance.now(), busy = 0, end = "";
  for (; !end; count++) {
    const started = performance.now();
    const token = model.choose(settings, count);
    if (work.stopped) { end = "Stopped"; break; }
    if (token === model.tokenizer.bos) { end = "The document ends here"; break; }
    const cost = model.bits([token])[0];
    bits += cost;
    writer.push(token, cost, likeliest(token, cost));
    if (first === null) first = performance.now() - began;
    if (count + 1 >= settings.tokens) { count++; end = "Done"; break; }
    model.read([token], 2);
    busy += performance.now() - started;
    if (performance.now() - looked > SLICE) {
      figures(count + 1, bits, first, busy / 1000);
      await breathe();
      looked = performance.now();
    }
  }
  writer.flush();
  figures(count, bits, first, busy / 1000);
  return end;
}

function settings() {
  const number = (id) => $(id).valueAsNumber;
  return {
    prompt: $("prompt").value, temperature: number("temperature"), topK: number("topK"),
    topP: number("topP"), tokens: number("tokens"), seed: number("seed"),
  };
}

async function submitted(event) {
  event.preventDefault();
  if (running) return;
  running = { stopped: false };
  $("write").disabled = true;
  $("stop").disabled = false;
  $("text").setAttribute("aria-busy", "true");
  say("Writing");
  try {
    say(await write(settings(), running));
  } catch (error) {
    say(`It failed: ${error.message}`, true);
  }
  $("text").removeAttribute("aria-busy");
  $("write").disabled = false;
  $("stop").disabled = true;
  running = null;
}

function pressed(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step || !told.length) return;
  event.preventDefault();
  tell(Math.max(0, Math.min(told.length - 1, chosen + step)));
  told[chosen].span.scrollIntoView({ block: "nearest" });
}

async function start() {
  $("form").addEventListener("submit", submitted);
  $("stop").addEventListener("click", () => { if (running) running.stopped = true; });
  $("shade").addEventListener("change", () => {
    $("text").classList.toggle("shaded", $("shade").checked);
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
  $("text").addEventListener("pointerover", (event) => {
    if (event.target.dataset.at !== undefined) tell(+event.target.dataset.at);
  });
  $("text").addEventListener("keydown", pressed);
  try {
    const began = performance.now();
    model = await Model.open(await unpack($("model")));
    say(`Ready in ${Math.round(performance.now() - began)} ms`);
    $("write").disabled = false;
  } catch (error) {
    say(`This browser cannot run the model: ${error.message}`, true);
  }
}

start();
