// How curves are looked at, in tests.

import { RUN_COLOURS, type Theme } from "../src/panel/theme.js";
import type { View } from "../src/panel/traces.js";

export const THEME: Theme = {
  text: "black",
  ground: "white",
  muted: "grey",
  grid: "silver",
  warn: "orange",
  error: "red",
  runs: [...RUN_COLOURS.light],
};

export const VIEW: View = { range: null, width: 500, smoothing: 0.9 };
