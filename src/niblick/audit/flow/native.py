"""Functions of C sources that a submission compiles: which of their outputs depend on a property of
the current token.

A light reading, no compiler: text becomes tokens, tokens become statements, and each loop over
`tokens[i]` is followed once. An output is gated when what is written to `out[i]` does not hold the
token itself but stands under a condition that looks a property of that token up, so that whether a
hint exists tells something about the token it is for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(r"[A-Za-z_]\w*|\d[\w.]*|->|<<=|>>=|[-+*/%&|^=!<>]=|&&|\|\||<<|>>|\+\+|--|\S")
_NOISE = re.compile(
    r"/\*.*?\*/|//[^\n]*|^\s*#[^\n]*(?:\\\n[^\n]*)*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'",
    re.DOTALL | re.MULTILINE,
)
_ASSIGN = frozenset({"=", "+=", "-=", "|=", "&=", "^=", "*=", "/=", "%=", "<<=", ">>="})
_LEAVES = frozenset({"continue", "break", "return", "goto"})
_ONE = frozenset({"1", "1.", "1.0", "1.f", "1.0f"})
_MAX_TEXT = 400_000

Words = list[str]


@dataclass
class Statement:
    """`kind` is "plain", "if", "loop" or "block"; `words` its own words (an if's condition, a
    loop's head).
    """

    kind: str
    words: Words
    body: list[Statement] = field(default_factory=list)
    other: list[Statement] = field(default_factory=list)


@dataclass
class Facts:
    """What is known inside one turn of a loop over tokens."""

    index: str
    outputs: dict[str, int]
    current: set[str] = field(default_factory=set)
    telling: set[str] = field(default_factory=set)
    gated: set[int] = field(default_factory=set)


def gated_outputs(text: str) -> dict[str, frozenset[int]]:
    """Function name -> positions of the pointer parameters whose entries are gated by the token
    they are for.
    """
    words = words_of(_NOISE.sub(" ", text[:_MAX_TEXT]))
    found: dict[str, frozenset[int]] = {}
    for name, parameters, body in _functions(words):
        pointers = {
            words[-1]: i
            for i, words in enumerate(parameters)
            if words and ("*" in words or "]" in words)
        }
        gated: set[int] = set()
        for loop in _loops(_statements(body)[0]):
            gated |= _turn(loop, pointers)
        if gated:
            found[name] = frozenset(gated)
    return found


def spread(text: str) -> set[str]:
    """Functions of a source that counts bytes and mixes shares with weights that add up to one,
    which give each token's number in equal parts to what they divide it by, its bytes.
    """
    words = words_of(_NOISE.sub(" ", text[:_MAX_TEXT]))
    triples = list(zip(words, words[1:], words[2:], strict=False))
    used = Counter(words)
    weighs = any(a in _ONE and b == "-" and used[c] > 1 for a, b, c in triples)
    counts = any((a == "++" and c in {"[", "->"}) or _adds_one(a, b, c) for a, b, c in triples)
    if not (weighs and counts and used["log"] and used["256"] + used["256.0"]):
        return set()
    found = set()
    for name, parameters, body in _functions(words):
        given = {each[-1] for each in parameters if "*" in each and {"double", "float"} & {*each}}
        parts = zip(*(body[i:] for i in range(5)), strict=False)
        if any(a in given and (b, d, e) == ("[", "]", "/") for a, b, _, d, e in parts):
            found.add(name)
    return found


def _adds_one(holder: str, sign: str, number: str) -> bool:
    """Whether an entry is followed by what counts it up."""
    return holder == "]" and (sign == "++" or (sign, number) == ("+=", "1"))


def words_of(text: str) -> Words:
    """The words of a text of code."""
    return _TOKEN.findall(text)


def _functions(words: Words) -> Iterator[tuple[str, list[Words], Words]]:
    """(name, parameters, body) of every function defined at the top level."""
    at = 0
    while at < len(words):
        if words[at] == "{":
            at = _close(words, at)
        elif words[at] == "(" and at and words[at - 1].isidentifier():
            end = _close(words, at)
            if end + 1 < len(words) and words[end + 1] == "{":
                last = _close(words, end + 1)
                yield words[at - 1], _split(words[at + 1 : end]), words[end + 2 : last]
                at = last
            else:
                at = end
        at += 1


def _close(words: Words, at: int) -> int:
    """The place of the bracket that closes the one at `at`."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    opening, closing = words[at], pairs[words[at]]
    depth = 0
    for i in range(at, len(words)):
        depth += (words[i] == opening) - (words[i] == closing)
        if depth == 0:
            return i
    return len(words) - 1


def _split(words: Words) -> list[Words]:
    parts: list[Words] = [[]]
    depth = 0
    for word in words:
        depth += (word in "([") - (word in ")]")
        if word == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(word)
    return [[w for w in part if w not in {"[", "]"}] if "*" in part else part for part in parts]


def _statements(words: Words, at: int = 0, single: bool = False) -> tuple[list[Statement], int]:
    """The statements from `at` on (just one if `single`), and where they end."""
    out: list[Statement] = []
    while at < len(words) and not (single and out):
        word = words[at]
        if word == "{":
            end = _close(words, at)
            out.append(Statement("block", [], _statements(words[at + 1 : end])[0]))
            at = end + 1
        elif (
            word in {"if", "for", "while", "switch"}
            and at + 1 < len(words)
            and words[at + 1] == "("
        ):
            end = _close(words, at + 1)
            body, after = _statements(words, end + 1, single=True)
            other: list[Statement] = []
            if word == "if" and after < len(words) and words[after] == "else":
                other, after = _statements(words, after + 1, single=True)
            out.append(
                Statement(
                    "if" if word in {"if", "switch"} else "loop", words[at + 2 : end], body, other
                )
            )
            at = after
        else:
            end = at
            while end < len(words) and words[end] != ";":
                end = _close(words, end) + 1 if words[end] in "([{" else end + 1
            if end > at:
                out.append(Statement("plain", words[at:end]))
            at = end + 1
    return out, at


def _loops(statements: list[Statement]) -> Iterator[Statement]:
    for statement in statements:
        if statement.kind == "loop":
            yield statement
        yield from _loops(statement.body)
        yield from _loops(statement.other)


def _turn(loop: Statement, pointers: dict[str, int]) -> set[int]:
    """Outputs gated in one turn of a loop; the index is the variable its head increases."""
    head = loop.words
    steps = [
        head[i - 1] if head[i - 1].isidentifier() else head[i + 1]
        for i in range(1, len(head) - 1)
        if head[i] in {"++", "+="}
    ]
    steps += [head[-2]] if len(head) > 1 and head[-1] == "++" else []
    index = next((s for s in steps if s.isidentifier()), None)
    if index is None:
        return set()
    facts = Facts(index, pointers)
    follow(loop.body, facts, False)
    return facts.gated


def follow(statements: list[Statement], facts: Facts, gate: bool) -> bool:
    """Follows statements in order; whether what comes after them is gated too."""
    for statement in statements:
        if statement.kind == "plain":
            _plain(statement.words, facts, gate)
        elif statement.kind == "if":
            inner = gate or _tells(statement.words, facts)
            follow(statement.body, facts, inner)
            follow(statement.other, facts, inner)
            gate = gate or (inner and (_leaves(statement.body) or _leaves(statement.other)))
        else:
            gate = (
                follow(
                    statement.body,
                    facts,
                    gate or (statement.kind == "loop" and _tells(statement.words, facts)),
                )
                or gate
            )
    return gate


def _leaves(statements: list[Statement]) -> bool:
    return any(
        (
            s.words[:1] and s.words[0] in _LEAVES
            if s.kind == "plain"
            else s.kind == "block" and _leaves(s.body)
        )
        for s in statements
    )


def _plain(words: Words, facts: Facts, gate: bool) -> None:
    at = next((i for i, word in enumerate(words) if word in _ASSIGN), None)
    if at is None or at == 0:
        return
    left, right = words[:at], words[at + 1 :]
    if left[-1] == "]":
        name = left[0]
        own = name in facts.outputs and facts.index in left[1:] and "->" not in left
        if own and gate and any(w.isidentifier() for w in right) and not _holds(right, facts):
            facts.gated.add(facts.outputs[name])
        return
    name = left[-1]
    if "->" in left or "." in left or not name.isidentifier():
        return
    told, held = _tells(right, facts) or gate, _holds(right, facts)
    facts.telling.discard(name)
    facts.current.discard(name)
    if told:
        facts.telling.add(name)
    if held:
        facts.current.add(name)


def _holds(words: Words, facts: Facts) -> bool:
    """Whether an expression holds the current token or what is made from it, or an input read at
    the loop's index.
    """
    return any(word in facts.current for word in words) or _reads_input(words, facts)


def _reads_input(words: Words, facts: Facts) -> bool:
    return any(
        words[i] in facts.outputs
        and words[i + 1] == "["
        and words[i + 2 : i + 4] == [facts.index, "]"]
        for i in range(len(words) - 3)
    )


def _tells(words: Words, facts: Facts) -> bool:
    """Whether an expression depends on a property of the current token: one looked up or computed
    by a call.
    """
    if any(word in facts.telling for word in words):
        return True
    for i, word in enumerate(words):
        if (
            word in {"[", "("}
            and i
            and words[i - 1].isidentifier()
            and words[i - 1] not in {"if", "sizeof", "return"}
        ):
            inner = words[i + 1 : _close(words, i)]
            if _holds(inner, facts):
                return True
    return False
