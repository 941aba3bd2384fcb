"""The page in a real browser: a document, questions, a key, and the store."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from rwkv_runtime.demo.corpus import Document, demo_document
from rwkv_runtime.server.page import DIRECTORY
from tests.server.servers import Server, serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000
NUMBER = re.compile(r"[1-9][0-9,]*")
#: It reaches this machine alone, and is not to try anything else.
SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("not run: no Chromium here (make services installs it)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new tab; whatever goes wrong inside the page, the test hears of it."""
    with ExitStack() as stack:
        context = browser.new_context()
        stack.callback(context.close)
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE_MS)
        problems: list[str] = []
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("requestfailed", lambda request: problems.extend(failure_of(request)))
        yield tab
        assert problems == []


def failure_of(request: Request) -> list[str]:
    """What went wrong; a page that is left gives up what it was asking for, and that is nothing."""
    gone = request.failure == "net::ERR_ABORTED"
    return [] if gone else [f"{request.url}: {request.failure}"]


def read(page: Page, text: str) -> None:
    page.get_by_label("Paste a text").fill(text)
    page.get_by_role("button", name="Read it").click()
    expect(page.locator("#ask")).to_be_enabled(timeout=PATIENCE_MS)


def ask(page: Page, question: str) -> tuple[str, str]:
    """The answer and what it cost, of the newest question."""
    before = page.locator("#answers li").count()
    page.locator("#question").fill(question)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers li")).to_have_count(before + 1)
    newest = page.locator("#answers li").first
    expect(newest.locator(".cost")).to_contain_text("first word after", timeout=PATIENCE_MS)
    return newest.locator(".answer").inner_text(), newest.locator(".cost").inner_text()


def test_a_document_is_read_once_and_asked_about(
    server: Server, page: Page, fresh: Document
) -> None:
    page.goto(server.url)
    read(page, fresh.text)
    expect(page.locator("#reading")).to_contain_text("0 from the store")
    for question in fresh.questions[:2]:
        answer, cost = ask(page, question.text)
        assert answer == question.answer
        assert not cost.startswith("0 tokens")
    read(page, fresh.text)
    expect(page.locator("#reading")).to_contain_text("all from the store")
    expect(page.locator('[data-field="entries"]')).to_have_text(NUMBER)
    expect(page.locator('[data-field="hits"]')).to_have_text(NUMBER, timeout=PATIENCE_MS)
    assert page.locator("#trace path").count() == 2


def test_the_example_is_the_demo_s_document_with_its_questions(server: Server, page: Page) -> None:
    shown = json.loads((DIRECTORY / "example.json").read_text())
    demo = demo_document()
    assert shown["text"] == demo.text
    assert shown["questions"] == [question.text for question in demo.questions[:6]]
    page.goto(server.url)
    page.get_by_role("button", name="An example").click()
    suggested = page.get_by_role("button", name=demo.questions[0].text)
    suggested.click()
    expect(page.locator("#answers .answer").first).to_have_text(
        demo.questions[0].answer, timeout=PATIENCE_MS
    )


def test_documents_read_before_are_listed_used_and_deleted(
    server: Server, page: Page, fresh: Document
) -> None:
    page.goto(server.url)
    read(page, fresh.text)
    page.reload()
    page.locator("#known summary").click()
    title = fresh.text.split("\n", 1)[0][:50]
    item = page.locator("#documents li", has_text=title)
    item.get_by_role("button", name="Use").click()
    answer, _ = ask(page, fresh.questions[0].text)
    assert answer == fresh.questions[0].answer
    page.get_by_role("button", name=f"Delete {title}").click()
    expect(item).to_have_count(0)
    expect(page.locator("#ask")).to_be_disabled()


def test_nothing_is_asked_about_what_was_deleted(server: Server, page: Page) -> None:
    page.goto(server.url)
    page.get_by_role("button", name="An example").click()
    suggested = page.locator("#suggested button")
    expect(suggested).to_have_count(6, timeout=PATIENCE_MS)
    expect(page.locator("#about")).to_contain_text("not read again")
    page.locator("#known summary").click()
    page.get_by_role("button", name=f"Delete {demo_document().text[:40]}").click()
    expect(page.locator("#about")).to_contain_text("it costs the question alone")
    expect(suggested).to_have_count(0)


def test_text_of_a_document_or_an_answer_is_never_markup(server: Server, page: Page) -> None:
    page.goto(server.url)
    read(page, "<img src=x onerror=\"document.title='broken'\">" + " The sky is blue." * 20)
    ask(page, "<b>Who?</b>")
    assert page.locator("#answers .asked").first.inner_text() == "<b>Who?</b>"
    assert page.locator("#documents img, #answers b").count() == 0
    assert page.title() == "rwkv-statestore"


def test_a_server_with_keys_asks_for_one(browser: Browser, tmp_path: Path, fresh: Document) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[[keys]]\nkey = "a long enough secret"\nnamespace = "alice"\n')
    keys.chmod(0o600)
    store = (tmp_path / "states").as_uri()
    with serving("--api-keys", str(keys), store=store) as running, browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(running.url)
        page.get_by_label("This server asks for an API key").fill("a long enough secret")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#health")).to_have_class("dot up")
        read(page, fresh.text)
        assert ask(page, fresh.questions[0].text)[0] == fresh.questions[0].answer
        assert "secret" not in page.content()


def test_a_page_whose_server_has_gone_says_so(browser: Browser, tmp_path: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        with serving(store=(tmp_path / "states").as_uri()) as running:
            page.goto(running.url)
            expect(page.locator("#health")).to_have_class("dot up", timeout=PATIENCE_MS)
        expect(page.locator("#health")).to_have_class("dot down", timeout=PATIENCE_MS)
        expect(page.locator("#store-problem")).to_contain_text("does not answer")


def test_it_fits_a_narrow_screen(server: Server, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(server.url)
    expect(page.locator("#health")).to_have_class("dot up", timeout=PATIENCE_MS)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
