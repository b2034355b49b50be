import schema from "../schema/plugin.json";
import { Names } from "../src/lab/names.js";
import { DEFAULTS, NOTICES } from "../src/lab/settings.js";

test("the settings page offers what is read, as it is at first", () => {
  const { notifications, ...plain } = schema.properties;
  const { notifications: notices, ...others } = DEFAULTS;
  const defaults = (properties: Record<string, { default: unknown }>) =>
    Object.fromEntries(Object.entries(properties).map(([name, { default: is }]) => [name, is]));
  expect(defaults(plain)).toEqual(others);
  expect(defaults(notifications.properties)).toEqual(notices);
  expect(Object.keys(notifications.properties)).toEqual([...NOTICES]);
});

test("shortcuts and menus name commands that are there, and each command has a shortcut", () => {
  const commands = (rows: { command?: string }[]) =>
    rows.flatMap(({ command }) => (command ? [command] : []));
  const shortcuts = commands(schema["jupyter.lab.shortcuts"]);
  expect(shortcuts.sort()).toEqual(Object.values(Names).sort());
  for (const menu of schema["jupyter.lab.menus"].main) {
    for (const command of commands(menu.items)) expect(Object.values(Names)).toContain(command);
  }
});

test("no two shortcuts are the same keys", () => {
  const keys = schema["jupyter.lab.shortcuts"].map(({ keys }) => keys.join());
  expect(new Set(keys).size).toBe(keys.length);
});
