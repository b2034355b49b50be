// A curve of a few pixels.

import { short } from "../panel/words.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 96;
const HEIGHT = 24;
const EDGE = 2;

/**
 * The path of a curve through `values`, the highest on top; empty for fewer than two. Of values that
 * fall into the same pixel column, the lowest and the highest are drawn.
 */
export function sparklinePath(values: readonly number[], width = WIDTH, height = HEIGHT): string {
  const known = values.filter(Number.isFinite);
  if (known.length < 2) return "";
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const x = (index: number) => EDGE + ((width - 2 * EDGE) * index) / (known.length - 1);
  const y = (value: number) =>
    high === low ? height / 2 : EDGE + ((height - 2 * EDGE) * (high - value)) / (high - low);
  const at = (index: number) => `${x(index).toFixed(1)},${y(known[index]!).toFixed(1)}`;
  return `M${columns(known, width).map(at).join("L")}`;
}

/** Indices to draw, rising: all, or two of each column. */
function columns(values: readonly number[], width: number): number[] {
  if (values.length <= 2 * width) return values.map((_, index) => index);
  const chosen = new Set([0, values.length - 1]);
  for (let column = 0; column < width; column++) {
    const from = Math.floor((column * values.length) / width);
    const to = Math.floor(((column + 1) * values.length) / width);
    let [low, high] = [from, from];
    for (let i = from; i < to; i++) {
      if (values[i]! < values[low]!) low = i;
      if (values[i]! > values[high]!) high = i;
    }
    chosen.add(low).add(high);
  }
  return [...chosen].sort((a, b) => a - b);
}

/** What a screen reader says of it. */
export function sparklineWords(values: readonly number[]): string {
  if (values.length < 2) return "No curve of the loss yet";
  const [first, last] = [values[0]!, values[values.length - 1]!];
  return `Loss from ${short(first)} to ${short(last)} over the last ${values.length} steps`;
}

export class Sparkline {
  readonly element = document.createElementNS(SVG, "svg");
  private readonly path = document.createElementNS(SVG, "path");
  private readonly title = document.createElementNS(SVG, "title");

  constructor() {
    this.element.setAttribute("class", "jp-Tinker-sparkline");
    this.element.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.element.setAttribute("role", "img");
    this.element.append(this.title, this.path);
  }

  show(values: readonly number[]): void {
    const path = sparklinePath(values);
    if (this.path.getAttribute("d") === path) return;
    this.path.setAttribute("d", path);
    const words = sparklineWords(values);
    this.element.setAttribute("aria-label", words);
    this.title.textContent = words;
  }
}
