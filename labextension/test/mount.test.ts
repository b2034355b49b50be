/** @jest-environment jsdom */

import "./page.js";
import { mount, type Panel } from "../src/panel/mount.js";
import { title } from "../src/panel/picker.js";
import type { StreamListener, Transport } from "../src/panel/transport.js";
import type { Run, TinkerEvent } from "../src/panel/types.js";
import { drawn, observing, purged } from "./page.js";
import { event, RUN, step, stepEvent } from "./steps.js";

/** Two runs with some steps. */
class FakeServer implements Transport {
  listener: StreamListener | null = null;
  asked = 0;
  runs: Run[] = ["b", "a"].map((run_id) => ({ ...RUN, run_id, last_step: step(3) }));

  async get<T>(path: string): Promise<T> {
    this.asked += 1;
    if (path === "status") return { status: null } as T;
    if (path.startsWith("runs?")) return { runs: this.runs } as T;
    if (path.includes("/steps?after=0")) return { steps: [1, 2, 3].map((id) => step(id)) } as T;
    if (path.includes("after=")) return { steps: [], events: [] } as T;
    const run = this.runs.find(({ run_id }) => path === `runs/${run_id}`);
    return (run ?? { status: "none", batches: [] }) as T;
  }

  async post<T>(): Promise<T> {
    return {} as T;
  }

  put = this.post;
  delete = this.post;

  follow(_: number, listener: StreamListener): () => void {
    this.listener = listener;
    listener.onState(true);
    return () => {
      this.listener = null;
    };
  }
}

/** What listens to the page itself, and not to a part of it that goes. */
const heeding = new Set<unknown>();

for (const target of [document, window]) {
  const { addEventListener, removeEventListener } = target;
  Object.assign(target, {
    addEventListener(...given: Parameters<typeof addEventListener>) {
      heeding.add(given[1]);
      addEventListener.apply(target, given);
    },
    removeEventListener(...given: Parameters<typeof removeEventListener>) {
      heeding.delete(given[1]);
      removeEventListener.apply(target, given);
    },
  });
}

let server: FakeServer;
let panel: Panel;
let told: (string | null)[];

const settle = () => jest.advanceTimersByTimeAsync(500);

async function begin(): Promise<void> {
  server = new FakeServer();
  told = [];
  panel = mount(document.body, {
    baseUrl: "/",
    run: "a",
    transport: server,
    onChange: ({ run }) => told.push(run),
  });
  await settle();
}

beforeEach(async () => {
  jest.useFakeTimers();
  document.body.replaceChildren();
  await begin();
});

afterEach(() => {
  panel.dispose();
  jest.useRealTimers();
});

const part = (name: string) => document.querySelector(`.jt-${name}`)!;
const texts = (selector: string) =>
  [...document.querySelectorAll(selector)].map(({ textContent }) => textContent);

test("a run's newest numbers and curves are shown, and go on", async () => {
  expect(part("legend").textContent).toContain(title(server.runs[1]!));
  expect(texts(".jt-value")[0]).toBe("3");
  server.listener!.onEvent(stepEvent(4));
  await settle();
  expect(texts(".jt-value")[0]).toBe("4");
  const loss = drawn.at(-1)!.traces.find(({ name }) => name === "loss")!;
  expect(loss.x).toEqual([1, 2, 3, 4]);
  expect(part("chart").getAttribute("aria-label")).toContain("step 4");
});

test("another run is chosen, and nothing is kept of what was said of the first", async () => {
  server.listener!.onEvent(event(9, "paused", { reason: "a" }) as TinkerEvent);
  await settle();
  expect(texts(".jt-list li").at(0)).toContain("paused: a");
  panel.select("b");
  await settle();
  expect(texts(".jt-list li")).toEqual([]);
  expect(part("legend").textContent).toContain(title(server.runs[0]!));
  expect(told.at(-1)).toBe("b");
});

test("each tab is opened, and closed, nothing of it is left", async () => {
  panel.dispose();
  const others = [...heeding]; // jsdom's own, which come with the first use of it
  await begin();
  for (const name of texts("[role=tab]")) {
    const tab = [...document.querySelectorAll<HTMLElement>("[role=tab]")].find(
      ({ textContent }) => textContent === name,
    )!;
    tab.click();
    await settle();
  }
  expect(observing.size).toBeGreaterThan(0);
  expect(heeding.size).toBeGreaterThan(others.length);
  const chart = part("chart");
  panel.dispose();
  const [changes, { asked }, drawings] = [told.length, server, drawn.length];
  expect(document.body.childElementCount).toBe(0);
  expect(server.listener).toBeNull();
  expect([observing.size, [...heeding]]).toEqual([0, others]);
  expect(purged).toContain(chart);
  await jest.advanceTimersByTimeAsync(60_000);
  expect([told.length, server.asked, drawn.length]).toEqual([changes, asked, drawings]);
  expect(jest.getTimerCount()).toBe(0);
  panel.dispose(); // a second time is nothing
});
