"""The engine's thread: whatever happens, a request that was accepted is told its end."""

import threading
import time

import pytest
import torch

from ptune.errors import RequestTooLong
from ptune.generation.engine import Progress, Request, Token
from ptune.generation.sampling import Sampling
from ptune.serving.worker import QueueFull, Unavailable, Worker


class Scripted:
    """An engine that gives a token a step to each request, up to its `max_new_tokens`."""

    def __init__(self, max_slots=2):
        self.max_slots = max_slots
        self.queue, self.work = [], []
        self.cancelled = []
        self.fail = None
        self.hold = threading.Event()
        self.hold.set()

    busy = property(lambda self: bool(self.queue or self.work))
    waiting = property(lambda self: len(self.queue))
    running = property(lambda self: len(self.work))

    def check(self, request):
        if len(request.ids) > 9:
            raise RequestTooLong("too long")

    def add(self, request):
        self.queue.append(request)

    def cancel(self, request):
        self.cancelled.append(request)
        for place in (self.queue, self.work):
            if request in place:
                place.remove(request)

    def abort(self):
        dropped, self.work = self.work, []
        return dropped

    def step(self):
        self.hold.wait(5)
        time.sleep(0.001)
        while self.queue and len(self.work) < self.max_slots:
            self.work.append(self.queue.pop(0))
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        given = []
        for request in list(self.work):
            request.count += 1
            last = request.count == request.sampling.max_new_tokens
            given.append(Progress(request, [Token(7)], "length" if last else None))
            if last:
                self.work.remove(request)
        return given


@pytest.fixture
def engine():
    return Scripted()


@pytest.fixture
def worker(engine):
    worker = Worker(engine, max_queue=3)
    worker.start()
    yield worker
    engine.hold.set()
    worker.close(0)
    assert worker.join(5)


class Client:
    def __init__(self, tokens=3):
        self.request = Request([1, 2], Sampling(tokens))
        self.heard = []
        self.ended = threading.Event()

    def __call__(self, progress):
        assert not self.ended.is_set()
        self.heard.append(progress)
        if progress.finish or progress.error:
            self.ended.set()

    def end(self):
        assert self.ended.wait(5), "never told its end"
        return self.heard[-1]


def submitted(worker, count, tokens=3):
    clients = [Client(tokens) for _ in range(count)]
    for client in clients:
        worker.submit(client.request, client)
    return clients


def test_every_request_is_told_of_its_tokens(worker):
    for client in submitted(worker, 5):
        assert client.end().finish == "length"
        assert len(client.heard) == 3


def test_a_full_queue_refuses(worker, engine):
    engine.hold.clear()
    clients = submitted(worker, 5)
    with pytest.raises(QueueFull, match="2 requests are at work and 3 wait, as many as may; try"):
        submitted(worker, 1)
    engine.hold.set()
    assert all(client.end().finish for client in clients)
    assert submitted(worker, 1)[0].end().finish


def test_what_never_fits_is_refused(worker):
    with pytest.raises(RequestTooLong):
        worker.submit(Request([1] * 10, Sampling(1)), print)


def test_cancelled_hears_nothing_more(worker, engine):
    engine.hold.clear()
    gone, stays = submitted(worker, 2, tokens=50)
    worker.cancel(gone.request)
    worker.cancel(gone.request)
    engine.hold.set()
    assert stays.end().finish
    assert engine.cancelled == [gone.request] and not gone.ended.is_set()
    worker.cancel(stays.request)
    assert submitted(worker, 1)[0].end().finish


def test_out_of_memory_ends_those_at_work_and_goes_on(worker, engine):
    engine.hold.clear()
    clients = submitted(worker, 3, tokens=5)
    engine.fail = torch.OutOfMemoryError("CUDA out of memory")
    engine.hold.set()
    ends = [client.end() for client in clients]
    assert [end.finish for end in ends] == [None, None, "length"]
    assert str(ends[0].error) == (
        "memory is full on the server; use a smaller --cache-memory or --max-slots"
    )
    assert worker.refusal is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_tells_everybody_and_refuses(engine):
    worker = Worker(engine, 3)
    worker.start()
    engine.hold.clear()
    clients = submitted(worker, 4)
    engine.fail = KeyError("a bug")
    engine.hold.set()
    for client in clients:
        assert str(client.end().error) == "the engine has failed (KeyError)"
    assert worker.join(5)
    with pytest.raises(Unavailable, match="the engine has failed"):
        submitted(worker, 1)
    assert worker.refusal is not None


def test_closing_lets_answers_finish(worker, engine):
    engine.hold.clear()
    clients = submitted(worker, 4, tokens=20)
    worker.close(10)
    with pytest.raises(Unavailable, match="the server is shutting down"):
        submitted(worker, 1)
    engine.hold.set()
    assert [client.end().finish for client in clients] == ["length"] * 4
    assert worker.join(5)


def test_closing_ends_what_takes_longer(worker):
    clients = submitted(worker, 4, tokens=10**6)
    worker.close(0.05)
    assert worker.join(5)
    assert [str(client.end().error) for client in clients] == ["the server is shutting down"] * 4


def test_one_delivery_a_step(engine):
    deliveries = []
    worker = Worker(engine, 3, deliveries.append)
    engine.hold.clear()
    worker.start()
    submitted(worker, 2, tokens=4)
    worker.close(5)
    engine.hold.set()
    assert worker.join(5)
    assert sorted(map(len, deliveries)) in ([2] * 4, [1, 1, 2, 2, 2])
