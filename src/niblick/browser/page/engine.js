"use strict";
/* The page's model: unpacked, and run by the engine that was compiled to WebAssembly. */

const SWAPPED = [0, 10, 13, 60];
const LAST = 1, ALL = 2;

/* The bytes that niblick/browser/text.py wrote as characters of seven bits. */
function fromText(text, count) {
  const out = new Uint8Array(count);
  let held = 0, bits = 0, at = 0;
  for (let i = 0; i < text.length && at < count; i++) {
    const code = text.charCodeAt(i);
    held = ((held << 7) | (code < 128 ? code : SWAPPED[code - 0xc0])) & 0x7fff;
    bits += 7;
    if (bits >= 8) out[at++] = held >> (bits -= 8);
  }
  return out;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* What the page carries: facts, a map of characters, the engine, the model's image. */
async function unpack(element) {
  const bytes = await inflated(fromText(element.textContent, +element.dataset.bytes));
  const sizes = new DataView(bytes.buffer), parts = [];
  for (let i = 0, at = 16; i < 4; i++) {
    const size = sizes.getUint32(4 * i, true);
    parts.push(bytes.subarray(at, at + size));
    at += size;
  }
  element.remove();
  const [facts, characters, wasm, image] = parts;
  return { facts: JSON.parse(new TextDecoder().decode(facts)), characters, wasm, image };
}

class Model {
  /* `image` is copied. */
  static async open({ facts, characters, wasm, image }) {
    const { instance } = await WebAssembly.instantiate(wasm, {});
    const model = new Model();
    Object.assign(model, { facts, wasm: instance.exports, columns: facts.columns });
    model.tokenizer = new Tokenizer(facts.tokenizer, characters);
    model.wasm._initialize?.();
    const at = model.room(image.length);
    new Uint8Array(model.wasm.memory.buffer).set(image, at);
    model.engine = model.wasm.nb_open(at, image.length);
    if (!model.engine) throw new Error("the model does not open");
    model.given = model.room(12 * model.columns);
    model.reset();
    return model;
  }

  /* Zeros in the engine's memory. */
  room(bytes) {
    const at = this.wasm.nb_floats(BigInt(Math.ceil(bytes / 4) + 1));
    if (!at) throw new Error("there is not enough memory for this model");
    return at;
  }

  reset() { this.wasm.nb_reset(this.engine, 0, 0n); }

  ints(at, count) { return new Int32Array(this.wasm.memory.buffer, at, count); }

  /* The next tokens, at most `columns` of them. */
  read(tokens, wanted = LAST) {
    const given = this.ints(this.given, 2 * tokens.length);
    given.fill(0, 0, tokens.length);
    given.set(tokens, tokens.length);
    this.wasm.nb_run(this.engine, tokens.length, this.given, this.given + 4 * tokens.length, wanted);
  }

  /* Bits of each of `targets` after the tokens read last; all logits must have been wanted. */
  bits(targets) {
    const count = targets.length, out = this.given + 4 * count;
    this.ints(this.given, count).set(targets);
    this.wasm.nb_nll(this.engine, count, 1, this.given, out);
    return Array.from(new Float32Array(this.wasm.memory.buffer, out, count), (x) => x / Math.LN2);
  }

  logits() {
    const at = this.wasm.nb_logits(this.engine, 0);
    return new Float32Array(this.wasm.memory.buffer, at, this.tokenizer.vocab);
  }

  /* Draw number `draw` of the seed, by the rule of niblick/engine/sampling.py. */
  choose({ temperature, topK, topP, seed }, draw) {
    return this.wasm.nb_choose(this.engine, 0, this.tokenizer.vocab, temperature, topK, topP,
      BigInt.asIntN(64, BigInt(seed)), BigInt(draw));
  }

  /* The likeliest tokens with their logits, best first. */
  best(count) {
    const logits = this.logits(), found = [];
    for (let id = 0; id < logits.length; id++) {
      if (found.length === count && logits[id] <= found[count - 1][1]) continue;
      let at = found.length;
      while (at > 0 && found[at - 1][1] < logits[id]) at--;
      found.splice(at, 0, [id, logits[id]]);
      if (found.length > count) found.pop();
    }
    return found;
  }
}

if (typeof module !== "undefined") module.exports = { fromText, Model };
