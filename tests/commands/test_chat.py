"""Conversations: history, prefix, commands, pipes, and a terminal that is fed keys."""

import io
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from transformers import pipeline

import ptune
from ptune.base.folder import find_base_model
from ptune.checkpoint.base import resolve_base
from ptune.checkpoint.metadata import CheckpointConfig
from ptune.checkpoint.prefix import attach_prefix
from ptune.commands.chat.run import run_chat
from ptune.commands.chat.slash_commands import run_command
from ptune.config.settings import ChatSettings
from ptune.data.examples import conversation
from ptune.data.prompt import Conversation, Lengths, render
from ptune.data.records import read_records
from ptune.errors import CheckpointError, ConfigError, DataError
from ptune.generation.chat_session import ChatSession
from ptune.generation.generate import generate_one
from ptune.generation.sampling import Sampling
from ptune.models.prefix_encoder import PrefixEncoder

MODEL = "tiny"
GENERATION = find_base_model(MODEL).generation
CONTEXT = "这条裤子是黑色的羊毛裤。"
CTRL_C, CTRL_D, UP, ALT_ENTER = "\x03", "\x04", "\x1b[A", "\x1b\r"


@pytest.fixture(scope="module")
def model():
    return ptune.load_model(MODEL, device="cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return ptune.load_tokenizer(MODEL)


@pytest.fixture
def session(model, tokenizer):
    return ChatSession(model, tokenizer, GENERATION, Sampling(max_new_tokens=8))


@pytest.fixture
def prompts(monkeypatch):
    """The ids of every prompt that is answered."""
    seen = []

    def record(model, prompt, *arguments):
        seen.append(prompt)
        return generate_one(model, prompt, *arguments)

    monkeypatch.setattr("ptune.generation.streaming.generate_one", record)
    return seen


@pytest.fixture
def prefix(model):
    """A prefix strong enough to change every answer."""
    torch.manual_seed(0)
    encoder = PrefixEncoder(model.base_model.prefix_shape, 4, dropout=0.0)
    torch.nn.init.normal_(encoder.embedding.weight, std=5)
    attach_prefix(model, encoder)
    yield encoder
    model.base_model.prefix_encoder = None


@pytest.fixture
def chat(model, monkeypatch, capsys):
    """Run `ptune chat` on piped lines; returns what went to stdout and to stderr."""
    monkeypatch.setattr("ptune.commands.chat.run.load_model", lambda *arguments: model)

    def run(*lines, **settings):
        settings = {"model": MODEL, "max_new_tokens": 8, "do_sample": False, **settings}
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        run_chat(ChatSettings(**settings))
        return capsys.readouterr()

    return run


def ask(session, prompt):
    return "".join(session.reply(prompt))


def prompt_ids(tokenizer, prompt, history=(), system="", context=""):
    conversation = Conversation.from_turns(prompt, None, history, system, context)
    return render(tokenizer, GENERATION, conversation, Lengths(1_000_000, 8)).input_ids


def test_earlier_turns_are_in_the_prompt(session, tokenizer, prompts):
    session.system = "简短回答"
    first = ask(session, "你好")
    ask(session, "再见")
    assert session.history[0] == ("你好", first)
    assert prompts[0] == prompt_ids(tokenizer, "你好", (), "简短回答")
    assert prompts[1] == prompt_ids(tokenizer, "再见", [("你好", first)], "简短回答")


def test_history_is_cut_by_whole_turns(session, tokenizer, prompts, model):
    session.history = [(f"问题{i}，" * 60, f"回答{i}。" * 60) for i in range(20)]
    before = list(session.history)
    ask(session, "你好")
    kept = next(k for k in range(20) if prompts[0] == prompt_ids(tokenizer, "你好", before[k:]))
    assert kept > 0
    assert len(prompts[0]) + 8 <= model.config.max_position_embeddings + 1
    assert len(session.notices) == 1
    assert f"the first {kept} of 20" in session.notices[0]
    assert session.history[:20] == before
    ask(session, "你好")
    assert session.notices == []  # said once


def test_question_longer_than_the_context(session, prompts, model):
    ask(session, "很长" * 3000)
    assert len(prompts[0]) <= model.config.max_position_embeddings
    assert "its end is cut" in session.notices[0]


def test_answer_that_leaves_no_room(model, tokenizer):
    with pytest.raises(ConfigError, match="max_new_tokens 99999 leaves 0"):
        ChatSession(model, tokenizer, GENERATION, Sampling(max_new_tokens=99999))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 2040}, "^max_new_tokens 2040 leaves 8 tokens for the question in the"),
        ({"device": "meta"}, "^device 'meta' is not supported; use cpu, cuda, cuda:N or mps$"),
    ],
)
def test_what_cannot_work_is_said_before_the_weights_are_fetched(settings, message, monkeypatch):
    def find(name, weights, *formats):
        assert not weights
        return find_base_model(name, False, *formats)

    monkeypatch.setattr("ptune.checkpoint.base.find_base_model", find)
    with pytest.raises(ConfigError, match=message):
        run_chat(ChatSettings(model=MODEL, **settings))


def test_prefix_changes_the_answer(model, tokenizer, session, prefix):
    bare = ask(session, "你好")  # this session was made before there was a prefix
    with_prefix = ChatSession(model, tokenizer, GENERATION, Sampling(max_new_tokens=8))
    first = ask(with_prefix, "你好")
    assert first != bare
    with_prefix.clear()
    assert run_command(with_prefix, "/prefix off").startswith("the prefix of 4 tokens is off")
    assert ask(with_prefix, "你好") == bare
    assert model.base_model.prefix_enabled
    with_prefix.clear()
    assert run_command(with_prefix, "/prefix on") == "the prefix of 4 tokens is on"
    assert ask(with_prefix, "你好") == first


def test_closing_a_reply_keeps_what_was_said(session, model, prefix):
    session.prefix_on = False
    pieces = session.reply("你好")
    said = next(pieces)
    assert not model.base_model.prefix_enabled
    pieces.close()
    assert session.history == [("你好", said)]
    assert model.base_model.prefix_enabled


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("你\ud83d好", r"half a character, '\\ud83d', at character 2"),
        ("caf\udce9", "the byte 0xe9 at character 4"),
    ],
)
def test_question_that_is_no_text(session, prompt, what):
    with pytest.raises(DataError, match=rf"^the question holds {what}, which is not UTF-8; ask it"):
        ask(session, prompt)
    assert session.history == []
    assert ask(session, "你好") and len(session.history) == 1


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_pipeline_and_template_ask_and_answer_as_chat(generation, toy_model, monkeypatch):
    folder = toy_model(generation)
    model, tokenizer = ptune.load_model(folder, device="cpu"), ptune.load_tokenizer(folder)
    seen = []
    monkeypatch.setattr(
        "ptune.generation.streaming.generate_one",
        lambda model, prompt, *rest: seen.append(prompt) or generate_one(model, prompt, *rest),
    )
    sampling = Sampling(max_new_tokens=6, do_sample=False)
    session = ChatSession(model, tokenizer, tokenizer.generation, sampling, "请用中文")
    answers = [ask(session, text) for text in ("类型#裙", "颜色#黑色")]
    messages = [{"role": "system", "content": "请用中文"}, {"role": "user", "content": "类型#裙"}]
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    for expected, prompt, then in zip(answers, seen, ("颜色#黑色", ""), strict=True):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == prompt
        (found,) = answer(messages, max_new_tokens=6, do_sample=False)
        said = found["generated_text"][-1]
        # Chat leaves half a character at the end of a cut answer out.
        assert (said["role"], said["content"].strip().rstrip("\ufffd")) == ("assistant", expected)
        messages = [*messages, {**said, "content": expected}, {"role": "user", "content": then}]


def test_save_can_be_trained_on(session, tmp_path):
    session.history = [("问", "答"), ("二\n行", "🏽 \u2028"), ("三", "末")]
    file = tmp_path / "对话.jsonl"
    assert run_command(session, f"/save  {file} ") == f"saved to {file}"
    history = [["问", "答"], ["二\n行", "🏽 \u2028"]]
    row = read_records([file]).records[0]
    assert conversation(row) == Conversation.from_turns("三", "末", history)
    assert json.loads(file.read_text("utf-8"))["prompt"] == "三"
    with pytest.raises(DataError, match="exists already; name a new file"):
        run_command(session, f"/save {file}")
    with pytest.raises(DataError, match="cannot be written"):
        run_command(session, f"/save {tmp_path}/missing/file")
    for system in ("简短", " "):
        session.system = system
        other = tmp_path / f"{system}.jsonl"
        assert run_command(session, f"/save {other}") == f"saved to {other}"
        row = read_records([other]).records[0]
        assert conversation(row) == Conversation.from_turns("三", "末", history, system)


def test_context_is_of_the_question_at_hand(session, tokenizer, prompts, tmp_path):
    file = tmp_path / "about.txt"
    file.write_text(CONTEXT, encoding="utf-8")
    assert run_command(session, "/context") == "questions are about no text"
    said = f"questions are about a text of {len(CONTEXT)} characters"
    assert run_command(session, f"/context  {file} ") == said == run_command(session, "/context")
    first = ask(session, "什么颜色")
    second = ask(session, "什么材质")
    assert session.history == [("什么颜色", first), ("什么材质", second)]
    assert prompts[0] == prompt_ids(tokenizer, "什么颜色", context=CONTEXT)
    history = [("什么颜色", first)]
    assert prompts[1] == prompt_ids(tokenizer, "什么材质", history, context=CONTEXT)
    # Saved is the context that the last question had, whatever the next one has.
    assert run_command(session, "/context off") == "questions are about no text"
    run_command(session, f"/save {tmp_path / 'with.jsonl'}")
    row = read_records([tmp_path / "with.jsonl"]).records[0]
    saved = Conversation.from_turns("什么材质", second, history, context=CONTEXT)
    assert conversation(row) == saved
    third = ask(session, "你好")
    assert prompts[2] == prompt_ids(tokenizer, "你好", session.history[:2])
    run_command(session, f"/save {tmp_path / 'without.jsonl'}")
    row = read_records([tmp_path / "without.jsonl"]).records[0]
    assert conversation(row) == Conversation.from_turns("你好", third, session.history[:2])
    with pytest.raises(DataError, match=r"^context file .*none does not exist; check the path$"):
        run_command(session, f"/context {tmp_path / 'none'}")
    assert session.context == ""
    run_command(session, f"/context {file}")
    run_command(session, "/clear")
    assert (session.history, session.context) == ([], CONTEXT)


def test_context_expands_the_home_folder_and_tells_its_encoding(session, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a b.txt").write_text(CONTEXT * 20, encoding="gb18030")
    said = run_command(session, "/context ~/a b.txt").split("\n")
    assert "is not UTF-8 and was read as GB18030 (GBK)" in said[0]
    assert said[1] == f"questions are about a text of {len(CONTEXT) * 20} characters"


def test_context_that_does_not_fit(session, tokenizer, prompts):
    ask(session, "你好")
    session.set_context(CONTEXT * 500)
    ask(session, "什么颜色")
    drop, cut = session.notices
    assert drop.startswith("the oldest turns no longer fit the context")
    expected = (
        r"the text that the question is about is longer than fits: of its [\d,]+ tokens the first "
        rf"[\d,]+ fit, ([\d,]+) of {len(CONTEXT) * 500:,} characters"
    )
    kept = int(re.fullmatch(expected, cut)[1].replace(",", ""))
    assert prompts[1] == prompt_ids(tokenizer, "什么颜色", context=(CONTEXT * 500)[:kept])
    longer = prompt_ids(tokenizer, "什么颜色", context=(CONTEXT * 500)[: kept + 2])
    assert len(longer) > len(prompts[1]) == session._room + 1  # ChatGLM-6B has one more
    ask(session, "什么颜色")
    assert session.notices == []  # said once
    session.set_context(CONTEXT * 501)
    ask(session, "什么颜色")
    assert len(session.notices) == 1


def test_save_expands_the_home_folder(session, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    session.history = [("问", "答")]
    run_command(session, "/save ~/a b.jsonl")
    assert (tmp_path / "a b.jsonl").is_file()


def test_commands_through_pipes(chat, session, tmp_path):
    first = ask(session, "你好")
    second = ask(session, "再见")
    file = tmp_path / "chat.jsonl"
    lines = ["/save x", "你好", "/history", "", "再见", f"/save {file}", f"/save {file}", "/save"]
    lines += ["/prefix", "/prefix on", "/prefix off", "/prefix x", "/clear", "/history", "/help"]
    out, err = chat(*lines, "/what", "/exit", "你好")
    assert out == f"{first}\n{second}\n"
    notices = err.splitlines()
    assert notices[0] == f"{MODEL}, no prefix, float32 on cpu; /help for commands"
    assert notices[1].startswith("error: nothing was said yet that x could hold")
    assert f"> 你好\n{first}\n" in err
    assert f"saved to {file}\nerror: {file} exists already" in err
    assert "error: /save needs a file" in err
    assert "there is no prefix" in err
    assert "error: this model has no prefix; start with --checkpoint" in err
    assert "error: /prefix x is not known; use /prefix on or /prefix off" in err
    assert "the conversation is forgotten\nnothing was said yet\n/clear " in err
    assert "\n/context FILE  ask about the text in a file, /context off about none\n" in err
    assert notices[-1] == "error: /what is no command; /help lists them"
    assert json.loads(file.read_text("utf-8"))["history"] == [["你好", first]]


def test_pipes_end_with_the_input(chat, session):
    out, err = chat("\ufeff你好")
    assert out == ask(session, "你好") + "\n"
    assert err.count("\n") == 1


def test_blank_before_a_slash_asks(chat, prompts, tokenizer):
    chat(" /etc")
    assert prompts == [prompt_ids(tokenizer, "/etc")]


def test_same_seed_same_answer(chat):
    settings = {"do_sample": True, "temperature": 5.0, "top_p": 1.0}
    outs = [chat("你好", **settings, seed=seed).out for seed in (1, 1, 2)]
    assert outs[0] == outs[1] != outs[2]


def test_empty_answer_is_not_kept(chat, monkeypatch):
    monkeypatch.setattr("ptune.generation.streaming.generate_one", lambda *arguments: iter(()))
    out, err = chat("你好", "/history")
    assert out == "\n"
    assert err.endswith("the answer is empty, and the turn is not kept\nnothing was said yet\n")


def test_no_memory_is_a_message(chat, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ptune.generation.streaming.generate_one", fail)
    said = chat("你好").err
    assert "error: memory is full (CUDA out of memory); use /clear, or start with" in said


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C comes after the fourth token of every answer, which has no end of its own."""

    def run(model, prompt, sampling, stopped):
        monkeypatch.setattr(model.generation_config, "eos_token_id", [])
        for count, token in enumerate(generate_one(model, prompt, Sampling(100), stopped), 1):
            yield token
            if count == 4:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)  # until Python has seen it

    monkeypatch.setattr("ptune.generation.streaming.generate_one", run)


def test_ctrl_c_stops_the_answer_not_the_program(chat, interrupted, tokenizer, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    out, err = chat("你好", "/history", "/prefix")
    answer = out.removesuffix("\n")
    assert 0 < len(tokenizer.encode_text(answer)) < 20
    assert f"(stopped; once more leaves)\n> 你好\n{answer}\n" in err
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        chat("你好", "再见", "/prefix")


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_bytes_of_a_pipe_that_are_no_text(chat, model, monkeypatch, capsys):
    """Are refused line by line; what comes after them is answered."""
    said = "caf\xe9\n你好\n\xff\xfe\n".replace("你好", "hello").encode("latin-1")
    expected = chat("hello").out
    lines = io.TextIOWrapper(io.BytesIO(said), encoding="latin-1")
    monkeypatch.setattr("sys.stdin", lines)
    run_chat(ChatSettings(model=MODEL, max_new_tokens=8, do_sample=False))
    found = capsys.readouterr()
    assert found.out == expected
    assert "error: the question holds the byte 0xe9 at character 4, which is not UTF" in found.err
    assert "error: the question holds the byte 0xff at character 1, which is not UTF" in found.err


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_without_stdin_or_stdout(name, monkeypatch):
    monkeypatch.setattr(f"sys.{name}", None)
    message = rf"^{name} is closed, and chat needs it; start without `<&-` or `>&-`$"
    with pytest.raises(ConfigError, match=message):
        run_chat(ChatSettings(model="nowhere"))


class Closed:
    """An input that must not be read."""

    def __getattr__(self, name):
        raise AssertionError(f"stdin.{name}")


@pytest.fixture
def once(model, monkeypatch, capsys):
    """Run `ptune chat QUESTION`; returns what went to stdout and to stderr."""
    monkeypatch.setattr("ptune.commands.chat.run.load_model", lambda *arguments: model)
    monkeypatch.setattr("sys.stdin", Closed())

    def run(question, **settings):
        settings = {"model": MODEL, "max_new_tokens": 8, "do_sample": False, **settings}
        run_chat(ChatSettings(question=question, **settings))
        return capsys.readouterr()

    return run


@pytest.mark.parametrize("closed", [False, True])
def test_one_question(once, session, prompts, tokenizer, closed, monkeypatch):
    if closed:
        monkeypatch.setattr("sys.stdin", None)
    out, err = once(" /你好\n ")
    assert (out, err) == (f"{ask(session, '/你好')}\n", "")
    assert prompts[0] == prompt_ids(tokenizer, "/你好")


def test_one_question_about_a_text(once, prompts, tokenizer, tmp_path):
    file = tmp_path / "about.txt"
    file.write_text(CONTEXT + "\n", encoding="utf-8")
    assert once("什么颜色", context=file, system="简短").err == ""
    assert prompts == [prompt_ids(tokenizer, "什么颜色", (), "简短", CONTEXT)]
    file.write_text(CONTEXT * 500, encoding="gb18030")
    out, err = once("什么颜色", context=file)
    assert out.count("\n") == 1 and "GB18030" not in out
    encoding, cut = err.splitlines()
    assert encoding.startswith("warning: ") and "was read as GB18030" in encoding
    assert cut.startswith("the text that the question is about is longer than fits: of its ")


def test_one_answer_comes_as_it_is_made(once, monkeypatch):
    written = []

    def write(screen, piece):
        written.append(piece)

    monkeypatch.setattr("ptune.commands.chat.screens.Pipes.write", write)
    assert once("你好").out == "\n"
    assert len(written) > 1


def test_one_answer_that_is_empty(once, monkeypatch):
    monkeypatch.setattr("ptune.generation.streaming.generate_one", lambda *arguments: iter(()))
    assert once("你好") == ("\n", "the answer is empty\n")


def test_one_question_that_fails(once, monkeypatch, capsys):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr("ptune.generation.streaming.generate_one", fail)
    message = r"^memory is full \(CUDA out of memory\); use a smaller --max-new-tokens$"
    with pytest.raises(ConfigError, match=message):
        once("你好")
    assert capsys.readouterr().out == ""


def test_ctrl_c_ends_one_answer_and_the_program(once, interrupted, capsys):
    with pytest.raises(KeyboardInterrupt):
        once("你好")
    assert capsys.readouterr().out.endswith("\n")


def test_one_answer_does_not_steer_the_terminal(once, monkeypatch):
    monkeypatch.setattr(
        "ptune.generation.chat_session.stream_reply",
        lambda *arguments: (piece for piece in ["a\x1b[2J\x9b", "b\n\tc"]),
    )
    assert once("你好").out == "a\x1b[2J\x9bb\n\tc\n"  # a pipe has it as it is
    screen = Tty()
    monkeypatch.setattr("sys.stdout", screen)
    once("你好")
    assert screen.getvalue() == "a[2Jb\n\tc\n"


@pytest.mark.parametrize("question", ["", " \n"])
def test_one_question_that_is_blank(question):
    message = r"^question '.*' is blank; write something, or leave it out$"
    with pytest.raises(ConfigError, match=message):
        ChatSettings(model=MODEL, question=question)


class Typist(DummyOutput):
    """Types the next keys when a prompt has been drawn: only then is the history loaded."""

    def __init__(self, keys, typed):
        self.keys = [*keys]
        self.typed = typed
        self.prompted = False

    def flush(self):
        if self.prompted:
            self.prompted = False
            self.typed.send_text(self.keys.pop(0) if self.keys else CTRL_D)


@pytest.fixture
def terminal(model, monkeypatch, tmp_path):
    """Run `ptune chat` in a terminal, fed with keys prompt by prompt; returns what it showed."""
    monkeypatch.setattr("ptune.commands.chat.run.load_model", lambda *arguments: model)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    prompt = PromptSession.prompt

    def run(*keys):
        screen = Tty()
        monkeypatch.setattr("sys.stdin", Tty())
        monkeypatch.setattr("sys.stdout", screen)
        with create_pipe_input() as typed:
            typist = Typist(keys, typed)

            def prompt_typist(session, *arguments):
                typist.prompted = True
                return prompt(session, *arguments)

            monkeypatch.setattr(PromptSession, "prompt", prompt_typist)
            with create_app_session(typed, typist):
                run_chat(ChatSettings(model=MODEL, max_new_tokens=8, do_sample=False))
        return screen.getvalue()

    return run


def test_terminal(terminal, session, tmp_path):
    answer = ask(session, "你好")
    shown = terminal("你好\r", "/clear\r", f"{UP}{UP}\r", "/nope\r", "/exit\r")
    assert shown.count(answer) == 2
    assert "/nope is no command" in shown
    history = (tmp_path / "state/ptune/chat_history").read_text("utf-8")
    assert history.count("+你好\n") == 2
    assert answer in terminal(f"{UP}{UP}{UP}\r", "/exit\r")  # remembered from the run before


def test_terminal_keys(terminal, prompts, tokenizer):
    shown = terminal(
        f"一{CTRL_C}", f"二{ALT_ENTER}三\r", "/clear\r", CTRL_C, CTRL_C, CTRL_D, "/nope"
    )
    assert prompts == [prompt_ids(tokenizer, "二\n三")]
    assert shown.count("/exit or Ctrl-D leaves") == 1


def test_terminal_ctrl_c_in_an_answer(terminal, interrupted):
    shown = terminal("你好\r", "/history\r", "再见\r", "/exit\r")
    assert shown.count("(stopped)") == 2
    assert "> 你好" in shown


def test_answer_does_not_steer_the_terminal(terminal, model, monkeypatch):
    monkeypatch.setattr(
        "ptune.generation.chat_session.stream_reply",
        lambda *arguments: (piece for piece in ["a\x1b[2J\x9b", "b\n:+1: [red]c"]),
    )
    assert "a[2Jb\n:+1: [red]c\n" in terminal("你好\r")


def test_history_file_that_cannot_be_written(terminal, tmp_path):
    (tmp_path / "state").write_text("a file, no folder")
    assert "no prefix" in terminal("/exit\r")
    (tmp_path / "state").unlink()
    (tmp_path / "state/ptune/chat_history").mkdir(parents=True)
    assert "no prefix" in terminal("/exit\r")


def test_resolve_base(tmp_path):
    assert resolve_base("a", tmp_path) == "a"
    (tmp_path / "prefix_encoder.safetensors").touch()
    with pytest.raises(CheckpointError, match="base model is unknown; pass it with --model"):
        resolve_base(None, tmp_path)
    CheckpointConfig("tiny", "f", "chatglm", 4, False).write(tmp_path)
    assert resolve_base(None, tmp_path) == "tiny"
    with pytest.raises(CheckpointError, match="no model is given"):
        resolve_base(None, None)


def test_chat_needs_neither_terminal_library_to_be_imported():
    files = (Path(ptune.__file__).with_name("commands") / "chat").glob("*.py")
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    top = [line for line in lines if line.startswith(("import", "from"))]
    assert len(top) > 20
    assert not any("prompt_toolkit" in line or "rich" in line for line in top)
