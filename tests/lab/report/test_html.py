import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from fakes import CHECK, changed, fake_audit, fake_images, point, trial
from sfumato.errors import AuditError
from sfumato.lab.report.html import render, write_report


class Page(HTMLParser):
    """Tags with their attributes, and the text that people read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def plain(**changes):
    """An audit without plots, which take time to draw."""
    trials = [one | {"curve": []} for one in fake_audit().as_json["trials"]]
    return fake_audit(**({"frontier": [], "trials": trials} | changes))


@pytest.fixture(scope="module")
def audit():
    failed = trial("deep image prior", "white-box", None, reason="the loss is <nan>")
    left_out = trial("adversarial", "no-pairs", None, status="not run", reason="not in this budget")
    return changed(fake_audit(mse=0.02), more_trials=[failed, left_out])


@pytest.fixture(scope="module")
def page(audit):
    return Page(render(audit, fake_images()))


def test_every_attacker_is_there_and_the_failed_ones_say_why(page, audit):
    for made in audit.trials:
        assert made.attacker in page.text
    assert "failed : the loss is <nan>" in page.text
    assert "not run : not in this budget" in page.text
    assert "4 done, 1 failed, 1 not run" in page.text


def test_the_verdict_comes_first_then_the_rest_in_order(page, audit):
    headings = [
        "Audit of cifar10-fake", "One. Two. Three.", "Key figures", "Does offloading pay off?",
        "What an eavesdropper sees", "Best and worst cases", "Attackers and trials", "Learning curves",
        "Beyond the image",
        "Would this audit have noticed?", "What the error means", "Certificate", "How it was made",
        "What an obfuscator is not",
    ]  # fmt: skip
    places = [page.text.find(heading) for heading in headings]
    assert -1 not in places
    assert places == sorted(places)


def test_nothing_is_loaded_and_nothing_runs(page):
    assert not page.all("script")
    assert not page.all("link")
    loaded = [tag.get("src") or tag.get("srcset") for name in ("img", "source", "iframe") for tag in page.all(name)]
    assert loaded
    assert all(source.startswith("data:image/") for source in loaded)
    assert not re.search(r"https?://|@import|url\(", page.html)


def test_names_are_escaped(audit):
    nasty = "<script>alert(1)</script>"
    frontier = [point(nasty, 0.5, 0.5, "this").as_json]
    names = {"target": {"name": nasty}, "data": {"source": nasty}, "frontier": frontier}
    made = changed(audit, **names, more_trials=[trial(nasty, "white-box", 0.03)])
    page = Page(render(made, replace(fake_images(), by_attacker={nasty: fake_images().originals})))
    assert not page.all("script")
    assert page.text.count("alert(1)") >= 5


@pytest.mark.parametrize(
    "missing",
    [
        {"utility": None},
        {"identification": [], "attributes": []},
        {"sanity_checks": []},
        {"references": []},
        {"best": None, "trials": [trial("U-Net", "pairs", None)]},
        {"trials": [trial("least squares", "pairs", 0.03, curve=[], flattened=None)]},
    ],
    ids=lambda missing: "-".join(missing),
)
def test_what_is_missing_does_not_stop_the_page(missing):
    page = Page(render(plain(**missing), None))
    assert page.open == []
    assert "None" not in page.text
    assert "undefined" not in page.text.lower()


def test_without_a_local_classifier_the_page_says_so():
    made = plain(utility={"accuracy_local": None})
    assert "not measured" in Page(render(made, None)).text


def test_a_certificate_or_why_there_is_none():
    assert "There is none, because the obfuscator is deterministic." in Page(render(plain(), None)).text
    certificate = {
        "dfil": 1.5, "mse_bound_unbiased": 0.03, "mse_bound_any": None, "rate_bits": 8.4,
        "top1_bounds": {"100": 0.25}, "images": 64, "jacobians": 4, "assumptions": ["Noise is drawn anew."],
    }  # fmt: skip
    text = Page(render(plain(certificate=certificate), None)).text
    for words in ("8.4", "0.0300", "25.0 %", "Noise is drawn anew."):
        assert words in text
    assert "There is none" not in text


def test_the_best_trial_is_marked_once_for_each_measure(page):
    assert len([tag for tag in page.all("span") if tag.get("class") == "best"]) == 4 + 1  # and once in the explanation


def test_the_best_attacker_stands_between_the_references_that_enclose_it(page):
    first, mine, last = (page.text.find(name, page.text.find("What the error means")) for name in
                         ("label and 4 more bits", "this audit's best attacker, U-Net", "8x8 block means"))  # fmt: skip
    assert -1 < first < mine < last


def test_sanity_checks_show_pass_fail_and_not_run():
    made = plain(sanity_checks=[CHECK | {"passed": passed} for passed in (True, False, None)])
    text = Page(render(made, None)).text
    after = text[text.find("Would this audit") :]
    assert re.findall(r"undone (passed|failed|not run) MSE 0.0012 MSE below", after) == ["passed", "failed", "not run"]


def test_images_are_the_images_given(page):
    images = fake_images()
    source = next(tag["src"] for tag in page.all("img") if "original images" in (tag["alt"] or ""))
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
    second = strip[:, 34:66, :3]
    assert np.array_equal(second.transpose(2, 0, 1), images.originals[1].numpy())


def test_what_payload_may_be_small_and_grey():
    grey = replace(fake_images(), payload_preview=torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert "The payload" in Page(render(plain(), grey)).text


def test_it_is_accessible(page):
    assert all(tag.get("alt") for tag in page.all("img"))
    assert all(tag.get("scope") in ("row", "col") for tag in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("meta")[1]["name"] == "viewport"


def test_figures_have_their_digits(page):
    for text in ("0.0200", "15.00 dB", "0.660", "90.0 %", "0.65"):
        assert text in page.text


def test_the_file_is_written_and_the_same_each_time(tmp_path, audit):
    path = tmp_path / "audit.html"
    write_report(audit, None, path)
    first = path.read_bytes()
    write_report(audit, None, path)
    assert path.read_bytes() == first


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(AuditError, match="cannot be written"):
        write_report(plain(), None, tmp_path / "no" / "audit.html")
