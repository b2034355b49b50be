import { findWay } from "../src/panel/way.js";

let answers: (Response | Error)[];
let asked: string[];

beforeEach(() => {
  asked = [];
  jest.spyOn(globalThis, "fetch").mockImplementation(async (url) => {
    asked.push(String(url));
    const answer = answers.shift()!;
    if (answer instanceof Error) throw answer;
    return answer;
  });
});

afterEach(() => jest.restoreAllMocks());

const status = (server_id?: string) => Response.json({ engine: "stopped", server_id });
const why: string[] = [];
const find = (url: string, id: string, baseUrl: string | null = "/lab/") =>
  findWay(
    { url, id },
    baseUrl,
    (told) => why.push(told),
    new AbortController().signal,
    async () => {},
  );

test("the page's own server is taken if it is the kernel's", async () => {
  answers = [status("a")];
  expect(await find("http://here/tinker", "a")).toBe("page");
  expect(asked).toEqual(["/lab/tinker/status"]);
});

test("or if the kernel knows none", async () => {
  answers = [status("a")];
  expect(await find("", "")).toBe("page");
});

test("another server's runs are not shown", async () => {
  answers = [status("b"), status("b"), status()];
  expect(await find("http://there/tinker", "a")).toBe("kernel");
  expect(await find("http://there/tinker", "")).toBe("kernel");
  expect(await find("http://there/tinker", "")).toBe("kernel");
});

test("a page that no Jupyter server serves goes through the kernel", async () => {
  expect(await find("http://there/tinker", "a", null)).toBe("kernel");
  expect(await find("", "", null)).toBe("none");
  expect(asked).toEqual([]);
});

test.each([401, 403, 404, 500])("as does one whose server answers %d", async (code) => {
  answers = [new Response("{}", { status: code }), new Response("<html>", { status: code })];
  expect(await find("http://there/tinker", "a")).toBe("kernel");
  expect(await find("", "")).toBe("none");
});

test("a server that is away is waited for", async () => {
  answers = [new TypeError("Failed to fetch"), new TypeError("Failed to fetch"), status("a")];
  expect(await find("http://here/tinker", "a")).toBe("page");
  expect(why.at(-1)).toContain("does not answer");
});

test.each([502, 503, 504])("so is one in whose place a proxy answers %d", async (code) => {
  answers = [new Response("<html>", { status: code }), new Response("{}", { status: code })];
  answers.push(status("a"));
  expect(await find("http://here/tinker", "a")).toBe("page");
  expect(why.at(-1)).toContain(String(code));
});

test("but not for ever where the kernel knows a server", async () => {
  const away = () => new Response("{}", { status: 503 });
  answers = Array.from({ length: 40 }, away);
  expect(await find("http://there/tinker", "a")).toBe("kernel");
  expect(asked).toHaveLength(16);
  answers = [...Array.from({ length: 40 }, away), status("a")];
  expect(await find("", "")).toBe("page");
});

test("a view that is closed asks no more", async () => {
  jest.useFakeTimers();
  answers = Array.from({ length: 40 }, () => new TypeError("Failed to fetch"));
  const closed = new AbortController();
  const told: string[] = [];
  const wanted = { url: "http://here/tinker", id: "a" };
  const found = findWay(wanted, "/lab/", (one) => told.push(one), closed.signal);
  await jest.advanceTimersByTimeAsync(5_000);
  const { length } = asked;
  expect(length).toBe(3);
  closed.abort();
  await found;
  await jest.advanceTimersByTimeAsync(60_000);
  expect(asked).toHaveLength(length);
  expect([told.length, jest.getTimerCount()]).toEqual([length, 0]);
  jest.useRealTimers();
});
