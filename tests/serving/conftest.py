"""A server on a free port, with prefixes of its own, as `ptune serve` starts it."""

import contextlib
import threading
import time
from types import SimpleNamespace

import httpx2 as httpx
import pytest
import torch
import uvicorn

from ptune import load_model
from ptune.base.folder import find_base_model
from ptune.commands.serve import Server
from ptune.data.tokenizer import build_tokenizer
from ptune.generation.engine import Engine, Progress, Token
from ptune.models.prefix_encoder import PrefixEncoder, stack_prefix
from ptune.serving.answers import Answers
from ptune.serving.app import Serving, make_app
from ptune.serving.prefix_store import PrefixStore
from ptune.serving.worker import Worker


@pytest.fixture(scope="session")
def tiny():
    base = find_base_model("tiny")
    model = load_model("tiny", dtype="float32", device="cpu")
    return SimpleNamespace(base=base, model=model, tokenizer=build_tokenizer(base))


def make_store(tiny):
    store = PrefixStore(tiny.model, tiny.base, "tiny")
    for seed, length in enumerate((3, 20)):
        torch.manual_seed(seed)
        encoder = PrefixEncoder(tiny.model.base_model.prefix_shape, length).eval()
        store._host[f"p{length}"] = stack_prefix(encoder, torch.float32)
    return store


@contextlib.contextmanager
def serving(tiny, slots=4, queue=64, timeout=60.0, cache_tokens=None, engine=None, **options):
    """Yields the server's address, and what it is made of."""
    engine = engine or Engine(tiny.model, slots, cache_tokens=cache_tokens)
    worker = Worker(engine, queue)
    context = tiny.model.config.max_position_embeddings
    answers = Answers(
        worker, tiny.tokenizer, tiny.base.generation, make_store(tiny), context, timeout
    )
    app = make_app(answers, Serving("tiny", **{"grace": 5.0} | options))
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False)
    server = Server(config, worker, options.get("grace", 5.0))
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    found = SimpleNamespace(url=f"http://127.0.0.1:{port}", worker=worker, server=server, app=app)
    found.http = httpx.Client(base_url=found.url, timeout=30)
    found.thread = thread
    yield found
    found.http.close()
    if thread.is_alive():
        server.handle_exit(15, None)
    thread.join(20)
    assert not thread.is_alive(), "the server hangs"


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny) as found:
        yield found


class Scripted:
    """An engine that answers every request with the same text, or ends one with an error."""

    def __init__(self, tokenizer, text, fails=None):
        self.ids = tokenizer.encode_text(text)
        self.fails = fails  # what the second request ends with
        self.max_slots, self.waiting = 4, 0
        self.asked, self.left = [], {}

    @property
    def running(self):
        return len(self.left)

    @property
    def busy(self):
        return bool(self.left)

    def check(self, request):
        pass

    def add(self, request):
        self.asked.append(request)
        self.left[request] = list(self.ids)

    def cancel(self, request):
        self.left.pop(request, None)

    def step(self):
        time.sleep(0.001)
        return [self._go_on(request, ids) for request, ids in list(self.left.items())]

    def _go_on(self, request, ids):
        if self.fails and request in self.asked[1:2]:
            del self.left[request]
            return Progress(request, error=self.fails)
        if ids:
            return Progress(request, [Token(ids.pop(0))])
        del self.left[request]
        return Progress(request, finish="stop")


def idle(server):
    """Wait until no slot is in use."""
    for _ in range(500):
        if server.worker.running == server.worker.waiting == 0:
            return
        time.sleep(0.01)
    raise AssertionError("a slot is never freed")
