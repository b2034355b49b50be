/** @jest-environment jsdom */

import { RunActions } from "../src/panel/actions.js";
import { Notices } from "../src/panel/notices.js";
import { title } from "../src/panel/picker.js";
import { RequestFailed, type Transport } from "../src/panel/transport.js";
import { Watched } from "../src/panel/watched.js";
import { RUN } from "./steps.js";

/** Answers when it is told to. */
class SlowServer {
  readonly asked: [string, unknown][] = [];
  private readonly waiting: { resolve(value: unknown): void; reject(why: Error): void }[] = [];

  async get(path: string): Promise<unknown> {
    return { ...RUN, run_id: path.replace("runs/", "") };
  }

  post(path: string, body: unknown): Promise<unknown> {
    this.asked.push([path, body]);
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }));
  }

  async answer(value: object): Promise<void> {
    const { resolve, reject } = this.waiting.shift()!;
    if (value instanceof Error) reject(value);
    else resolve(value);
    await new Promise((done) => setTimeout(done));
  }
}

let server: SlowServer;
let notices: Notices;
let runs: Record<string, Watched>;
let current: Watched | null;
let actions: RunActions;

beforeEach(() => {
  // jsdom has no dialogs yet.
  HTMLDialogElement.prototype.showModal = () => {};
  HTMLDialogElement.prototype.close = function () {
    this.dispatchEvent(new Event("close"));
  };
  server = new SlowServer();
  notices = new Notices();
  const transport = server as unknown as Transport;
  const watched = (id: string) => {
    const made = new Watched(id, transport, () => {});
    made.run = { ...RUN, run_id: id };
    return made;
  };
  runs = { a: watched("a"), b: watched("b") };
  current = runs.a!;
  actions = new RunActions(
    transport,
    () => current,
    notices,
    () => document.body,
  );
  document.body.replaceChildren();
});

const dialog = () => document.querySelector("dialog")!;
const press = (text: string) =>
  [...dialog().querySelectorAll("button")].find((one) => one.textContent === text)!.click();
const said = () => notices.element.textContent;

test("a dialog names its run, and what is confirmed is done to that one", () => {
  actions.ask(12, 1);
  const names = dialog().getAttribute("aria-labelledby")!.split(" ");
  const named = names.map((id) => document.getElementById(id)!.textContent);
  expect(named).toEqual(["Step 12 of branch 1", title(runs.a!.run!)]);
  current = runs.b!; // as when a new run starts, and is followed
  press("Rewind");
  expect(server.asked).toEqual([["runs/a/rewind", { step: 12, branch: 1 }]]);
  expect(document.querySelector("dialog")).toBeNull();
});

test("what came of it is said under its run only", async () => {
  actions.fork(3, null);
  press("Fork");
  expect(said()).toBe("Making a checkpoint of step 3 …");
  await server.answer({ path: "tinker://a" });
  expect(said()).toBe("Start a run from tinker://a");

  for (const answer of [{ path: "tinker://a" }, new RequestFailed("It cannot be.", 400)]) {
    actions.fork(3, null);
    press("Fork");
    current = runs.b!;
    notices.clear();
    await server.answer(answer);
    expect(said()).toBe("");
    current = runs.a!;
  }
  void actions.change({ paused: true });
  await server.answer(new RequestFailed("It cannot be.", 400));
  expect(said()).toBe("It cannot be.");
});

test("a change is of the run that is shown, which is looked at again", async () => {
  void actions.change({ paused: true });
  expect(server.asked).toEqual([["runs/a/controls", { paused: true }]]);
  const before = runs.a!.run;
  await server.answer({});
  expect(runs.a!.run).not.toBe(before);
  current = null;
  await actions.change({ paused: false });
  actions.ask(1, null);
  expect(server.asked).toHaveLength(1);
  expect(document.querySelector("dialog")).toBeNull();
});
