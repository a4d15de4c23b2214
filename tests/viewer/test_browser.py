"""The viewer in a real browser: what scripts do, keys, widths, and hostile texts that stay texts.

Needs Debian's package `chromium` and the Python package `playwright`; skipped where one is missing.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qedmeg.grading.grade import Failed
from qedmeg.grading.rated import load_rated
from qedmeg.viewer.hand import HAND_FILE
from tests.viewer.made import PROBLEMS, Evaluation, attempt, call, evaluation, graded, training, whole

playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")

ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
ALGEBRA, ATTEMPT = "problem?b=proofs&p=algebra-1", "r=small-cache&p=algebra-1&n=0"
NARROW, WIDE = 380, 1600

HOSTILE = (
    r"""</script><script>alert('script')</script><script src="https://evil.example/x.js"></script>
<img src="https://evil.example/x.png" onerror="alert('img')"><svg onload="alert('svg')"></svg>
<iframe src="https://evil.example"></iframe><a href="javascript:alert('link')">click</a>
<style>body { display: none }</style><base href="https://evil.example"><meta http-equiv="refresh" content="0">
<form action="https://evil.example"><input name=token></form> [a](javascript:alert(1)) {{ 7 * 7 }}

$\href{javascript:alert('href')}{x}$ $\url{https://evil.example}$ $\includegraphics{https://evil.example/y.png}$
$\htmlClass{button}{x}$ $\htmlStyle{position:fixed}{x}$ $\htmlData{call=/x}{x}$ $\htmlId{sheet}{x}$
$\rule{9999em}{9999em}$ $\def\x{\x\x}\x$ $\frac{$

$$\newcommand{\e}{\frac{1}{\e}}\e$$

$\boxed{x}$ $\vec{x}$ $\fcolorbox{red}{blue}{x}$ $\Huge\text{</script>}$

$"""
    + "{" * 2_000
    + "x"
    + "}" * 2_000
    + "$\n\n"
    + "$x$ " * 1_500
    + "\u202e\u0000 \\begin{align} \\[ never closed\n\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to look at; a test that writes makes its own."""
    folder = tmp_path_factory.mktemp("browser")
    evaluation(folder / "eval" / "results.sqlite")
    training(folder / "grpo")
    made = Evaluation(folder / "hostile" / "results.sqlite")
    made.run("hostile", HOSTILE[:200], PROBLEMS[:2])
    huge = HOSTILE + ("Let $x$ be. " * 40 + "\n\n") * 10_500  # 5 MB
    made.add(
        "hostile",
        [
            (attempt("algebra-1", 0, huge, 10), graded(1, 1, 1, reason=HOSTILE)),
            (attempt("algebra-1", 1, HOSTILE, 20), whole(2, HOSTILE)),
            (attempt("geometry/1", 0, HOSTILE, 30), Failed("unreadable answer", HOSTILE)),
        ],
    )
    calls = [call(f"{HOSTILE[:60]}/<b>", "prover", HOSTILE, huge, HOSTILE), call("two", "verifier", "a", "b")]
    made.calls("hostile", "algebra-1", 0, calls)
    made.results.close()
    return folder


def started(*paths: Path) -> tuple[subprocess.Popen[str], str]:
    """The command as a user starts it, and its address."""
    command = [sys.executable, "-m", "qedmeg", "view", *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert lines[1].startswith("http://127.0.0.1:"), lines
    return process, lines[1].split()[0]


def ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    assert process.wait(20) == 0


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    process, address = started(folder / "eval", folder / "grpo", folder / "hostile")
    yield address
    ended(process)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A page, and what happened on it that must not."""

    def __init__(self, browser: Any, width: int = WIDE, scheme: str = "light", **more: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.dialogs: list[str] = []
        self.told: list[str] = []
        self.requests: list[str] = []
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture
def watched(browser: Any, address: str) -> Iterator[Watched]:
    watched = Watched(browser, base_url=address)
    yield watched
    watched.context.close()
    assert watched.dialogs == []
    assert watched.told == []
    assert [url for url in watched.requests if not url.startswith((address, "data:"))] == []


PAGES = (
    "",
    "?q=altitudes&state=failed",
    ALGEBRA,
    "problem?b=training%3A+grpo&p=known",
    f"attempt?{ATTEMPT}",
    ALGEBRA.replace("problem", "compare"),
    f"grade?{ATTEMPT}",
    f"text?{ATTEMPT}&what=proof",
    "attempt?r=hostile&p=algebra-1&n=0",
    "attempt?r=hostile&p=geometry%2F1&n=0",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_no_page_is_wider_than_its_window(browser: Any, address: str, width: int, scheme: str) -> None:
    watched = Watched(browser, width, scheme, base_url=address)
    for name in PAGES:
        watched.page.goto(name)
        watched.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        watched.page.wait_for_timeout(150)
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width, name
        ground = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(251, 251, 249)") == (scheme == "light")
    watched.context.close()
    assert watched.told == []


def test_formulas_are_set_when_they_come_into_view(watched: Watched) -> None:
    page = watched.page
    page.goto(ALGEBRA)
    page.locator(".statement .katex-display").wait_for()
    page.locator(".card .katex-display").first.wait_for()
    page.goto("text?r=hostile&p=algebra-1&n=0&what=proof&part=3")
    page.locator(".katex").first.wait_for()
    assert page.locator(".tex").last.locator(".katex").count() == 0
    page.keyboard.press("End")
    page.locator(".tex").last.locator(".katex").first.wait_for()


def test_the_calls_of_a_scaffold_open_in_their_tree(watched: Watched) -> None:
    page = watched.page
    page.goto(f"attempt?{ATTEMPT}")
    node = page.locator("details.call").first
    assert node.locator(".said").count() == 0
    node.locator("summary").focus()
    page.keyboard.press("Enter")
    node.locator(".said").nth(3).wait_for()
    assert node.locator(".said h3").all_text_contents() == ["prompt, system", "prompt, user", "thinking", "reply"]
    node.locator(".katex").first.wait_for()
    assert page.locator(".tree > li > ul > li").count() == 5


def test_filters_by_form_and_back(watched: Watched) -> None:
    page = watched.page
    page.goto("")
    rows = page.locator("tr[data-item]")
    before = rows.count()
    page.get_by_label("Category").select_option("Geometry")
    page.get_by_label("least points").fill("5")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**/?*")
    assert page.url.endswith("/?category=Geometry&low=5")  # nothing that is empty
    assert rows.count() == 1
    assert page.get_by_label("Category").input_value() == "Geometry"
    page.go_back()
    assert rows.count() == before


def test_everything_is_reached_by_keys(watched: Watched) -> None:
    page = watched.page
    page.goto("")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.type("abc")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=abc")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "algebra-1"
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url("**/problem?*q=abc")  # the filter goes along
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "attempt 1"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/attempt?*")
    here = page.url
    page.keyboard.press("j")
    page.wait_for_url(lambda url: url != here and "/attempt?" in url)
    page.keyboard.press("c")
    page.wait_for_url("**/compare?*")
    page.keyboard.press("u")
    page.wait_for_url("**/problem?*")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("u")  # means nothing while the help is there
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert "/problem?" in page.url
    page.keyboard.press("g")
    page.wait_for_url("**/grade?*")


def test_grading_by_hand_with_keys_alone(browser: Any, tmp_path: Path) -> None:
    path = evaluation(tmp_path / "results.sqlite")
    process, address = started(path)
    watched = Watched(browser, base_url=address)
    page = watched.page
    page.goto("grade?benchmark=proofs")
    assert page.get_by_text("judge-v1").count() == 0
    for digit in "321":
        page.keyboard.press(digit)
    assert page.locator("[data-total]").text_content() == "6 of 7"
    page.keyboard.press("0")  # of the item that is marked, the last
    page.get_by_label("Note").focus()
    page.keyboard.type("7 of 7 it is not: jk?")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**saved=1*")
    page.keyboard.press("j")
    page.wait_for_url(lambda url: "saved" not in url)
    page.keyboard.press("7")
    page.keyboard.press("Control+Enter")  # two items are still to be graded: the browser does not send it
    page.wait_for_timeout(200)
    assert "saved" not in page.url
    page.goto("attempt?r=small-cache&p=algebra-1&n=0")
    told = " ".join(page.locator(".grade.hand").inner_text().split())
    assert told == "5 of 7 by hand bound: 3 equality: 2 conclusion: 0 7 of 7 it is not: jk?"
    watched.context.close()
    ended(process)
    assert watched.told == []
    assert [(one.problem.id, one.points) for one in load_rated(tmp_path / HAND_FILE)] == [("algebra-1", 5)]


def test_another_page_cannot_write(browser: Any, address: str, folder: Path) -> None:
    """Neither a form on a page of another origin, nor a script there that asks the server."""
    watched = Watched(browser)
    form = f'<form method="post" action="{address}grade?{ATTEMPT}"><input name="token" value="x"></form>'
    watched.context.route("http://other.test/", lambda route: route.fulfill(body=form, content_type="text/html"))
    watched.page.goto("http://other.test/")
    answer = "fetch(arguments, {mode: 'cors'}).then(() => 'read', () => 'refused')".replace("arguments", f"'{address}'")
    assert watched.page.evaluate(answer) == "refused"
    watched.page.evaluate("document.forms[0].submit()")
    watched.page.get_by_text("not sent from a page of this server").wait_for()
    watched.context.close()
    assert not list(folder.rglob(HAND_FILE))


@pytest.mark.parametrize(
    "name",
    [
        "?run=hostile",
        "problem?b=proofs&p=algebra-1&run=hostile",
        "attempt?r=hostile&p=algebra-1&n=0",
        "attempt?r=hostile&p=algebra-1&n=1",
        "attempt?r=hostile&p=geometry%2F1&n=0",
        "compare?b=proofs&p=algebra-1&run=hostile",
        "grade?r=hostile&p=algebra-1&n=0&machine=1",
        "text?r=hostile&p=algebra-1&n=0&what=proof",
    ],
)
def test_hostile_texts_stay_texts(watched: Watched, name: str) -> None:
    page = watched.page
    page.goto(name)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    # in the time that a person waits, and with the page at work all along
    slowest = page.evaluate(
        """async () => {
            let slowest = 0;
            for (let y = 0; y < document.documentElement.scrollHeight; y += 800) {
                const began = performance.now();
                scrollTo(0, y);
                await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
                slowest = Math.max(slowest, performance.now() - began);
            }
            return slowest;
        }"""
    )
    assert slowest < 3_000
    page.wait_for_timeout(200)
    if name.startswith(("attempt", "text", "grade")):
        assert "<script>alert('script')</script>" in page.locator("main").inner_text()
    bad = "main script, main img, main iframe, main object, main base, main style, main [onerror], main [onload]"
    assert page.locator(bad).count() == 0
    assert page.locator("a[href^='javascript' i], a[href*='evil' i], [action*='evil']").count() == 0
    assert page.locator(".katex [data-call], .katex .button, .katex #sheet").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDE


def test_a_proof_of_five_megabytes_opens_at_once_and_reads_on(watched: Watched) -> None:
    page = watched.page
    page.goto("attempt?r=hostile&p=algebra-1&n=0")
    assert page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive") < 3_000
    assert page.evaluate("document.body.textContent.length") < 400_000
    page.locator(".proof .text .cut a").click()
    page.wait_for_url("**part=2")
    assert "part 2 of" in page.locator("nav.pager").first.inner_text()
    page.keyboard.press("j")
    page.wait_for_url("**part=3")
