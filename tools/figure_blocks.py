"""What stands between `<!-- figures: NAME -->` and `<!-- end -->` in README.md and docs/.

A block is a function of the rows of docs/results.json and of the way from the page to docs/. Every
claim says where it comes from: on its own page with day and machine, in the table of all rows with
its command and commit.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

Rows = dict[str, dict[str, Any]]
Block = Callable[[Rows, str], str]


def prose(text: str) -> str:
    """A paragraph in lines of at most 100 characters."""
    return textwrap.fill(
        " ".join(text.split()), 100, break_long_words=False, break_on_hyphens=False
    )


def table(head: str, lines: Iterable[Iterable[object]]) -> str:
    """A Markdown table; `head` holds its columns between bars."""
    columns = head.split(" | ")
    rule = "|" + "---|" * len(columns)
    rows = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([f"| {head} |", rule, *rows])


def source(*rows: dict[str, Any]) -> str:
    """Command, day and machine of each row that is shown, a paragraph for each."""
    return "\n\n".join(prose(_source(row)) for row in rows)


def _source(row: dict[str, Any]) -> str:
    note = f". {row['note'][0].upper()}{row['note'][1:]}" if "note" in row else ""
    return f"`{row['command']}`: {where(row)}{note}."


def where(row: dict[str, Any]) -> str:
    """Day and machine of a row."""
    machine = re.sub("^not recorded", "machine not recorded", row["machine"])
    return f"{row['date']}, {machine}"


def picture(name: str, docs: str, alt: str, width: int = 560) -> str:
    """A plot, dark where the reader's page is."""
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{docs}{name}-dark.svg">\n'
        f'  <img src="{docs}{name}-light.svg" width="{width}" alt="{alt}">\n'
        "</picture>"
    )


def size(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1e6:.2f} MB" if count >= 999_500 else f"{count / 1e3:.0f} kB"


def models(rows: Rows) -> list[dict[str, float]]:
    """Bytes and bits per byte of the shipped model, packed anew, and of models made for less."""
    found = [*rows["frontier"]["values"]["model"], *rows["sizes"]["values"]["model"]]
    return sorted(found, key=lambda each: each["bytes"])


def headline(rows: Rows, docs: str) -> str:
    """The first picture and the sentence that it says."""
    values, shipped = rows["frontier"]["values"], rows["shipped"]["values"]
    small = models(rows)[0]
    last = {name: each[-1] for name, each in values["compressors"].items()}
    best = last["PPMd order 16"]
    others = ", ".join(
        f"{name} {each['bpb']:.2f} in {size(each['bytes'])}" for name, each in last.items()
    )
    alt = (
        f"Bits per byte of unseen English against bytes: niblick {shipped['bpb']:.2f} in"
        f" {size(shipped['bytes'])} and {small['bpb']:.2f} in {size(small['bytes'])}; {others}."
    )
    return (
        picture("bpb", docs, alt)
        + "\n\n"
        + prose(
            f"English that none of them has seen. Compressors have read the model's training text,"
            f" and are charged for it as small as they make it: PPMd with {size(best['bytes'])}"
            f" needs {best['bpb']:.2f} bits per byte, a niblick model of {size(small['bytes'])}"
            f" {small['bpb']:.2f}, the one that ships, of {size(shipped['bytes'])},"
            f" **{shipped['bpb']:.2f}**. ([How this is measured]({docs}measured.md#bits-per-byte))"
        )
    )


def start(rows: Rows, docs: str) -> str:
    """The two commands."""
    minutes = rows["make-train"]["values"]["minutes"]
    return (
        "```bash\n"
        f"make train   # bare machine -> trained, packed, scored model and its card: {minutes}"
        " minutes on 2 cores\n"
        "make test    # everything that must hold\n"
        "```"
    )


def ships(rows: Rows, docs: str) -> str:
    """What the README says of the shipped models."""
    values, page = rows["shipped"]["values"], rows["browser-page"]["values"]
    two = rows["shipped-ensemble"]["values"]
    return prose(
        f"Two models come with it. `pocket`: {values['bpb']:.4f} bits per byte in"
        f" {values['bytes']:,} bytes, {values['parameters']:,} parameters, trained on"
        f" {values['tokens']:,} tokens ([card](src/niblick/models/pocket.card.md)). As a page that"
        f" runs in any browser, offline, it takes {size(page['bytes'])}. `pocket-ensemble`, two"
        f" such models whose probabilities are averaged, at twice the arithmetic:"
        f" **{two['bpb']:.4f}** in {two['bytes']:,} bytes"
        f" ([card](src/niblick/models/pocket-ensemble.card.md))."
    )


def install(rows: Rows, docs: str) -> str:
    """What an installation brings."""
    values = rows["install"]["values"]
    return prose(
        f"`pip install .` brings the runtime ({values['runtime_download']} MB to download, no"
        " torch); `'.[lab]'` adds what training and packing need. `make setup` takes PyTorch's CPU"
        f" build where there is no NVIDIA driver ({values['cpu_installed']} GB installed in place"
        f" of {values['default_installed']})."
    )


def claims(rows: Rows, docs: str) -> str:
    """The README's table: a line for each part, its figure and where to read on."""
    v = {name: row["values"] for name, row in rows.items()}
    packed, pocket, tiled = v["packed-27m"], v["training"][0], v["training-tiles"][0]
    drawn = next(r for r in v["decoding"] if r["engine"] == "niblick")
    peer = next(r for r in v["decoding"] if "Q6_K" in r["engine"])
    real, unseen, known = v["decoding-packed"][0], v["audit-unseen"], v["audit-development"]
    tested = {row["name"]: row for row in v["packing-pocket"]}
    ours = tested["niblick rd, the bytes of GPTQ + 24 sigma + Brotli-11"]
    theirs = tested["GPTQ + 24 sigma + Brotli-11"]
    coded = min((r for n, r in tested.items() if "NNCodec" in n), key=lambda row: row["size"])
    page = f"{docs}measured.md"
    lines = [
        (
            "training",
            f"`pocket` {tiled['ratio']:.1f} times as fast as plain PyTorch with bf16 and Muon on a"
            f" processor with matrix tiles (AMX), {pocket['ratio']:.1f} times with AVX512-BF16, in"
            f" half the memory ({pocket['niblick_mb']} against {pocket['plain_mb']:,} MB)",
            f"[speed]({page}#training)",
        ),
        (
            "packing",
            f"{packed['parameters'] / 1e6:.0f} M parameters in {packed['bytes']:,} bytes at no loss"
            f" ({packed['bpb']:.4f}, floats {packed['float_bpb']:.4f}); `pocket` at"
            f" {ours['bits']:.1f} bits a parameter loses {ours['tax']:.4f} bits per byte, by GPTQ"
            f" {theirs['tax']:.4f}, by NNCodec {coded['tax']:.4f}",
            f"[packing]({page}#packing)",
        ),
        (
            "decoding",
            f"27 M parameters on two cores: {real['ms']:.2f} ms a token trained and packed,"
            f" {drawn['ms']:.2f} with random 6-bit weights; llama.cpp {peer['ms']:.2f} for a Llama"
            " of that size at Q6_K",
            f"[decoding]({page}#decoding)",
        ),
        (
            "audit",
            f"right on {unseen['right']} of {unseen['of']} submissions it had never seen"
            f" ({unseen['low']} to {unseen['high']} %), {known['right']} of {known['of']} it was"
            " written with",
            f"[audit]({page}#audit)",
        ),
    ]
    return table("what | figure | more", lines)


def bits_per_byte(rows: Rows, docs: str) -> str:
    """The frontier as a table."""
    values = rows["frontier"]["values"]
    model = [("niblick", f"{e['bytes']:,}", f"{e['bpb']:.4f}") for e in models(rows)]
    others = [
        (f"{name}, {each['share']:.0%} of the text", f"{each['bytes']:,}", f"{each['bpb']:.4f}")
        for name, found in values["compressors"].items()
        for each in found
    ]
    shown = picture("bpb", docs, "Bits per byte against bytes; the table below holds the numbers.")
    told = table("what | bytes that must be there | bits per byte", [*model, *others])
    return f"{shown}\n\n{told}\n\n{source(rows['frontier'], rows['sizes'])}"


def runs(rows: Rows, docs: str) -> str:
    """The shipped models beside a run of `make train`: three runs, three scores."""
    lines = []
    for name in ("shipped", "shipped-ensemble", "make-train"):
        row, v = rows[name], rows[name]["values"]
        lines.append(
            (
                row["what"],
                f"**{v['bpb']:.4f}**",
                f"{v['float_bpb']:.4f}",
                f"{v['bytes']:,}",
                f"{v['tokens']:,} ({v['passes']:.1f} passes)",
                where(row),
            )
        )
    head = "run | packed, bits per byte | floats | bytes | training tokens | where"
    again, cap = rows["make-train"], rows["shipped"]["values"]["max_bytes"]
    return (
        table(head, lines)
        + "\n\n"
        + prose(
            f"Under {cap:,} bytes, by the recipes `pocket`, `pocket-ensemble` and `pocket`. The"
            f" second: `{rows['shipped-ensemble']['command']}`. The third: `make train`;"
            f" {again['note']}. Its test split: {again['values']['test_bpb']:.4f}."
        )
    )


def _packers(name: str, alt: str) -> Block:
    def block(rows: Rows, docs: str) -> str:
        shown = [row for row in rows[name]["values"] if row["name"] != "float32"]
        ours = lambda text: f"**{text}**" if text.startswith("niblick rd") else text
        lines = [
            (ours(r["name"]), f"{r['size']:,}", f"{r['bits']:.2f}", f"{r['tax']:+.4f}")
            for r in sorted(shown, key=lambda row: -row["size"])
        ]
        head = "packer | bytes | bits per parameter | bits per byte lost"
        return f"{picture(name, docs, alt)}\n\n{table(head, lines)}\n\n{source(rows[name])}"

    return block


def packed(rows: Rows, docs: str) -> str:
    """The 27 M model as one file."""
    row, v = rows["packed-27m"], rows["packed-27m"]["values"]
    return (
        prose(
            f"A full-size token-shift model, {v['parameters']:,} parameters trained for"
            f" {v['train_minutes']} minutes, under {v['max_bytes']:,} bytes: {v['bytes']:,} bytes,"
            f" {v['bpb']:.5f} bits per byte where the floats have {v['float_bpb']:.5f};"
            f" {v['pack_minutes']} minutes to pack, {v['decode_seconds']} s to decode."
        )
        + "\n\n"
        + source(row)
    )


def training(rows: Rows, docs: str) -> str:
    """A step against the plain implementation, on tiles and on vectors."""
    second = ", ".join(
        f"{r['recipe']} {r['ratio']} times and {r['share']} %"
        for r in rows["training-second"]["values"]
    )
    since = rows["training-since"]
    later = (
        f"A second run of the last four on vectors: {second}. Those are figures of a tree whose"
        f" threads spun while they waited; today's step on vectors runs at"
        f" {since['values']['speed']} of that speed on an idle machine (median of ten pairs,"
        f" `{since['command']}` of both trees in turn, {where(since)}), and no slower beside other"
        " work."
    )
    steps = [_steps(rows[name]) for name in ("training-tiles", "training")]
    return "\n\n".join(
        ["On matrix tiles (AMX):", steps[0], "On vectors (AVX512-BF16):", steps[1], prose(later)]
    )


def _steps(row: dict[str, Any]) -> str:
    lines = [
        (
            r["recipe"],
            f"{r['tokens_per_step']:,}",
            f"{r['plain']:,}",
            f"{r['niblick']:,}",
            f"**{r['ratio']:.1f}x**",
            f"{r['share']} %",
            f"{r['plain_mb']:,} / {r['niblick_mb']:,} MB",
        )
        for r in row["values"]
    ]
    head = (
        "recipe | tokens a step | plain tok/s | niblick tok/s | ratio | share of the bf16 matrix"
        " rate | peak memory, plain / niblick"
    )
    return f"{table(head, lines)}\n\n{source(row)}"


def decoding(rows: Rows, docs: str) -> str:
    """Milliseconds per token: random weights, packed ones, llama.cpp."""
    lines = []
    for row in [*rows["decoding"]["values"], *rows["decoding-packed"]["values"]]:
        scatter = "one run" if row["low"] == row["high"] else f"{row['low']} .. {row['high']}"
        ms = f"{row['ms']:.2f}" if row["engine"] != "niblick" else f"**{row['ms']:.2f}**"
        lines.append((row["model"], row["engine"], row["weights"], ms, scatter, row["state"]))
    head = "model | engine | weights | ms per token | range | state"
    alt = "Milliseconds per token; the table below holds the numbers."
    told = source(rows["decoding"], rows["decoding-packed"])
    return f"{picture('decoding', docs, alt)}\n\n{table(head, lines)}\n\n{told}"


def evaluation(rows: Rows, docs: str) -> str:
    """The modes and what learning at test time gains, on the shipped model."""
    row = rows["evaluation"]
    base = row["values"]["streaming"]["seconds"]
    lines = [
        (name, f"{each['bpb']:.4f}", f"{each['seconds']:.1f}", f"{each['seconds'] / base:.2f} x")
        for name, each in row["values"].items()
    ]
    full = rows["evaluation-full-size"]
    f = full["values"]
    also = (
        f"At full size (context {f['context']:,}, random weights, {f['tokens']:,} tokens) streaming"
        f" takes {f['share']} of the time of sliding at stride 64, the score within"
        f" {f['gap_nats']:.5f} nats ({where(full)}); the ratio is about 64 /"
        " context."
    )
    head = "mode | bits per byte | processor seconds | against streaming"
    return f"{table(head, lines)}\n\n{source(row)}\n\n{prose(also)}"


def proof(rows: Rows, docs: str) -> str:
    """What --prove finds on the shipped model."""
    row, v = rows["proof"], rows["proof"]["values"]
    return prose(
        f"`{row['command']}` on the model that ships ({row['date']}): {v['cuts']} cuts,"
        f" {v['compared']:,} earlier scores unchanged to the bit, {v['distributions']}"
        f" distributions over {v['alphabet']:,} tokens sum to 1 within {v['deviation']:.1e},"
        f" {v['bytes']:,} bytes of tokens are the text's."
    )


def looping(rows: Rows, docs: str) -> str:
    """Loss by rounding of looped and hybrid models."""
    widths = ("int8", "int6", "int5", "int4")
    lines = [
        (r["model"], f"{r['parameters']:,}", *(f"{r[w]:+.4f}" for w in widths))
        for r in rows["looping"]["values"]
    ]
    head = "model | parameters | int8 | int6 | int5 | int4"
    return f"{table(head, lines)}\n\n{source(rows['looping'])}"


def audit(rows: Rows, docs: str) -> str:
    """Right by class: unseen, and the set it was written with."""
    lines = []
    for name in ("audit-unseen", "audit-development"):
        v, row = rows[name]["values"], rows[name]
        interval = f"{v['low']} .. {v['high']} %" if "low" in v else ""
        share = f"{100 * v['right'] / v['of']:.0f} %"
        lines.append((row["what"], f"{v['right']} of {v['of']}", share, interval, row["date"]))
    known = rows["audit-development"]["values"]
    also = (
        f"Of {known['leaderboard']} folders of the public records that hold a script, flagged:"
        f" {known['leaderboard_flagged']}, over the size by its own numbers; held:"
        f" {known['leaderboard_held']}."
    )
    return f"{table('set | right by class | | 95 % interval | measured', lines)}\n\n{also}"


def ablation(rows: Rows, docs: str) -> str:
    """What techniques are worth."""
    lines = [
        (r["without"], f"{r['lost']:+.4f}", f"{r['low']:+.4f} .. {r['high']:+.4f}", r["p"])
        for r in rows["ablation"]["values"]
    ]
    told = source(rows["ablation"])
    return f"{table('without | bits per byte lost | 95 % interval | p', lines)}\n\n{told}"


def ideas(rows: Rows, docs: str) -> str:
    """The published ideas at equal bytes and seconds, and what each contributes."""
    models, parts = rows["ideas"]["values"], rows["idea-parts"]["values"]
    lines = []
    for r in models:
        tokens = f"{r['tokens'] / 1e6:.1f} million"
        told = (
            f"{p['without']} {p['lost']:+.4f} ({p['low']:+.4f} .. {p['high']:+.4f})"
            for p in parts
            if p["recipe"] == r["recipe"]
        )
        score = f"**{r['bpb']:.4f}** ± {r['sd']:.4f}"
        lines.append((f"`{r['recipe']}`", f"{r['parameters']:,}", tokens, score, "; ".join(told)))
    head = (
        "recipe | parameters | tokens | bits per byte | lost without, equal tokens (95 % interval)"
    )
    told = f" ([how]({docs}measured.md#the-published-ideas))" if docs else ""
    said = f"{rows['ideas']['what'][0].upper()}{rows['ideas']['what'][1:]}{told}:"
    below = "" if docs else "\n\n" + source(rows["ideas"], rows["idea-parts"])
    return f"{prose(said)}\n\n{table(head, lines)}{below}"


def all_rows(rows: Rows, docs: str) -> str:
    """Where every figure comes from."""
    lines = [
        (f"`{name}`", r["what"], r["date"], f"`{r['commit']}`", r["machine"], f"`{r['command']}`")
        for name, r in rows.items()
    ]
    return table("row | what | date | commit | machine | command", lines)


BLOCKS: dict[str, Block] = {
    "headline": headline,
    "start": start,
    "ships": ships,
    "install": install,
    "claims": claims,
    "bits-per-byte": bits_per_byte,
    "runs": runs,
    "packing-pocket": _packers("packing-pocket", "Loss against bytes, 2.5 M parameters."),
    "packing-27m": _packers("packing-27m", "Loss against bytes, 27 M parameters."),
    "packed-27m": packed,
    "evaluation": evaluation,
    "proof": proof,
    "training": training,
    "decoding": decoding,
    "looping": looping,
    "audit": audit,
    "ablation": ablation,
    "ideas": ideas,
    "all-rows": all_rows,
}
