"""How fast the panel is in a real browser, in JupyterLab on a real server: from a step to a painted
point, from the slider to the server, and what it costs the page."""

from __future__ import annotations

import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import CDPSession, Page, sync_playwright

from tests.bench import ours
from tests.bench.noise import Noise
from tests.bench.report import Report
from tests.browser.chromium import chromium
from tests.browser.lab import CONFIG, LAB, PANEL, Lab, prepare, until
from tests.servers import Server

_SCRIPT = (Path(__file__).parent / "panel.js").read_text()
_EXTENSIONS = {"jupyter_tinker": True, "tests.bench.run_source": True}


def panel(model: Path, report: Report) -> None:
    """Latencies, processor time and memory of a page that shows a run."""
    config = {**CONFIG, "ServerApp": {"jpserver_extensions": _EXTENSIONS}}
    with ours.server(model, app=LAB, config=config, prepare=prepare) as server, _page() as page:
        bench = _Bench(server, page)
        report.patience.wait()
        with Noise() as noise:
            seen = [bench.show() for _ in range(6)][1:]  # the first finds a cold browser
        what = "cell run until the curves are painted, warm browser"
        report.add("panel", what, seen, "ms", goal="< 1500", others=noise.cores)
        bench.watch()
        _latency(report, bench)
        _slider(report, bench)
        _processor(report, bench)
        _long(report, bench)
        bench.lab.close()


def _latency(report: Report, bench: _Bench) -> None:
    run = bench.new_run(200)
    bench.wait_for(run, 200)
    with Noise() as noise:
        bench.train(run, rate=7.3, count=150)  # in no step with the screen
    rows = bench.lab.steps(run)[200:]
    delays = []
    painted = bench.page.evaluate("tinkerBench.painted")
    for row in rows:
        seen = [at for step, at in painted if step >= row["step"] and at >= row["time"]]
        delays.append(1e3 * (min(seen) - row["time"]))
    _shares(report, "step done until its point is painted", delays, "< 300", noise.cores)


def _slider(report: Report, bench: _Bench) -> None:
    run = bench.lab.runs()[0]
    bench.lab.slider.focus()
    with Noise() as noise:
        for _ in range(40):
            bench.page.keyboard.press("ArrowRight")
            bench.page.wait_for_timeout(400)
    events = bench.server.fetch(f"tinker/runs/{run}/events")[1]["events"]
    changed = [event["time"] for event in events if event["kind"] == "control_changed"]
    touched = bench.page.evaluate("tinkerBench.touched")
    assert len(changed) == len(touched) == 40, (len(changed), len(touched))
    delays = [1e3 * (there - here) for here, there in zip(touched, changed, strict=True)]
    _shares(report, "slider moved until the server has it", delays, "< 100", noise.cores)


def _processor(report: Report, bench: _Bench, seconds: int = 20) -> None:
    """The renderer's seconds, which are those of all that the page does."""
    run = bench.new_run(20_000)
    bench.wait_for(run, 20_000)
    bench.page.wait_for_timeout(2000)
    idle = bench.busy(lambda: bench.page.wait_for_timeout(1e3 * seconds))
    report.add(
        "panel", "page's CPU, 20,000 points, no steps", [100 * idle / seconds], "% of a core"
    )
    drawn = bench.page.evaluate("tinkerBench.drawn")
    with Noise() as noise:
        used = bench.busy(lambda: bench.train(run, rate=10, count=10 * seconds))
    share = 100 * used / seconds
    what = "page's CPU, 20,000 points, 10 steps/s"
    report.add("panel", what, [share], "% of a core", goal="< 10", others=noise.cores)
    drawn = bench.page.evaluate("tinkerBench.drawn") - drawn
    report.add("panel", "  drawings a second", [drawn / seconds], "1/s")


def _long(report: Report, bench: _Bench) -> None:
    """A history of 100,000 steps."""
    before = bench.heap()
    run = bench.new_run(100_000)
    began = time.perf_counter()
    bench.wait_for(run, 100_000)
    report.add("panel", "100,000 steps until they are drawn", [time.perf_counter() - began], "s")
    report.add("panel", "  memory of the page for them", [bench.heap() - before], "MiB")
    costs = [bench.redraw(0.5 + 0.04 * number) for number in range(10)]
    report.add("panel", "  redraw, main thread", costs, "ms")
    used = bench.busy(lambda: bench.train(run, rate=10, count=100))
    report.add("panel", "  page's CPU at 10 steps/s", [100 * used / 10], "% of a core")
    bench.lab.command("notebook:clear-all-cell-outputs")
    until(lambda: bench.page.evaluate("globalThis[Symbol.for('jupyter_tinker.feeds')].size") == 0)
    bench.page.wait_for_timeout(1000)
    report.add("panel", "  left of it when the output is closed", [bench.heap() - before], "MiB")


def _shares(report: Report, what: str, times: list[float], goal: str, others: float) -> None:
    times = sorted(times)
    for name, share, limit in (("p50", 0.5, ""), ("p95", 0.95, goal), ("max", 1.0, "")):
        value = times[min(len(times) - 1, int(share * len(times)))]
        report.add("panel", f"{what}, {name}", [value], "ms", goal=limit, others=others)


class _Bench:
    """A notebook with a panel, and what its page tells."""

    def __init__(self, server: Server, page: Page) -> None:
        self.server = server
        self.page = page
        self.lab = Lab(page, server)
        self._cdp: CDPSession = page.context.new_cdp_session(page)
        self._browser = page.context.browser.new_browser_cdp_session()  # type: ignore[union-attr]
        self._cdp.send("Performance.enable")
        self.new_run(2000)
        page.add_init_script(_SCRIPT)
        self.lab.open(PANEL)

    def show(self) -> float:
        """Milliseconds from running the panel's cell until its curves are painted."""
        self.page.evaluate("tinkerBench.show(0)")
        self.page.wait_for_function("tinkerBench.visible !== null")
        return float(self.page.evaluate("tinkerBench.visible"))

    def watch(self) -> None:
        self.page.evaluate("tinkerBench.watch()")

    def new_run(self, steps: int) -> str:
        run: str = self._ask(f"bench/run?steps={steps}")["run"]
        return run

    def train(self, run: str, *, rate: float, count: int) -> None:
        """Let a run make steps, and the page go on meanwhile."""
        query = urllib.parse.urlencode({"run": run, "rate": rate, "count": count})
        asked = threading.Thread(target=self._ask, args=(f"bench/train?{query}",))
        asked.start()
        while asked.is_alive():
            self.page.wait_for_timeout(200)
        self.page.wait_for_timeout(1000)

    def wait_for(self, run: str, step: int) -> None:
        """Until the panel, which follows the newest run, has drawn it up to a step."""
        assert self.lab.runs()[0] == run
        until(lambda: self.lab.drawn_steps()[-1:] == [step])

    def busy(self, meanwhile: Any) -> float:
        """The processor's seconds of Chromium's renderers while something happens."""
        before = self._renderers()
        meanwhile()
        return self._renderers() - before

    def heap(self) -> float:
        """MiB of JavaScript's objects and buffers that are in use."""
        for _ in range(3):
            self._cdp.send("HeapProfiler.collectGarbage")
        used = self._cdp.send("Runtime.getHeapUsage")
        return (used["usedSize"] + used.get("backingStorageSize", 0)) / 2**20

    def redraw(self, smoothing: float) -> float:
        """Milliseconds of the main thread that a drawing of everything takes."""
        drawn = self.page.evaluate("tinkerBench.drawn")
        before = self._task_seconds()
        slide = (
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }"
        )
        self.lab.panel.locator(".jt-options input[type=range]").evaluate(slide, smoothing)
        self.page.wait_for_function("drawn => tinkerBench.drawn > drawn", arg=drawn)
        return 1e3 * (self._task_seconds() - before)

    def _task_seconds(self) -> float:
        metrics = self._cdp.send("Performance.getMetrics")["metrics"]
        return next(float(m["value"]) for m in metrics if m["name"] == "TaskDuration")

    def _renderers(self) -> float:
        processes = self._browser.send("SystemInfo.getProcessInfo")["processInfo"]
        return sum(float(p["cpuTime"]) for p in processes if p["type"] == "renderer")

    def _ask(self, path: str) -> Any:
        headers = {"Authorization": f"token {self.server.token}"}
        status, answer = self.server.fetch(path, key="", headers=headers)
        assert status == 200, answer
        return answer


@contextmanager
def _page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        path, _ = chromium()
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        context = browser.new_context(viewport={"width": 1300, "height": 1150})
        context.set_default_timeout(120_000)
        yield context.new_page()
        browser.close()
