import { Batches, type BatchView, type Hard } from "../src/panel/batches.js";
import { about, counts, hardestOf, heading, shade, written } from "../src/panel/shades.js";
import { RequestFailed, type Transport } from "../src/panel/transport.js";
import { Watched } from "../src/panel/watched.js";
import { event, RUN } from "./steps.js";

const HARD: Hard = {
  number: 7,
  loss_mean: 3.25,
  counted: 3,
  length: 5,
  start: 0,
  weighted_by: "weights",
  tokens: [11, 12, 13, 14, 2],
  text: ["<b>", "Gr", "", "ü\n", "<|end|>"],
  special: [4],
  logprobs: [null, -0.25, -3, -12, -1],
  weights: [null, 1, 0.5, 1, 0],
  losses: [null, 0.25, 1.5, 12, 0],
  sampled_logprobs: null,
};

test("equal steps of loss are equal steps of shade, up to the darkest", () => {
  expect([null, 0, -1.5, -3, -6, -60, 0.1].map(shade)).toEqual([0, 0, 0.25, 0.5, 1, 1, 0]);
  expect(shade(undefined)).toBe(0);
});

test("what would not be seen is written as a sign", () => {
  expect(written(" a\n", 1)).toBe(" a↵\n");
  expect(written("\t\r\u0000\u001b\u007f", 1)).toBe("⇥\t␍␀␛␡");
  expect(written("", 1)).toBe("◌");
  expect(written(null, 128001)).toBe("[128001]");
  expect(written("<img onerror=1>", 1)).toBe("<img onerror=1>");
});

test("what is said of a token are its numbers, and nothing that is not known", () => {
  expect(about(HARD, 0)).toBe('"<b>", token 11 · the first token, which nothing predicts');
  expect(about(HARD, 1)).toBe(
    '"Gr", token 12 · loss 0.25 · probability 77.9 % · weight 1 · adds 0.25 to the loss',
  );
  expect(about(HARD, 2)).toContain("part of a character");
  expect(about(HARD, 3)).toContain('"ü\\n", token 14 · loss 12 · probability 6.1e-4 %');
  expect(about(HARD, 4)).toContain("special · loss 1 · probability 36.8 % · does not count");
  expect(about(HARD, 4)).not.toContain("adds");
  const rl = { ...HARD, weighted_by: "advantages", weights: [null, -2, 1, 1, 0], losses: null };
  const sampled = { ...rl, sampled_logprobs: [null, -0.5, 0, 0, 0] };
  expect(about(sampled, 1)).toContain("advantage -2 · probability when sampled 60.7 %");
  const bare = { ...HARD, text: null, logprobs: null, losses: null };
  expect(about(bare, 1)).toBe("token 12 · weight 1");
});

test("tokens count by weight, and a sequence says how many do and where it was cut", () => {
  expect(HARD.tokens.map((_, at) => counts(HARD, at))).toEqual([false, true, true, true, false]);
  expect(counts({ ...HARD, logprobs: null }, 1)).toBe(false);
  expect(heading(HARD)).toBe("Sequence 7 · mean loss 3.25 · 3 of 5 tokens count");
  expect(heading({ ...HARD, start: 10, length: 99, loss_mean: null })).toContain(
    "no loss · 3 of 99 tokens count · here are tokens 10 to 14",
  );
  expect(hardestOf(HARD)).toBe(3);
  expect(hardestOf({ ...HARD, logprobs: null })).toBe(0);
});

/** A server with batches, newest first, that counts what it is asked. */
class Stage implements Transport {
  asked: string[] = [];
  stored: number[] = [1];
  unstepped = 0;
  refusal: Error | null = null;
  read = false;
  open = true;
  changes = 0;
  readonly watched = new Watched("a", this, () => {});
  readonly batches = new Batches(
    () => {
      this.changes += 1;
    },
    () => this.read,
    () => this.open,
  );

  async get<T>(path: string): Promise<T> {
    this.asked.push(path.replace(/^runs\/\w\/batches\/?|\?.*/g, ""));
    if (this.refusal) throw this.refusal;
    const id = Number(/batches\/(\d+)/.exec(path)?.[1]);
    if (id) return this.batch(id) as T;
    return { batches: this.stored.map((one) => this.batch(one)), problem: null } as T;
  }

  post<T>(): Promise<T> {
    throw new Error("nothing is changed");
  }

  put<T>(): Promise<T> {
    throw new Error("nothing is changed");
  }

  delete<T>(): Promise<T> {
    throw new Error("nothing is changed");
  }

  follow(): () => void {
    return () => {};
  }

  batch(id: number): BatchView {
    const stepped = id !== this.unstepped;
    const numbers = { id, step: id, branch: 0, stepped, sequences: 1, loss_mean: 1 };
    return { ...numbers, loss_fn: "cross_entropy", hardest: [HARD], problem: null };
  }

  /** The run makes steps, and the panel hears of it. */
  async step(...ids: number[]): Promise<void> {
    this.stored = [...ids.reverse(), ...this.stored];
    this.watched.run = RUN;
    this.watched.events.push(event(this.stored[0]!, "resumed"));
    await this.show();
  }

  async show(live = true): Promise<void> {
    this.batches.show(this.watched, live);
    await jest.advanceTimersByTimeAsync(0);
  }
}

beforeEach(() => jest.useFakeTimers());
afterEach(() => jest.useRealTimers());

const passes = (milliseconds: number) => jest.advanceTimersByTimeAsync(milliseconds);

test("the newest batch is followed, and asked for no more than every two seconds", async () => {
  const stage = new Stage();
  await stage.show();
  expect(stage.asked).toEqual(["", "1"]);
  expect(stage.batches.view?.id).toBe(1);
  for (let id = 2; id <= 40; id++) {
    await stage.step(id);
    await passes(100);
  }
  expect(stage.asked.length).toBeLessThanOrEqual(6);
  await passes(2000);
  expect(stage.batches.view?.id).toBe(40);
  const asked = stage.asked.length;
  await stage.show();
  await passes(10_000);
  expect(stage.asked.length).toBe(asked);
});

test("a batch that is held stays, and comes at once", async () => {
  const stage = new Stage();
  await stage.step(2, 3);
  expect(stage.batches.view?.id).toBe(3);
  stage.batches.pick(2);
  await passes(0);
  expect(stage.batches.view?.id).toBe(2);
  await stage.step(4);
  await passes(5000);
  expect(stage.batches.view?.id).toBe(2);
  expect(stage.batches.listed[0]?.id).toBe(4);
  expect(stage.batches.waits).toBe(false);
  stage.batches.pick(null);
  await passes(0);
  expect(stage.batches.view?.id).toBe(4);
});

test("what is being read is not replaced, until it is left", async () => {
  const stage = new Stage();
  await stage.show();
  stage.read = true;
  await stage.step(2);
  await passes(2000);
  expect([stage.batches.view?.id, stage.batches.waits]).toEqual([1, true]);
  stage.read = false;
  stage.batches.again();
  await passes(2000);
  expect([stage.batches.view?.id, stage.batches.waits]).toEqual([2, false]);
});

test("a batch whose step is still to come is read again", async () => {
  const stage = new Stage();
  stage.unstepped = 1;
  await stage.show();
  expect(stage.batches.view?.stepped).toBe(false);
  stage.unstepped = 0;
  await stage.step();
  await passes(2000);
  expect(stage.batches.view?.stepped).toBe(true);
});

test("nothing is asked while the tab is closed, the server is away, or there is no run", async () => {
  const stage = new Stage();
  stage.batches.show(null, true);
  await stage.show(false);
  expect(stage.asked).toEqual([]);
  await stage.show();
  stage.open = false;
  await stage.step(2);
  await passes(10_000);
  expect(stage.asked.length).toBe(2);
  stage.open = true;
  await stage.show();
  expect(stage.batches.view?.id).toBe(2);
  stage.batches.dispose();
  await passes(10_000);
  expect(stage.asked.length).toBe(4);
});

test("another run begins anew, whatever is still under way", async () => {
  const stage = new Stage();
  await stage.show();
  stage.batches.pick(1);
  const other = new Watched("b", stage, () => {});
  stage.batches.show(other, true);
  expect([stage.batches.view, stage.batches.picked]).toEqual([null, null]);
  await passes(2000);
  expect(stage.batches.view?.id).toBe(1);
  expect(stage.batches.picked).toBeNull();
});

test("what the server refuses is said, and asked again only when there is news", async () => {
  const stage = new Stage();
  stage.refusal = new RequestFailed("They are gone.", 404);
  await stage.show();
  expect(stage.batches.problem).toBe("They are gone.");
  await stage.show();
  await passes(9000);
  expect(stage.asked.length).toBe(1);
  stage.refusal = null;
  await stage.step(2);
  expect([stage.batches.problem, stage.batches.view?.id]).toEqual([null, 2]);
});
