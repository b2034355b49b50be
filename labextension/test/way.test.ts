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

test.each([401, 403, 404, 503])("as does one whose server answers %d", async (code) => {
  answers = [new Response("{}", { status: code }), new Response("<html>", { status: code })];
  expect(await find("http://there/tinker", "a")).toBe("kernel");
  expect(await find("", "")).toBe("none");
});

test("a server that is away is waited for", async () => {
  answers = [new TypeError("Failed to fetch"), new TypeError("Failed to fetch"), status("a")];
  expect(await find("http://here/tinker", "a")).toBe("page");
  expect(why.at(-1)).toContain("does not answer");
});
