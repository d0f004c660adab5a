"""The batcher: slots are given in turn, short prompts pass by long ones, failures are told."""

from __future__ import annotations

import queue

import numpy as np
import pytest

from engines import plain
from niblick.engine import GREEDY
from niblick.errors import NiblickError
from niblick.model import LanguageModel
from niblick.recipe import load_recipe
from niblick.serve.batcher import Batcher, FullError, Job
from served import SMALL


@pytest.fixture(scope="module")
def model():
    return LanguageModel(load_recipe("token-shift", SMALL).model, seed=3).eval()


def job(length=3, tokens=4):
    return Job(ids=np.arange(length) + 1, sampling=GREEDY, max_tokens=tokens, vocab=260)


def finished(engine, requests, *, limit=100, fails=False):
    """The requests' jobs in the order in which they end."""
    rounds: queue.Queue = queue.Queue()
    batcher = Batcher(engine, rounds.put, queue=limit)
    for jobs in requests:
        batcher.submit(jobs)
    batcher.start()
    ended = []
    while len(ended) < sum(map(len, requests)):
        ended += [p for p in rounds.get(timeout=30) if p.finish is not None]
    if fails:
        with pytest.raises(NiblickError, match="the engine failed"):
            batcher.submit([job()])
    batcher.stop()
    return ended


def test_a_request_of_many_texts_does_not_keep_others_waiting(model):
    many, one = [job() for _ in range(30)], job()
    order = [p.job for p in finished(plain(model, slots=2), [many, [one]])]
    assert order.index(one) < 4


def test_a_short_prompt_passes_by_a_long_one_and_both_end(model):
    long, short = job(tokens=1), job(tokens=1)
    long.ids = np.resize(long.ids, 4000)
    order = [p.job for p in finished(plain(model, slots=2), [[long], [short]])]
    assert order == [short, long]


def test_a_queue_without_room_takes_what_fits_free_slots(model):
    batcher = Batcher(plain(model, slots=2), lambda found: None, queue=1)
    batcher.submit([job(), job()])
    batcher.submit([job()])
    with pytest.raises(FullError, match="try again in"):
        batcher.submit([job()])


def test_an_engine_that_fails_ends_every_text_and_takes_no_more(model):
    engine = plain(model, slots=1)
    engine.extend = lambda rows, steps: 1 / 0
    ended = finished(engine, [[job()], [job(), job()]], fails=True)
    assert {p.finish for p in ended} == {"failed"}
