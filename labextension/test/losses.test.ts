import { Losses } from "../src/lab/losses.js";
import type { Step } from "../src/panel/types.js";
import { step } from "./steps.js";

/** A server of many runs, whose steps are numbered together. */
class Server {
  asked: string[] = [];
  down = false;
  constructor(readonly rows: Step[]) {}

  async get<T>(path: string): Promise<T> {
    this.asked.push(path);
    if (this.down) throw new Error("down");
    const [, run, after] = /runs\/(\w+)\/steps\?after=(\d+)/.exec(path)!;
    const steps = this.rows.filter((row) => row.run_id === run && row.id > Number(after));
    return { steps } as T;
  }
}

let drawn = 0;
const made = (server: Server, most = 10) =>
  new Losses(
    server,
    () => most,
    () => {
      drawn += 1;
    },
  );
const settle = () => new Promise((resolve) => setTimeout(resolve, 0));
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);
const losses = (...ids: number[]) => ids.map((id) => 1 / id);

beforeEach(() => {
  drawn = 0;
});

test("the last steps are read once, and then those of the stream come", async () => {
  const server = new Server(range(1, 41).map((id) => step(id)));
  const kept = made(server);
  kept.want("a", server.rows[39]!);
  await settle();
  expect(kept.of("a")).toEqual(losses(...range(31, 41)));
  expect(drawn).toBe(1);
  kept.want("a", server.rows[39]!);
  kept.add(step(41));
  kept.add(step(41));
  await settle();
  expect(kept.of("a")).toEqual(losses(...range(32, 42)));
  expect(server.asked).toHaveLength(1);
});

test("beside other runs it looks further back, once", async () => {
  const rows = range(1, 201).map((id) => step(id, id % 4 ? { run_id: "b" } : { step: id / 4 }));
  const kept = made(new Server(rows));
  kept.want("a", rows[199]!);
  await settle();
  expect(kept.of("a")).toEqual(losses(...range(41, 51).map((n) => 4 * n)));
});

test("a step that comes while the past is read stands behind it, once", async () => {
  const rows = range(1, 9).map((id) => step(id));
  const kept = made(new Server(rows));
  kept.want("a", rows[7]!);
  kept.add(step(8));
  kept.add(step(9));
  await settle();
  expect(kept.of("a")).toEqual(losses(...range(1, 10)));
});

test("a run without a step needs no question", async () => {
  const server = new Server([]);
  const kept = made(server);
  kept.want("a", null);
  kept.add(step(5));
  await settle();
  expect(server.asked).toEqual([]);
  expect(kept.of("a")).toEqual(losses(5));
});

test("what failed is asked again, and nothing at all where no sparkline is wanted", async () => {
  const server = new Server([step(1)]);
  server.down = true;
  const kept = made(server);
  kept.want("a", step(1));
  await settle();
  server.down = false;
  kept.want("a", step(1));
  await settle();
  expect(kept.of("a")).toEqual([1]);
  const none = made(server, 0);
  none.want("a", step(1));
  await settle();
  expect(server.asked).toHaveLength(2);
  expect(none.of("a")).toEqual([]);
});

test("memory is bounded", () => {
  const kept = made(new Server([]));
  kept.want("a", null);
  for (const id of range(1, 5_000)) kept.add(step(id));
  expect(kept.of("a")).toEqual(losses(...range(4_990, 5_000)));
  const points = (kept as unknown as { points: Map<string, unknown[]> }).points.get("a")!;
  expect(points.length).toBeLessThan(30);
});
