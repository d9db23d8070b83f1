"""The page of a reading kit: it gives nothing away, and works in a browser without a network."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.studio.browsing import CHROMIUM, FLAGS, PATIENCE_MS
from reading_kits import kit
from sfumato.errors import AuditError
from sfumato.lab.audit.readings import score_readings
from sfumato.lab.report.reading_kit import KEY, PAGE, render_kit, write_kit


def questions_of(page: str) -> list[dict[str, Any]]:
    (found,) = re.findall(r"QUESTIONS = (\[.*?\]);\n", page)
    return list(json.loads(found))


def pixels(text: str) -> Any:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert image.info == {}, "no metadata"
        return np.asarray(image)


def test_the_page_holds_the_images_and_nothing_of_the_key(tmp_path: Path):
    made = kit(questions=20)
    page = render_kit(made)
    asked = questions_of(page)
    assert len(asked) == 20
    for question, shown, candidates in zip(asked, made.shown, made.candidates, strict=True):
        assert set(question) == {"shown", "candidates"}
        assert (pixels(question["shown"]) == shown.permute(1, 2, 0).numpy()).all()
        for text, image in zip(question["candidates"], candidates, strict=True):
            assert (pixels(text) == image.permute(1, 2, 0).numpy()).all()
        assert question["shown"] not in question["candidates"], "not even an image that is shown as it is"
    rest = page.replace(json.dumps(asked), "")
    for word in (made.key.attacker, made.key.obfuscator, "label only", 'answer"', made.key.test_sha256):
        assert word not in rest
    assert not re.search(r"https?://|//[a-z]|src=|href=\"", rest), "it loads nothing"
    write_kit(made, tmp_path / "kit")
    assert (tmp_path / "kit" / PAGE).read_text(encoding="utf-8") == page
    with pytest.raises(AuditError, match="holds a reading kit already"):
        write_kit(kit(questions=20, seed=1), tmp_path / "kit")


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_person_answers_and_the_answers_are_scored(tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api")
    made = kit(questions=10)
    write_kit(made, tmp_path / "kit")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--no-sandbox"])
        page = browser.new_context(accept_downloads=True).new_page()
        page.set_default_timeout(PATIENCE_MS)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((tmp_path / "kit" / PAGE).as_uri())
        for number, entry in enumerate(made.key.questions[:6]):
            assert page.locator("#place").inner_text() == f"Question {number + 1} of 10"
            page.locator("#candidates button").nth(entry.answer).click()
        page.reload()
        assert page.locator("#place").inner_text() == "Question 7 of 10", "a page that was closed goes on"
        page.keyboard.press(str(made.key.questions[6].answer + 1))
        page.locator("#unknown").click()
        page.locator("#back").click()
        page.locator("#unknown").click()
        for entry in made.key.questions[8:]:
            page.locator("#candidates button").nth(entry.answer).click()
        page.locator("#reader").fill("Anna 1")
        with page.expect_download() as download:
            page.locator("#save").click()
        download.value.save_as(tmp_path / "answers.json")
        browser.close()
    assert wrong == [] and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    said = json.loads((tmp_path / "answers.json").read_text())
    expected = [None if place == 7 else entry.answer for place, entry in enumerate(made.key.questions)]
    assert said == {"schema": "sfumato.readings/1", "kit": made.key.kit, "reader": "Anna 1", "answers": expected}
    found = score_readings(tmp_path / "kit" / KEY, [tmp_path / "answers.json"])
    assert sum(score.correct * score.answers for score in found.scores) == pytest.approx(9.25)
