import { Board } from "../src/lab/board.js";
import { DEFAULTS, readSettings } from "../src/lab/settings.js";
import { doubled, halved, said } from "../src/lab/steer.js";
import { LabTransport } from "../src/lab/transport.js";
import type { ListedRun, Status } from "../src/lab/types.js";
import { memoryWords, ownerWords, statusWords } from "../src/lab/words.js";
import type { Transport } from "../src/panel/transport.js";
import { event, RUN, step, stepEvent } from "./steps.js";

const LISTED: ListedRun = { ...RUN, session_id: "s", owner: "jupyter", lora: { rank: 4 } };
const ENGINE: Status = {
  engine: "running",
  busy_seconds: 1,
  status: {
    device: "cpu",
    dtype: "float32",
    attention: "sdpa",
    reason: "there is no GPU",
    memory_bytes: 2 ** 29,
    base_models: [],
    runs: [],
  },
};

describe("the settings", () => {
  test("are as at first where nothing is said", () => {
    expect(readSettings({})).toEqual(DEFAULTS);
  });

  test("are what they say, within bounds", () => {
    const read = readSettings({ notifications: { paused: false }, sparkline: 9e9, poll: 0 });
    expect(read.notifications).toEqual({ ...DEFAULTS.notifications, paused: false });
    expect([read.sparkline, read.poll]).toEqual([600, 1]);
    expect(readSettings({ sparkline: "many", poll: null })).toEqual(DEFAULTS);
  });
});

describe("a learning rate is halved and doubled", () => {
  test("as a scale on what the client asks", () => {
    const controls = { ...RUN.controls, learning_rate_scale: 0.3 };
    expect(halved(controls)).toEqual({ learning_rate_scale: 0.15 });
    expect(doubled(controls)).toEqual({ learning_rate_scale: 0.6 });
  });

  test("as a value where one was set, which a scale would end", () => {
    const controls = { ...RUN.controls, learning_rate: 1e-3 };
    expect(halved(controls)).toEqual({ learning_rate: 5e-4 });
    expect(doubled(controls)).toEqual({ learning_rate: 2e-3 });
    expect(said(halved(controls), { ...controls, learning_rate: 5e-4 })).toContain("5e-4");
  });
});

describe("the status bar", () => {
  const board = { live: true, status: ENGINE, newest: null as ListedRun | null };

  test("tells of the engine where there is no run", () => {
    expect(statusWords(board)).toBe("engine running");
    expect(statusWords({ ...board, live: false })).toBe("is not reached");
  });

  test("tells the newest run's step and loss, and what holds it", () => {
    const newest = { ...LISTED, last_step: step(4) };
    expect(statusWords({ ...board, newest })).toBe("engine running · step 4 · loss 0.25");
    const paused = { ...newest, state: "paused" as const };
    expect(statusWords({ ...board, newest: paused })).toContain(" · paused · step 4");
  });

  test("memory is that of the last step of the runs that are in it", () => {
    const begun = { ...LISTED, last_step: null };
    const stepped = { ...LISTED, last_step: step(4) };
    const later = { ...step(5), time: step(4).time + 1, memory_bytes: 2 ** 31 };
    expect(memoryWords(ENGINE, [])).toBe("512 MiB");
    expect(memoryWords(ENGINE, [begun, stepped])).toBe("1.0 GiB");
    expect(memoryWords(ENGINE, [stepped, { ...LISTED, last_step: later }])).toBe("2.0 GiB");
    expect(memoryWords(ENGINE, [{ ...stepped, state: "idle" }])).toBe("512 MiB");
    expect(memoryWords(null, [])).toBe("–");
  });

  test("owners are keys by their names, or people", () => {
    expect(ownerWords("tinker-key:my:laptop")).toBe("key my:laptop");
    expect(ownerWords("ada")).toBe("ada");
  });
});

class Server {
  runs: ListedRun[] = [LISTED];
  asked: string[] = [];

  async get<T>(path: string): Promise<T> {
    this.asked.push(path);
    if (path === "status") return ENGINE as T;
    const { pathname, searchParams: asked } = new URL(path, "http://server");
    const named = this.runs.find(({ run_id }) => pathname === `/runs/${run_id}`);
    if (named) return structuredClone(named) as T;
    const live = asked.get("live") === "1";
    const found = this.runs.filter((run) => !live || run.ended === null);
    const runs = structuredClone(found.slice(0, Number(asked.get("limit"))));
    return { runs, total: found.length, steps: [] } as T;
  }
}

describe("the board", () => {
  let server: Server;
  let stream: { connection: "live" | "reconnecting"; problem: null; subscribe: () => () => void };
  let tell: () => void;
  let board: Board;
  let drawn: number;

  beforeEach(() => {
    jest.useFakeTimers();
    server = new Server();
    tell = () => {};
    drawn = 0;
    stream = {
      connection: "live",
      problem: null,
      subscribe: (...listener: (() => void)[]) => {
        tell = listener[0]!;
        return () => {};
      },
    };
    board = new Board(server as unknown as Transport, stream, DEFAULTS);
    board.subscribe(() => {
      drawn += 1;
    });
  });

  afterEach(() => {
    board.dispose();
    expect(jest.getTimerCount()).toBe(0);
    jest.useRealTimers();
  });

  const settle = (time = 0) => jest.advanceTimersByTimeAsync(time);

  test("steps of the stream are seen at once, many in one drawing", async () => {
    await settle();
    const before = drawn;
    for (const id of [1, 2, 3]) board.heard(stepEvent(id));
    expect(board.newest!.last_step!.step).toBe(3);
    expect(drawn).toBe(before);
    await settle(200);
    expect(drawn).toBe(before + 1);
  });

  test("an answer that is older than the stream takes nothing back", async () => {
    await settle();
    board.heard(stepEvent(7));
    server.runs = [{ ...LISTED, last_step: step(5) }];
    await board.refresh();
    expect(board.newest!.last_step!.step).toBe(7);
  });

  test("it asks as often as the settings say, and soon after an event", async () => {
    await settle();
    const asked = () => server.asked.filter((path) => path === "status").length;
    expect(asked()).toBe(1);
    await settle(4_000);
    expect(asked()).toBe(2);
    board.configure({ ...DEFAULTS, poll: 10 });
    await settle();
    const before = asked();
    await settle(9_000);
    expect(asked()).toBe(before);
    board.heard(event(5, "paused"));
    await settle(100);
    expect(asked()).toBe(before + 1);
  });

  test("without a stream it says so, and asks nothing until it is there again", async () => {
    await settle();
    stream.connection = "reconnecting";
    tell();
    expect(board.problem).toContain("does not answer");
    const before = server.asked.length;
    await settle(60_000);
    expect(server.asked).toHaveLength(before);
    stream.connection = "live";
    tell();
    await settle(100);
    expect(server.asked.length).toBeGreaterThan(before);
    expect(board.problem).toBeNull();
  });

  test("the newest run is one that has not ended", async () => {
    server.runs = [{ ...LISTED, run_id: "b", ended: "over" }, LISTED];
    await settle();
    await board.refresh();
    expect(board.newest!.run_id).toBe("a");
  });
});

describe("a run that lives behind fifty that have ended", () => {
  const ended = Array.from({ length: 60 }, (_, n) => ({
    ...LISTED,
    run_id: `ended-${n}`,
    created_at: 5000 - n,
    ended: "its session is over",
  }));
  const server = new Server();
  const stream = { connection: "live" as const, problem: null, subscribe: () => () => {} };
  let board: Board;

  beforeEach(async () => {
    server.runs = [...ended, LISTED];
    board = new Board(server as unknown as Transport, stream, DEFAULTS);
    await board.refresh();
  });

  afterEach(() => board.dispose());

  test("is shown, once, and steered", async () => {
    expect(board.runs.map(({ run_id }) => run_id)).toEqual([
      ...ended.slice(0, 50).map(({ run_id }) => run_id),
      "a",
    ]);
    expect(board.newest!.run_id).toBe("a");
    expect(board.steerable(null)).toBe(true);
    expect((await board.toSteer(null))!.run_id).toBe("a");
    board.showMore();
    await board.refresh();
    expect(board.runs).toHaveLength(61);
    board.heard(stepEvent(3));
    expect(board.find("a")!.last_step!.step).toBe(3);
  });

  test("and one that is not listed at all is asked for by its name", async () => {
    const far = { ...LISTED, run_id: "far", created_at: 1 };
    server.runs = [...server.runs, far];
    expect(board.find("far")).toBeNull();
    expect(board.steerable("far")).toBe(true);
    expect(await board.toSteer("far")).toEqual(far);
    expect(await board.toSteer("ended-55")).toBeNull();
    expect(board.steerable("ended-1")).toBe(false);
  });
});

describe("the way to the server", () => {
  const settings = { baseUrl: "http://hub/user/ada", token: "", appendToken: false };
  const asked: [string, RequestInit][] = [];
  const answer = (status: number, body: unknown) => async (url: string, init: RequestInit) => {
    asked.push([url, init]);
    const headers = { Date: "Thu, 01 Jan 2026 00:00:00 GMT" };
    return new Response(JSON.stringify(body), { status, headers });
  };
  const made = (ask: unknown, Source?: unknown, more = {}) =>
    new LabTransport({ ...settings, ...more } as never, ask as never, Source as never);

  beforeEach(() => {
    asked.length = 0;
  });

  test("goes below Jupyter's base URL, by its own requests", async () => {
    const way = made(answer(200, { key: "k" }));
    await way.post("keys", { name: "laptop" });
    await way.delete("keys/laptop");
    expect(asked.map(([url, { method }]) => [url, method])).toEqual([
      ["http://hub/user/ada/tinker/keys", "POST"],
      ["http://hub/user/ada/tinker/keys/laptop", "DELETE"],
    ]);
    expect(JSON.parse(String(asked[0]![1].body))).toEqual({ name: "laptop" });
    expect(way.began).toBe(1_767_225_600);
  });

  test("what the server refuses is said in its words", async () => {
    const way = made(answer(400, { detail: "A key's name must have characters." }));
    await expect(way.post("keys", {})).rejects.toMatchObject({
      message: "A key's name must have characters.",
      status: 400,
    });
    const gone = made(async () => {
      throw new TypeError("network");
    });
    await expect(gone.get("status")).rejects.toMatchObject({ status: null });
  });

  test("one stream tells the panel and everybody else", () => {
    const opened: string[] = [];
    class Source {
      static readonly CLOSED = 2;
      static all: Source[] = [];
      private readonly heard = new Map<string, (message: { data: string }) => void>();
      constructor(url: string) {
        opened.push(url);
        Source.all.push(this);
      }
      addEventListener(kind: string, listener: (message: { data: string }) => void) {
        this.heard.set(kind, listener);
      }
      say(kind: string, message: unknown) {
        this.heard.get(kind)!({ data: JSON.stringify(message) });
      }
      close() {}
    }
    const token = { baseUrl: "http://hub/", token: "a b", appendToken: true };
    const way = made(answer(200, {}), Source, token);
    const told: string[] = [];
    way.listeners.add(({ id }) => told.push(`plugin ${id}`));
    const stop = way.follow(3, {
      onEvent: ({ id }) => told.push(`panel ${id}`),
      onState() {},
      onProgress: (task) => told.push(`task ${task}`),
    });
    Source.all[0]!.say("step", stepEvent(4));
    Source.all[0]!.say("progress", { id: null, run_id: null, data: { task: 7, over: true } });
    stop();
    expect(told).toEqual(["panel 4", "plugin 4", "task 7"]);
    // Of the same origin, as here, the cookie opens it.
    expect(opened).toEqual(["http://hub/tinker/events?after=3"]);
  });
});
