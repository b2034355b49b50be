// As many points of a curve as a screen can show.

/**
 * Which columns of pixels the points of a curve fall into, for all curves over the same `x`.
 *
 * `x` need not rise everywhere: neighbours in the same column are taken together. One point on either
 * side of the window from `from` to `to` is kept, so that lines leave it at the right slope.
 */
export class Columns {
  /** Where each run of points in the same column begins; behind them, how many points there are. */
  private readonly starts: Uint32Array;
  private readonly runs: number;
  /** 1 for the runs in the window, 0 for those before it, 2 behind it. */
  private readonly sides: Uint8Array;

  constructor(x: ArrayLike<number>, from: number, to: number, columns: number) {
    const { length } = x;
    const width = (to - from) / Math.max(1, columns) || 1;
    this.starts = new Uint32Array(length + 1);
    this.sides = new Uint8Array(length);
    let runs = 0;
    let before = Number.NaN;
    for (let i = 0; i < length; i++) {
      const value = x[i]!;
      const column = value < from ? -1 : value > to ? -2 : Math.floor((value - from) / width);
      if (column === before) continue;
      before = column;
      this.starts[runs] = i;
      this.sides[runs] = column === -1 ? 0 : column === -2 ? 2 : 1;
      runs += 1;
    }
    this.starts[runs] = length;
    this.runs = runs;
  }

  /**
   * Indices of the points to draw of a curve, at most four for each column: its first, lowest,
   * highest and last. So peaks stay, however many points there are. Holes (NaN) are kept once a
   * column, so that they stay holes.
   */
  keep(y: ArrayLike<number>): number[] {
    const kept: number[] = [];
    for (let run = 0; run < this.runs; run++) {
      const start = this.starts[run]!;
      const end = this.starts[run + 1]!;
      const side = this.sides[run]!;
      if (side === 0) kept.push(end - 1);
      else if (side === 2) kept.push(start);
      else keepColumn(y, start, end, kept);
    }
    return kept;
  }
}

/** `Columns.keep` for a single curve. */
export function decimate(
  x: ArrayLike<number>,
  y: ArrayLike<number>,
  from: number,
  to: number,
  columns: number,
): number[] {
  return new Columns(x, from, to, columns).keep(y);
}

function keepColumn(y: ArrayLike<number>, start: number, end: number, kept: number[]): void {
  if (end - start <= 4) {
    for (let i = start; i < end; i++) kept.push(i);
    return;
  }
  let [low, high, hole] = [-1, -1, -1];
  for (let i = start; i < end; i++) {
    const value = y[i]!;
    if (Number.isNaN(value)) {
      hole = i;
      continue;
    }
    if (low < 0 || value < y[low]!) low = i;
    if (high < 0 || value > y[high]!) high = i;
  }
  const chosen = [start, low, high, hole, end - 1].sort((a, b) => a - b);
  let last = -1;
  for (const index of chosen) {
    if (index > last) kept.push(index);
    last = index;
  }
}
