/** @jest-environment jsdom */

import { Happenings } from "../src/panel/happenings.js";
import { Watched } from "../src/panel/watched.js";
import { event } from "./steps.js";

let happenings: Happenings;
let watched: Watched;

beforeEach(() => {
  happenings = new Happenings();
  watched = new Watched("a", null as never, () => {});
  document.body.replaceChildren(happenings.element);
});

const rows = () => [...document.querySelectorAll("li")];
const texts = () => rows().map(({ lastChild }) => lastChild!.textContent!.trim());

test("the newest is on top, and what is there stays", () => {
  watched.events.push(event(1, "paused", { reason: "a" }), event(2, "resumed"));
  happenings.show(watched);
  expect(texts()).toEqual(["Step 5: resumed by ada", "Step 5: paused: a"]);
  const before = rows();
  const changes = new MutationObserver(() => {});
  changes.observe(document.body, { childList: true, subtree: true, characterData: true });
  happenings.show(watched);
  expect(changes.takeRecords()).toEqual([]);
  watched.events.push(event(3, "run_created"), event(4, "guard", { reason: "b" }));
  happenings.show(watched);
  expect(texts()[0]).toBe("Step 5: b");
  expect(rows()[0]!.className).toBe("jt-grave");
  expect(rows().slice(1)).toEqual(before);
  const added = changes.takeRecords().flatMap(({ addedNodes }) => [...addedNodes]);
  expect(added).toEqual([rows()[0]]);
});

test("fifty are shown, also of those that come with the history, and after it was cut", () => {
  for (let id = 1; id <= 80; id++) watched.events.push(event(id, "resumed", {}, id));
  happenings.show(watched);
  expect([rows().length, texts()[0], texts().at(-1)]).toEqual([
    50,
    "Step 80: resumed by ada",
    "Step 31: resumed by ada",
  ]);
  watched.events.splice(0, 60);
  watched.events.push(event(81, "resumed", {}, 81));
  happenings.show(watched);
  expect([rows().length, texts()[0]]).toEqual([50, "Step 81: resumed by ada"]);
});

test("another run has happenings of its own", () => {
  watched.events.push(event(7, "resumed"));
  happenings.show(watched);
  const other = new Watched("b", null as never, () => {});
  happenings.show(other);
  expect(document.body.textContent).toBe("Nothing but steps yet.");
  other.events.push(event(2, "paused", { reason: "c" }));
  happenings.show(other);
  expect(texts()).toEqual(["Step 5: paused: c"]);
  expect(document.querySelector("p")!.hidden).toBe(true);
  happenings.show(null);
  expect([rows().length, document.querySelector("p")!.hidden]).toEqual([0, false]);
});
