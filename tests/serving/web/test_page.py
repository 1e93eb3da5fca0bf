"""The page in a browser: asking, stopping, trying again, prefixes side by side, two languages."""

import time

import pytest

pytest.importorskip("gradio")

from fixtures.servers import Scripted, idle, serving

from ptune.data.example_questions import ExampleQuestion

TEXT = "裤子是羊毛的，很暖和。"


@pytest.fixture(scope="module")
def server(tiny):
    """The first answers come slowly, so that they can be stopped."""
    with serving(tiny, web=True, default="p3") as found:
        store = found.answers.store
        store._questions["p3"] = (ExampleQuestion("什么材质？", TEXT), ExampleQuestion("裙"))
        yield found


@pytest.fixture
def slow(tiny):
    with serving(tiny, engine=Scripted(tiny.tokenizer, TEXT * 400), web=True, default="p3") as it:
        yield it


def said(page, chat, role="bot"):
    """What one side of a chat has said, as the page shows it."""
    return [part.strip() for part in page.locator(f"#{chat} .message.{role}").all_inner_texts()]


def ask(page, question):
    page.fill("#question textarea", question)
    page.click("#ask")
    page.wait_for_function("document.querySelector('#question textarea').value == ''")


def answered(page):
    """Wait until the answer has ended."""
    page.wait_for_selector("#stop:disabled")
    page.wait_for_selector("#ask:enabled")


def greedy(server, model, question, **more):
    body = {"prompt": question, "model": model, "temperature": 0, "max_length": 60} | more
    return server.http.post("/", json=body).json()["response"]


def set_slider(page, name, value):
    page.locator(f"#{name} input[type=number]").fill(str(value))
    page.locator(f"#{name} input[type=number]").blur()


def test_a_question_is_answered_by_both(server, open_page):
    page = open_page(server.url)
    page.click("#sampling button")
    set_slider(page, "temperature", 0)
    ask(page, "类型#裤*颜色#白*风格#简约")
    page.wait_for_selector("#bare .message.bot")
    answered(page)
    for chat, model in (("tuned", "p3"), ("bare", "tiny")):
        assert said(page, chat, "user") == ["类型#裤*颜色#白*风格#简约"], "no markup"
        body = {"model": model, "temperature": 0}
        body["messages"] = [{"role": "user", "content": "类型#裤*颜色#白*风格#简约"}]
        whole = server.http.post("/v1/chat/completions", json=body).json()
        assert said(page, chat) == [whole["choices"][0]["message"]["content"]]


def test_streaming_stop_and_retry(slow, open_page):
    page = open_page(slow.url)
    ask(page, "什么材质？")
    page.wait_for_selector("#stop:enabled")
    length = "document.querySelector('#tuned .message.bot')?.innerText.length"
    page.wait_for_function(f"{length} > 9")
    page.wait_for_function(f"{length} > {len(said(page, 'tuned')[0])}")
    page.click("#stop")
    answered(page)
    idle(slow)
    stopped = said(page, "tuned")[0]
    whole = slow.answers.tokenizer.decode(slow.answers.tokenizer.encode_text(TEXT * 400))
    assert whole.startswith(stopped) and len(stopped) < len(whole)
    page.wait_for_timeout(200)
    assert said(page, "tuned") == [stopped], "nothing comes after it"
    page.click("#retry")
    page.wait_for_selector("#stop:enabled")
    page.wait_for_function("document.querySelectorAll('#bare .message.bot').length == 1")
    page.click("#stop")
    answered(page)
    assert said(page, "tuned", "user") == said(page, "bare", "user") == ["什么材质？"]
    idle(slow)


def test_who_closes_the_page_frees_the_slots(slow, open_page):
    page = open_page(slow.url)
    ask(page, "什么材质？")
    page.wait_for_selector("#bare .message.bot")
    assert slow.worker.running == 2
    page.close()
    idle(slow)


def test_another_question_has_to_wait(slow, open_page):
    page = open_page(slow.url)
    ask(page, "什么材质？")
    page.wait_for_selector("#tuned .message.bot")
    assert page.is_disabled("#ask")
    page.fill("#question textarea", "裙")
    page.press("#question textarea", "Enter")
    page.get_by_text("Wait for the answer, or stop it.").wait_for()
    assert page.input_value("#question textarea") == "裙", "what was written stays"
    page.click("#stop")
    answered(page)
    assert said(page, "tuned", "user") == ["什么材质？"]


def test_another_prefix_and_the_bare_model(server, open_page):
    page = open_page(server.url)
    ask(page, "裙")
    page.wait_for_selector("#bare .message.bot")
    answered(page)
    page.click("#prefix input")
    page.get_by_role("option", name="p20").click()
    page.get_by_text("p20", exact=True).first.wait_for()
    page.click("#retry")
    while 'model="p20"' not in server.http.get("/metrics").text:
        page.wait_for_timeout(20)
    answered(page)
    assert said(page, "tuned", "user") == ["裙"] and len(said(page, "tuned")) == 1
    page.click("#prefix input")
    page.get_by_role("option", name="tiny").click()
    page.wait_for_selector("#bare", state="hidden")
    ask(page, "裤")
    answered(page)
    page.wait_for_function("document.querySelectorAll('#tuned .message.user').length == 2")
    page.click("#clear")
    page.wait_for_function("document.querySelectorAll('#tuned .message').length == 0")


def test_examples_and_the_text_they_are_about(server, open_page):
    page = open_page(server.url)
    page.locator("#examples button").first.click()
    page.wait_for_function("document.querySelector('#question textarea').value != ''")
    page.click("#about button")
    assert page.input_value("#question textarea") == "什么材质？"
    assert page.input_value("#context textarea") == TEXT
    page.fill("#context textarea", TEXT * 2000)
    page.click("#ask")
    page.get_by_text("The background text is longer than fits").wait_for()
    answered(page)


@pytest.mark.parametrize(
    ("locale", "ask_is", "examples_are"),
    [
        ("zh-CN", "提问", "训练数据中的问题"),
        ("zh-TW", "提问", "训练数据中的问题"),
        ("de-DE", "Ask", "Questions of the training data"),
    ],
)
def test_the_language_of_the_browser(server, open_page, locale, ask_is, examples_are):
    page = open_page(server.url, locale=locale)
    page.get_by_text(examples_are).wait_for()
    assert page.inner_text("#ask") == ask_is


def test_a_prefix_that_was_dropped(server, open_page, tiny):
    store = server.answers.store
    store._host["late"] = store._host["p3"]
    page = open_page(server.url)
    page.click("#prefix input")
    page.get_by_role("option", name="late").click()
    store.drop("late")
    ask(page, "裙")
    page.get_by_text("no model is called 'late'; use one of tiny, p3, p20").wait_for()
    answered(page)
    idle(server)


def test_texts_are_shown_as_they_are(tiny, open_page):
    said_so = "a<b and c>d &lt;b&gt; $$x^2$$ <img src=http://192.0.2.1/x.png>"
    with serving(tiny, engine=Scripted(tiny.tokenizer, said_so), web=True) as server:
        page = open_page(server.url)
        ask(page, said_so)
        page.wait_for_selector("#tuned .message.bot")
        answered(page)
        decoded = tiny.tokenizer.decode(tiny.tokenizer.encode_text(said_so))
        assert said(page, "tuned", "user") == [said_so] and said(page, "tuned") == [decoded]
        assert page.locator("#tuned .message img").count() == 0
        page.close()


def test_half_a_character(server, open_page):
    page = open_page(server.url)
    page.evaluate("""() => {
        const field = document.querySelector('#question textarea');
        field.value = 'half \\ud83d x';
        field.dispatchEvent(new Event('input'));
    }""")
    with page.expect_response(lambda given: "/queue/join" in given.url and given.status == 400):
        page.click("#ask")
    ask(page, "裙")
    page.wait_for_selector("#tuned .message.bot")
    answered(page)


def test_as_many_sides_as_the_server_takes(tiny, open_page):
    with serving(tiny, slots=1, queue=0, web=True, default="p3") as server:
        page = open_page(server.url)
        ask(page, "裙")
        page.wait_for_selector("#tuned .message.bot")
        answered(page)
        page.click("#compare input")
        page.click("#retry")
        page.get_by_text("2 answers side by side are more than the 1 that this server").wait_for()
        page.close()


def test_clearing_in_mid_answer(slow, open_page):
    page = open_page(slow.url)
    for _ in range(3):
        ask(page, "什么材质？")
        page.wait_for_selector("#tuned .message.bot")
        page.click("#clear")
        page.wait_for_function("document.querySelectorAll('#tuned .message').length == 0")
        page.wait_for_timeout(150)
        assert said(page, "tuned", "user") == []
        idle(slow)


def test_the_server_ends_while_a_page_is_open(tiny, open_page):
    began = time.monotonic()
    with serving(tiny, web=True) as server:
        page = open_page(server.url)
        ask(page, "裙")
        answered(page)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    page.close()


def test_a_key_is_asked_for(tiny, open_page):
    with serving(tiny, web=True, keys=["secret"]) as server:
        assert server.http.get("/web/config").status_code == 401
        page = open_page(server.url, wait_for="input[type=password]")
        page.fill("input >> nth=0", "anybody")
        page.fill("input[type=password]", "secret")
        page.click("button")
        page.wait_for_selector("#question textarea")
        ask(page, "裙")
        answered(page)
        assert server.http.post("/", json={"prompt": "裙"}).status_code == 401
        page.close()
