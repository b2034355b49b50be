import { Latest } from "../src/panel/latest.js";

test("the first is sent at once, the last for certain, and what lies between is not", async () => {
  const sent: number[] = [];
  let settled = 0;
  const latest = new Latest<number>(
    async (value) => {
      sent.push(value);
      if (value === 1) throw new Error("refused");
    },
    () => {
      settled += 1;
    },
    5,
  );
  for (const value of [1, 2, 3, 4]) latest.put(value);
  expect(sent).toEqual([1]);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(sent).toEqual([1, 4]);
  expect(settled).toBe(1);
});

test("what was let go of is not sent", async () => {
  const sent: number[] = [];
  const send = async (value: number) => void sent.push(value);
  const latest = new Latest<number>(send, () => {}, 5);
  for (const value of [1, 2]) latest.put(value);
  latest.drop();
  await new Promise((resolve) => setTimeout(resolve, 30));
  expect(sent).toEqual([1]);
  latest.put(3);
  expect(sent).toEqual([1, 3]);
});
