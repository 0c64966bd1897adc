"""What a person can do with the page, in a browser."""

import os
import re
import uuid
from pathlib import Path

import pytest
from fake_api import KEY, FactBody

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=20_000)

PROMPT = "The capital of Ruritania is"
IMAGE = Path(__file__).parents[2] / "docs" / "images" / "console.png"


@pytest.fixture
def page(site, new_page):
    """The page, connected, in a namespace of the test's own."""
    page = new_page(site)
    _connected(page)
    page.get_by_label("Namespace").fill(f"console-{uuid.uuid4().hex[:8]}")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#facts-status")).to_contain_text("no facts")
    return page


def _connected(page):
    expect(page.locator("#status")).to_contain_text("snapshot")
    expect(page.locator("#fact-list")).not_to_have_attribute("aria-busy", "true")


def _add(page, prompt, target, *, fact_id="", source=""):
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Target").fill(target)
    page.get_by_label("Source").fill(source)
    page.get_by_label("Id (optional").fill(fact_id)
    page.get_by_role("button", name="Add fact").click()
    expect(page.locator("#facts-status")).to_contain_text(re.compile("is new|has replaced"))


def _ask(page, question):
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#ask-status")).to_contain_text(re.compile("same|differ"))


def _rows(page):
    return page.locator("#fact-list > li")


def test_both_answers_stand_side_by_side_with_the_fact_that_made_the_difference(page, site):
    _add(page, PROMPT, "Strelsau", fact_id="capital", source="almanac 2026")
    _ask(page, PROMPT)
    edited = page.get_by_role("article", name="Edited", exact=True)
    expect(edited).to_contain_text("Fact applied")
    for text in ("The capital of Ruritania is Strelsau", "capital", "almanac 2026"):
        expect(edited).to_contain_text(text)
    values = dict(
        zip(edited.locator("dt").all_inner_texts(), map(_number, edited.locator("dd").all_inner_texts()), strict=True)
    )
    assert values["Margin"] == pytest.approx(values["Score"] - values["Sentinel"], abs=0.0011)
    assert values["Margin"] > 0
    assert edited.get_by_role("img").get_attribute("aria-label").endswith("above the sentinel")
    unedited = page.get_by_role("article", name="Unedited", exact=True)
    expect(unedited).not_to_contain_text("Fact applied")
    if site.api:
        expect(edited.locator(".answer")).to_have_text("Strelsau.")
        expect(unedited.locator(".answer")).to_have_text("a city that I do not know.")
        expect(page.locator("#ask-status")).to_have_text("The answers differ.")


def _number(text):
    try:
        return float(text.replace("−", "-"))
    except ValueError:
        return text


def test_where_no_fact_fired_the_page_says_why(page):
    _ask(page, PROMPT)
    edited = page.get_by_role("article", name="Edited", exact=True)
    expect(edited).to_contain_text(re.compile("No fact applied. (This namespace has|There are) no facts"))
    expect(page.locator("#ask-status")).to_have_text("Both answers are the same.")


def test_a_score_below_the_sentinel_is_shown_as_such(fake_site, new_page):
    fake_site.api.put("default", [FactBody(prompt=PROMPT, target="Strelsau")])
    page = new_page(fake_site)
    _connected(page)
    _ask(page, "The longest river of Syldavia is")
    edited = page.get_by_role("article", name="Edited", exact=True)
    expect(edited).to_contain_text("does not exceed the sentinel")
    bar = edited.get_by_role("img")
    assert bar.get_attribute("aria-label").endswith("below the sentinel")
    # The bar lies to the left of the middle, which is the sentinel, and ends there.
    track, fill = bar.bounding_box(), bar.locator(".fill").bounding_box()
    assert fill["x"] + fill["width"] == pytest.approx(track["x"] + track["width"] / 2, abs=2)
    assert fill["width"] > 0


def test_an_answer_is_shown_as_it_comes_and_can_be_stopped(fake_site, new_page):
    fake_site.api.delay_s = 3600
    page = new_page(fake_site)
    _connected(page)
    page.get_by_label("Question").fill("Where is Ruritania?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#unedited-answer")).to_have_text("a")  # its first word
    expect(page.locator("#unedited-answer")).to_have_attribute("aria-busy", "true")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#ask-status")).to_have_text("Stopped.")
    expect(page.get_by_label("Question")).to_be_focused()
    for _ in range(100):
        if fake_site.api.streams_closed == 2:
            break
        page.wait_for_timeout(100)
    assert fake_site.api.streams_closed == 2  # the server stopped too
    fake_site.api.delay_s = 0
    _ask(page, "Where is Ruritania?")
    expect(page.locator("#unedited-answer")).to_have_text("a city that I do not know.")


def test_faults_are_said_in_the_words_of_the_interface(fake_site, new_page):
    page = new_page(fake_site)
    _connected(page)
    fake_site.api.broken = True
    page.get_by_label("Question").fill("Where is Ruritania?")
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#ask-error")).to_have_text("an engine was lost; try again")
    expect(page.locator("#ask-status")).to_have_text("")
    fake_site.api.broken = False
    page.get_by_label("Question").fill("   ")
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#ask-error")).to_have_text("'prompt' is empty; give text to complete")
    _ask(page, "Where is Ruritania?")
    expect(page.locator("#ask-error")).to_have_text("")


def test_a_server_that_is_gone_is_said(fake_site, new_page):
    page = new_page(fake_site)
    _connected(page)
    page.route("**/v1/**", lambda route: route.abort())
    page.get_by_role("button", name="List all").click()
    expect(page.locator("#facts-error")).to_contain_text("cannot be reached")


def test_facts_are_added_found_replaced_and_deleted(page):
    _add(page, PROMPT, "Strelsau", fact_id="places/capital?#%", source="almanac")
    _add(page, "The anthem of Syldavia is", "Hail to thee", fact_id="anthem")
    expect(_rows(page)).to_have_count(2)
    page.get_by_label("Search by meaning").fill(PROMPT)
    page.get_by_label("Search by meaning").press("Enter")
    expect(page.locator("#list-heading")).to_contain_text(PROMPT)
    expect(_rows(page).first).to_contain_text("The capital of Ruritania is Strelsau")
    expect(_rows(page).first).to_contain_text("Score")
    scores = [_number(row.locator("dd").last.inner_text()) for row in _rows(page).all()]
    assert scores == sorted(scores, reverse=True)

    _add(page, PROMPT, "Zenda", fact_id="places/capital?#%")
    expect(_rows(page).first).to_contain_text("The capital of Ruritania is Zenda")  # the search, anew
    expect(_rows(page)).to_have_count(2)

    page.get_by_role("button", name="Delete places/capital?#%").click()
    dialog = page.get_by_role("dialog", name="Delete this fact?")
    expect(dialog).to_contain_text("Zenda")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    expect(_rows(page)).to_have_count(2)
    page.get_by_role("button", name="Delete places/capital?#%").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#facts-status")).to_contain_text("is deleted")
    expect(_rows(page)).to_have_count(1)
    page.get_by_role("button", name="List all").click()
    expect(_rows(page)).to_have_count(1)
    expect(_rows(page).first).to_contain_text("anthem")


@pytest.mark.parametrize("fact_id", [".", "..", "a/../b", "a//b", "search", "späť/☃ +&", "100%"])
def test_any_id_can_be_deleted(fake_site, new_page, fact_id):
    page = new_page(fake_site)
    _connected(page)
    fake_site.api.put(
        "default", [FactBody(id=fact_id, prompt="x", target="y"), FactBody(id="b", prompt="x", target="y")]
    )
    page.get_by_role("button", name="List all").click()
    page.get_by_role("button", name=f"Delete {fact_id}", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#facts-status")).to_contain_text("is deleted")
    assert list(fake_site.api.facts["default"]) == ["b"]


def test_a_long_list_comes_in_pages(fake_site, new_page):
    many = [FactBody(id=f"id-{number:03d}", prompt=f"Number {number} is", target="odd") for number in range(45)]
    fake_site.api.put("default", many)
    page = new_page(fake_site)
    _connected(page)
    expect(_rows(page)).to_have_count(20)
    for shown in (40, 45):
        page.get_by_role("button", name="More facts").click()
        expect(_rows(page)).to_have_count(shown)
    expect(page.get_by_role("button", name="More facts")).to_be_hidden()
    assert page.locator("#fact-list code").all_inner_texts() == [fact.id for fact in many]
    expect(_rows(page).nth(40)).to_be_focused()  # where the new ones begin


def test_an_earlier_snapshot_is_made_current_after_a_confirmation(page):
    _add(page, PROMPT, "Strelsau", fact_id="capital")
    before = int(re.search(r"snapshot (\d+)", page.locator("#facts-status").inner_text())[1])
    _add(page, PROMPT, "Zenda", fact_id="capital")
    button = page.get_by_role("button", name=f"Make version {before} current")
    button.click()
    dialog = page.get_by_role("dialog", name=f"Make version {before} current?")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()  # the focus is back
    expect(_rows(page).first).to_contain_text("Zenda")
    button.click()
    dialog.get_by_role("button", name="Make current").click()
    expect(page.locator("#snapshots-status")).to_contain_text(f"with the facts of version {before}")
    expect(_rows(page).first).to_contain_text("Strelsau")
    current = page.locator("#snapshot-list > li[aria-current=true]")
    expect(current).to_contain_text("rollback")
    expect(current.get_by_role("button")).to_have_count(0)


def test_own_writes_are_seen_where_the_server_is_late_with_them(fake_site, new_page):
    fake_site.api.late = True
    page = new_page(fake_site)
    _connected(page)
    _add(page, PROMPT, "Strelsau", fact_id="capital")
    expect(_rows(page)).to_have_count(1)
    expect(page.locator("#status")).to_contain_text("snapshot 1, 1 fact")
    page.get_by_label("Search by meaning").fill(PROMPT)
    page.get_by_label("Search by meaning").press("Enter")
    expect(page.locator("#facts-status")).to_contain_text("1 fact found, 1 above the sentinel")
    _ask(page, PROMPT)
    expect(page.locator("#edited-answer")).to_have_text("Strelsau.")


def test_a_key_that_does_not_see_all_is_told_what_it_may_know(fake_site, new_page):
    fake_site.api.put("default", [FactBody(prompt=PROMPT, target="Strelsau")])
    fake_site.api.sees_all = False
    page = new_page(fake_site)
    _connected(page)
    expect(page.locator("#current-snapshot")).to_have_text("Version 1 is served: 1 fact in 1 namespace.")
    expect(page.locator("#snapshot-list > li")).to_have_count(2)


def test_where_a_version_is_pinned_nothing_offers_to_change_it(fake_site, new_page):
    fake_site.api.put("default", [FactBody(prompt=PROMPT, target="Strelsau")])
    fake_site.api.writable = False
    page = new_page(fake_site)
    _connected(page)
    expect(page.locator("#current-snapshot")).to_contain_text("pinned")
    for name in ("Add fact", "Delete fact-1", "Make version 0 current"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)


def test_what_others_wrote_is_noticed_with_the_next_answer(fake_site, new_page):
    page = new_page(fake_site)
    _connected(page)
    fake_site.api.put("default", [FactBody(prompt=PROMPT, target="Strelsau")])
    _ask(page, PROMPT)
    expect(page.locator("#status")).to_contain_text("snapshot 1, 1 fact in 1 namespace")


def test_asking_and_adding_need_no_pointer(page):
    def tab_to(locator):
        for _ in range(60):
            page.keyboard.press("Tab")
            if locator.evaluate("element => element === document.activeElement"):
                width = locator.evaluate("element => parseFloat(getComputedStyle(element).outlineWidth)")
                assert width >= 2, "the focus is not visible"
                return
        raise AssertionError(f"the keyboard does not reach {locator}")

    page.evaluate("document.activeElement.blur()")
    tab_to(page.get_by_label("Prompt"))
    page.keyboard.type(PROMPT)
    page.keyboard.press("Tab")
    page.keyboard.type("Strelsau")
    page.keyboard.press("Tab")
    page.keyboard.type("almanac")
    page.keyboard.press("Enter")
    expect(page.locator("#facts-status")).to_contain_text("is new")
    expect(page.get_by_label("Prompt")).to_be_focused()  # ready for the next fact
    tab_to(page.get_by_role("button", name=re.compile("^Ask about ")).first)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Question")).to_be_focused()
    expect(page.get_by_label("Question")).to_have_value(PROMPT)
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="Edited", exact=True)).to_contain_text("almanac")
    tab_to(page.get_by_role("button", name=re.compile("^Delete ")).first)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#facts-status")).to_contain_text("is deleted")
    expect(page.locator("#list-heading")).to_be_focused()


def test_markup_in_a_fact_is_text(page):
    bad = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    _add(page, bad, "</p><b id=bold>bold</b>", fact_id=f"x{bad}", source=bad)
    expect(_rows(page).first).to_contain_text(bad)
    page.get_by_role("button", name="Ask about").click()
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#ask-status")).to_contain_text(re.compile("same|differ"))
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_contain_text(bad)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#bold, main img, main script").count() == 0


def test_the_policy_stops_a_script_that_gets_in_all_the_same(fake_site, chromium):
    page = chromium.new_page()  # not by `new_page`, which takes what the policy stops for a fault
    page.goto(f"{fake_site.url}/console")
    outcome = page.evaluate(
        """() => {
            try { document.body.innerHTML = "<b>in</b>"; return "made markup"; } catch (error) { return error.name; }
        }"""
    )
    page.close()
    assert outcome == "TypeError"  # trusted types


def test_a_key_is_asked_for_when_the_server_wants_one(fake_site, new_page):
    fake_site.api.key = KEY
    page = new_page(fake_site)
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(page.get_by_role("alert").first).to_have_text("This server asks for an API key.")
    for wrong, told in (("rr_wrong", "this key is not known here"), ("ключ", "only ASCII")):
        field.fill(wrong)
        field.press("Enter")
        expect(page.locator("#key-error")).to_contain_text(told)
    field.fill(KEY)
    field.press("Enter")
    _connected(page)
    _ask(page, PROMPT)
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 1]
    assert KEY not in page.url + page.content()
    page.reload()
    _connected(page)  # the tab remembers it
    page.get_by_role("button", name="Forget key").click()
    expect(page.locator("#key-error")).to_contain_text("asks for an API key")
    assert page.evaluate("sessionStorage.length") == 0


def test_no_key_field_where_none_is_wanted(fake_site, new_page):
    page = new_page(fake_site)
    _connected(page)
    expect(page.get_by_label("API key")).to_be_hidden()


CONTRASTS = """() => {
    const luminance = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        const color = getComputedStyle(element).backgroundColor;
        return /, 0\\)$/.test(color) ? ground(element.parentElement) : color;
    };
    const low = [];
    for (const element of document.querySelectorAll("body *")) {
        const texts = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!texts || !element.checkVisibility() || element.disabled) continue;
        const [a, b] = [getComputedStyle(element).color, ground(element)].map(luminance).sort((x, y) => y - x);
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) low.push([element.tagName, element.id, element.className, contrast]);
    }
    return { low, ground: luminance(getComputedStyle(document.body).backgroundColor) };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_narrow_screen_in_light_and_dark(fake_site, new_page, scheme):
    fake_site.api.put("default", [FactBody(id="long-" * 40, prompt=PROMPT, target="Strelsau", source="source" * 40)])
    page = new_page(fake_site, viewport={"width": 320, "height": 640}, color_scheme=scheme)
    _connected(page)
    _ask(page, PROMPT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    seen = page.evaluate(CONTRASTS)
    assert seen["low"] == []
    assert (seen["ground"] > 0.5) == (scheme == "light")
    page.get_by_role("button", name=re.compile("^Delete")).click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 320


@pytest.mark.skipif(not os.environ.get("RECIPE_RAY_SCREENSHOT"), reason="RECIPE_RAY_SCREENSHOT asks for no image")
def test_the_documentation_shows_it_as_it_is(site, new_page):
    page = new_page(site, viewport={"width": 1100, "height": 900})
    _connected(page)
    _add(page, "The president of Ruritania is", "Ada Lund", fact_id="president", source="gazette 2026-01")
    _add(page, PROMPT, "Strelsau", fact_id="capital", source="almanac 2026, page 12")
    _ask(page, PROMPT)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=IMAGE, full_page=True)
