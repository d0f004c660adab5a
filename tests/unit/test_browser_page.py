"""The page: one file of text with everything in it, and a tokenizer that equals Python's."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import shutil
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

import niblick
from niblick.browser import wasm
from niblick.browser.page import card_rows, export_page, marked
from niblick.browser.text import to_text
from niblick.browser.tokenizer import describe_tokenizer
from niblick.data.corpus import load_corpus
from niblick.errors import NiblickError
from niblick.text import spmodel
from niblick.text.learning import train_tokenizer
from niblick.text.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer

PAGE = Path(niblick.__file__).parent / "browser" / "page"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="there is no node to run JavaScript")


@pytest.fixture(scope="module")
def page() -> str:
    """The page of the shipped model."""
    return export_page(niblick.load("pocket")).decode()


def run_node(tmp_path: Path, script: str, given: object) -> object:
    """What `script` gives, a function of `given`, after the page's scripts but the last."""
    parts = [(PAGE / name).read_text() for name in ("tokenizer.js", "engine.js")]
    end = (
        'const given = JSON.parse(require("fs").readFileSync(0, "utf8"));'
        f"(async () => {{ {script} }})().then((x) => console.log(JSON.stringify(x)));"
    )
    file = tmp_path / "script.js"
    file.write_text("\n".join([*parts, end]))
    done = subprocess.run(
        [str(NODE), str(file)], input=json.dumps(given), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_module_was_compiled_from_the_sources_that_are_here() -> None:
    recorded = wasm.recorded()
    assert recorded["sources_sha256"] == wasm.sources_sha256(), "run `make wasm`"
    assert recorded["wasm_sha256"] == hashlib.sha256(wasm.compiled()).hexdigest()


def test_the_page_of_a_model_of_a_megabyte_is_small_and_whole(page: str) -> None:
    assert len(page.encode()) <= 1_600_000
    shown = re.sub(
        r'<script type="application/octet-stream".*?</script>', "", page, flags=re.DOTALL
    )
    assert not re.search(r"(src|href)=|https?:|@import|url\(|fetch\(|\{[a-z]+\}<", shown)
    assert "default-src 'none'" in page
    assert page.count("</script>") == 2


def test_the_card_says_what_is_in_the_file_and_escapes_it(page: str) -> None:
    assert niblick.load("pocket").sha256 in page
    card = {"packed_bpb": 1.5, "split": "<script>", "mode": "streaming"}
    rows = card_rows(niblick.load("pocket"), card)
    assert "<dt>Score</dt><dd>1.5000 bits per byte (&lt;script&gt;, streaming)</dd>" in marked(rows)


@given(st.binary(max_size=300))
def test_no_character_of_the_text_has_a_meaning_in_html(data: bytes) -> None:
    text = to_text(data)
    assert not set(text) & set("\0\n\r<")
    assert len(text) == -(-8 * len(data) // 7)


@needs_node
def test_the_page_reads_the_bytes_that_were_written(tmp_path: Path) -> None:
    generator = random.Random(0)
    given = [generator.randbytes(size) for size in (0, 1, 6, 7, 8, 4097)]
    given.append(bytes(range(256)))
    found = run_node(
        tmp_path,
        "return given.map(([text, count]) => Array.from(fromText(text, count)));",
        [[to_text(data), len(data)] for data in given],
    )
    assert found == [list(data) for data in given]


def _trained(kind: str, **options: object) -> Tokenizer:
    """A tokenizer as other tools train them: normalising, with few characters known."""
    lines = ["The river runs down to the sea, and 12 boats of Ａｌｉｃｅ follow.", "ﬁne ½ Ⅳ"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return SentencePieceTokenizer(spmodel.parse(model.getvalue()))


TOKENIZERS = {
    "bytes": lambda: load_tokenizer("bytes"),
    "pocket": lambda: niblick.load("pocket").tokenizer,
    "case": lambda: train_tokenizer(
        load_corpus("wiki-vital").splits["validation"][:60], vocab_size=700, case=True
    ),
    "case-unigram": lambda: train_tokenizer(
        load_corpus("wiki-vital").splits["validation"][:60], vocab_size=700, case=True, unigram=True
    ),
    "fineweb": lambda: load_tokenizer("fineweb-1024"),
    "bpe": lambda: _trained("bpe", vocab_size=80),
    "bpe-own": lambda: _trained(
        "bpe", vocab_size=340, byte_fallback=True, user_defined_symbols=["riv", "½", "<sep>"]
    ),
    "unigram": lambda: _trained("unigram", vocab_size=70),
    "unigram-own": lambda: _trained(
        "unigram", vocab_size=340, byte_fallback=True, user_defined_symbols=["riv", "<sep>"]
    ),
    "unigram-exact": lambda: _trained(
        "unigram",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    ),
}
_UNICODE = [
    "",
    " ",
    "  two  spaces ",
    "\u2581 marked \u2581\u2581",
    "<s><unk><0x41><sep>riv",
    "ﬁ ½ Ａｌｉｃｅ ㌔ e\u0301 \u1e9b\u0323",
    "naïve 東京 मानक हिन्दी العربية \U0001f468\u200d\U0001f469\u200d\U0001f467 \U00010348",
    "\ufefftab\tline\r\nnull\0 nbsp\u00a0 zero\u200bwidth \u3000wide",
    "\ufffd \ue000 \U0010ffff \x7f \x85",
    "<unused0> <unused1><unused",
    "The USA's McDonald, iPhone NASAs\nA\tB École ÉCOLE \u0130 \u212aB \ufdd0A\ufdd1B\u2581C",
]


@needs_node
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pages_tokenizer_is_the_models(name: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[name]()
    generator = random.Random(name)
    ranges = [(0, 0x7F), (0, 0x24F), (0x300, 0x2FFF), (0x3000, 0xD7FF), (0xF900, 0x10FFFF)]
    drawn = [
        "".join(chr(generator.randint(*generator.choice(ranges))) for _ in range(40))
        for _ in range(50)
    ]
    texts = [*_UNICODE, *drawn, *load_corpus("wiki-vital").splits["validation"]]
    ids = [tokenizer.encode(text).tolist() for text in texts]
    broken = [generator.choices(range(tokenizer.vocab_size), k=30) for _ in range(50)]
    told, characters = describe_tokenizer(tokenizer)
    found = run_node(
        tmp_path,
        """const made = new Tokenizer(given.told, Buffer.from(given.characters, "base64"));
        const decode = (ids) => {
            const stream = made.stream();
            return ids.map((id) => stream.push(id)).join("") + stream.flush();
        };
        return [given.texts.map((text) => made.encode(text)), given.ids.map(decode)];""",
        {
            "told": told,
            "characters": b64encode(characters).decode(),
            "texts": texts,
            "ids": ids + broken,
        },
    )
    for text, own, other in zip(texts, ids, found[0], strict=True):
        assert other == own, text[:200]
    assert found[1] == [tokenizer.decode(each) for each in ids + broken]


@needs_node
def test_the_pages_scripts_write_what_the_model_writes(page: str, tmp_path: Path) -> None:
    packed = re.search(r'data-bytes="(\d+)">(.*?)</script>', page, flags=re.DOTALL)
    assert packed is not None
    found = run_node(
        tmp_path,
        """const element = {textContent: given.text, dataset: {bytes: given.bytes}, remove() {}};
        const model = await Model.open(await unpack(element)), texts = [];
        for (const [prompt, settings] of given.asked) {
            const ids = [model.tokenizer.bos, ...model.tokenizer.encode(prompt)];
            const stream = model.tokenizer.stream(ids);
            let text = "";
            model.reset();
            model.read(ids);
            for (let i = 0; i < 40; i++) {
                const token = model.choose(settings, i);
                if (token === model.tokenizer.bos) break;
                text += stream.push(token);
                model.read([token]);
            }
            texts.push(text + stream.flush());
        }
        return texts;""",
        {
            "text": packed[2],
            "bytes": packed[1],
            "asked": [
                ["The river", {"temperature": 0, "topK": 0, "topP": 1, "seed": 0}],
                ["", {"temperature": 0.8, "topK": 0, "topP": 1, "seed": 7}],
                ["É", {"temperature": 1.2, "topK": 40, "topP": 0.9, "seed": 2**53 - 1}],
            ],
        },
    )
    model = niblick.load("pocket")
    assert found == [
        model.generate("The river", max_tokens=40, temperature=0),
        model.generate("", max_tokens=40, seed=7),
        model.generate("É", max_tokens=40, temperature=1.2, top_k=40, top_p=0.9, seed=2**53 - 1),
    ]


def test_a_tokenizer_that_the_page_cannot_compute_is_refused() -> None:
    with pytest.raises(NiblickError, match="accepted are bytes and SentencePiece models of kind"):
        describe_tokenizer(_trained("char", vocab_size=40))
