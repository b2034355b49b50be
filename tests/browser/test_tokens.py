"""The tab that shows the tokens of the last batches, while a cell trains on them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, expect
from tokenizers import Tokenizer

import jupyter_tinker
from tests.browser.lab import PANEL, Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# What is learned: the first line of each gives the task, and has no weight.
TEXTS = [
    ("Say hello.\n", "Grüße 👋, Welt!\n\tAnd <img src=x onerror=alert(1)>"),
    ("Cite the licence.\n", "Redistribution and use in source and binary forms are permitted."),
    ("Count.\n", "one two three four five six seven eight nine ten " * 12),
]
BEGIN, END = 1, 2  # <|im_start|>, <|im_end|>
# A loop of the SDK that writes down what it is answered.
LOOP = """\
import json, pathlib, time, tinker
from tinker import types
going = pathlib.Path({flag!r})
client = tinker.ServiceClient().create_lora_training_client(base_model="tiny", rank=4, seed=1)
client = client.result() if hasattr(client, "result") else client
data = [
    types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={{"target_tokens": tokens[1:], "weights": weights}},
    )
    for tokens, weights in {sequences!r}
]
with going.with_suffix(".answers").open("w") as answers:
    while going.exists():
        done = client.forward_backward(data, "cross_entropy")
        stepped = client.optim_step(types.AdamParams(learning_rate=2e-3)).result()
        told = [output["logprobs"].tolist() for output in done.result().loss_fn_outputs]
        print(json.dumps([stepped.metrics["optimizer_step"], told]), file=answers, flush=True)
        time.sleep(0.2)
print("the loop is over")
"""


@pytest.fixture(scope="session")
def sequences(tiny_model_dir: Path) -> list[tuple[list[int], list[float]]]:
    """Tokens, and a weight for each but the first."""
    tokenizer = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    made = []
    for prompt, answer in TEXTS:
        asked, said = tokenizer.encode(prompt).ids, tokenizer.encode(answer).ids
        tokens = [BEGIN, *asked, *said, END]
        made.append((tokens, [0.0] * len(asked) + [1.0] * (len(said) + 1)))
    return made


class Shown:
    """The tab of tokens of a panel."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.panel.get_by_role("tab", name="Tokens").click()
        self.tab = lab.panel.get_by_role("tabpanel", name="Tokens")
        expect(self.tab.locator(".jt-token").nth(30)).to_be_visible()

    @property
    def step(self) -> int:
        found = re.match(r"Step (\d+)", self.tab.locator(".jt-none").inner_text())
        assert found is not None
        return int(found[1])

    @property
    def texts(self) -> Locator:
        return self.tab.get_by_role("listbox")

    def tokens(self, place: int) -> Locator:
        return self.texts.nth(place).get_by_role("option")

    @property
    def about(self) -> str:
        return self.tab.locator(".jt-about").inner_text()

    def hold(self) -> None:
        self.tab.get_by_role("button", name="Hold").click()
        expect(self.tab.get_by_role("button", name="Hold")).to_have_attribute(
            "aria-pressed", "true"
        )


@pytest.fixture
def shown(lab: Lab, sequences: Any) -> Shown:
    """After some steps of a loop."""
    before = len(lab.runs())
    flag = lab.server.home / f"tokens-{before}"
    flag.touch()
    lab.flags.append(flag)
    lab.open(PANEL, LOOP.format(flag=str(flag), sequences=sequences))
    lab.run_all()
    until(lambda: len(lab.runs()) > before)
    until(lambda: len(lab.steps(lab.runs()[0])) >= 3 and lab.panel.count() and lab.step >= 3)
    return Shown(lab)


def told_to_the_client(shown: Shown, step: int) -> list[list[float]]:
    """The log-probabilities that the loop got for each of its sequences."""

    def find() -> Any:
        lines = shown.lab.flags[-1].with_suffix(".answers").read_text().split("\n")[:-1]
        return {int(number): told for number, told in map(json.loads, lines)}.get(step)

    answers: list[list[float]] = until(find)
    return answers


def test_the_losses_are_those_that_the_client_got(shown: Shown, sequences: Any) -> None:
    shown.hold()
    run, step = shown.lab.runs()[0], shown.step
    told = told_to_the_client(shown, step)
    means = [
        -np.mean([lp for lp, weight in zip(own, weights, strict=True) if weight])
        for own, (_, weights) in zip(told, sequences, strict=True)
    ]
    order = list(np.argsort(means)[::-1])
    expect(shown.texts).to_have_count(3)
    for place, number in enumerate(order):
        label = shown.texts.nth(place).get_attribute("aria-label") or ""
        assert label.startswith(f"Sequence {number} · mean loss ")
        loss = float(label.split("mean loss ")[1].split(" ")[0])
        assert loss == pytest.approx(means[number], rel=1e-3)
    # The server gives them with all their digits.
    ids = {
        batch["step"]: batch["id"]
        for batch in shown.lab.server.fetch(f"tinker/runs/{run}/batches?limit=100")[1]["batches"]
    }
    answer = shown.lab.server.fetch(f"tinker/runs/{run}/batches/{ids[step]}")[1]
    for row in answer["hardest"]:
        tokens, weights = sequences[row["number"]]
        assert row["tokens"] == tokens
        assert row["weights"][1:] == weights
        assert np.array_equal(np.float32(row["logprobs"][1:]), np.float32(told[row["number"]]))
        prompt, said = TEXTS[row["number"]]
        assert "".join(row["text"]) == f"<|im_start|>{prompt}{said}<|im_end|>"
    # Python shows the same.
    server = shown.lab.server
    seen = jupyter_tinker.run(run, url=server.url, key=server.key).tokens(step, length=1000)
    assert seen.sequences == answer["hardest"]
    # And the page says them of each token.
    place, number = 0, order[0]
    for at in (1, 5, len(sequences[number][0]) - 1):
        shown.tokens(place).nth(at).hover()
        said = re.search(r"loss (\S+) · probability", shown.about)
        assert said is not None, shown.about
        assert float(said[1]) == pytest.approx(-told[number][at - 1], rel=1e-3)
        assert f"token {sequences[number][0][at]}" in shown.about


def test_text_reads_as_it_was_written_and_is_no_html(
    shown: Shown, change_theme: Callable[[str], None]
) -> None:
    until(lambda: shown.step >= 40)  # so that there is something to see in its shades
    shown.hold()
    text = shown.texts.filter(has_text="Welt").inner_text()
    assert text.replace("◌", "") == (
        "<|im_start|>Say hello.↵\nGrüße 👋, Welt!↵\n⇥\tAnd <img src=x onerror=alert(1)><|im_end|>"
    )
    assert shown.lab.panel.locator("img").count() == 0
    idle = shown.texts.filter(has_text="Welt").locator('[data-kind~="idle"]')
    assert idle.count() > 2
    shown.tokens(0).nth(25).hover()
    shown.lab.screenshot("tokens-light")
    ground = "panel => getComputedStyle(panel).backgroundColor"
    light = shown.lab.panel.evaluate(ground)
    change_theme("JupyterLab Dark")
    until(lambda: shown.lab.panel.evaluate(ground) != light)
    shown.lab.screenshot("tokens-dark")
    change_theme("JupyterLab Light")
    shown.lab.command("application:toggle-left-area")
    shown.lab.page.set_viewport_size({"width": 760, "height": 1300})
    shown.lab.screenshot("tokens-narrow")


def test_the_newest_is_followed_unless_it_is_held_or_read(shown: Shown) -> None:
    first = shown.step
    until(lambda: shown.step > first)
    shown.tokens(0).nth(4).hover()
    reading = shown.step
    expect(shown.tab.locator(".jt-none")).to_contain_text("a newer one comes")
    assert shown.step == reading
    shown.lab.page.mouse.move(5, 5)
    until(lambda: shown.step > reading)
    shown.hold()
    held = shown.step
    last = shown.lab.steps(shown.lab.runs()[0])[-1]["step"]
    until(lambda: shown.lab.step > last + 20)
    assert shown.step == held
    picker = shown.tab.get_by_label("Batch")
    assert picker.evaluate("one => one.selectedOptions[0].text").startswith(f"Step {held} ")
    picker.select_option(index=0)
    until(lambda: shown.step > held)
    oldest = picker.locator("option").last.inner_text()
    picker.select_option(label=oldest)
    until(lambda: f"Step {shown.step} " in oldest)


def test_tokens_can_be_gone_through_by_keys(shown: Shown, sequences: Any) -> None:
    shown.hold()
    shown.texts.first.locator('[tabindex="0"]').focus()
    shown.lab.page.keyboard.press("Home")
    assert "the first token" in shown.about
    shown.lab.page.keyboard.press("ArrowRight")
    focused = shown.tab.locator(":focus")
    assert focused.get_attribute("aria-label") == shown.about
    number = int((shown.texts.first.get_attribute("aria-label") or "").split()[1])
    assert f"token {sequences[number][0][1]} " in shown.about
    shown.lab.page.keyboard.press("End")
    assert "special" in shown.about
    shown.lab.page.keyboard.press("Tab")
    second = shown.texts.nth(1)
    expect(second.locator(":focus")).to_have_count(1)
    assert shown.about == second.locator(":focus").get_attribute("aria-label")


def test_nothing_is_asked_while_the_tab_is_closed(shown: Shown) -> None:
    asked: list[str] = []
    shown.lab.page.on("request", lambda request: asked.append(request.url))
    first = shown.step
    until(lambda: shown.step > first)
    assert any("/batches" in url for url in asked)
    shown.lab.panel.get_by_role("tab", name="What happened").click()
    shown.lab.page.wait_for_timeout(500)  # for what was under way
    asked.clear()
    now = shown.lab.step
    until(lambda: shown.lab.step > now + 20)
    assert not any("/batches" in url for url in asked)
