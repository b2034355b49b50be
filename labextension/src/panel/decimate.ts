// As many points of a curve as a screen can show.

/**
 * Indices of the points to draw between `from` and `to`, at most four for each of `columns` columns:
 * its first, lowest, highest and last. So peaks stay, however many points there are.
 *
 * `x` need not rise everywhere: a run of points in the same column is taken together. One point on
 * either side of the window is kept, so that lines leave it at the right slope. Holes in `y` are
 * kept once a column, so that they stay holes.
 */
export function decimate(
  x: ArrayLike<number>,
  y: ArrayLike<number>,
  from: number,
  to: number,
  columns: number,
): number[] {
  const width = (to - from) / Math.max(1, columns) || 1;
  const column = (i: number) =>
    x[i]! < from ? -1 : x[i]! > to ? Number.POSITIVE_INFINITY : Math.floor((x[i]! - from) / width);
  const kept: number[] = [];
  for (let start = 0; start < x.length; ) {
    const own = column(start);
    let end = start + 1;
    while (end < x.length && column(end) === own) end++;
    if (own === -1) kept.push(end - 1);
    else if (own === Number.POSITIVE_INFINITY) kept.push(start);
    else keepColumn(y, start, end, kept);
    start = end;
  }
  return kept;
}

function keepColumn(y: ArrayLike<number>, start: number, end: number, kept: number[]): void {
  if (end - start <= 4) {
    for (let i = start; i < end; i++) kept.push(i);
    return;
  }
  let low = -1;
  let high = -1;
  let hole = -1;
  for (let i = start; i < end; i++) {
    const value = y[i]!;
    if (Number.isNaN(value)) {
      hole = i;
      continue;
    }
    if (low < 0 || value < y[low]!) low = i;
    if (high < 0 || value > y[high]!) high = i;
  }
  const chosen = [start, low, high, hole, end - 1].filter((i) => i >= 0);
  kept.push(...[...new Set(chosen)].sort((a, b) => a - b));
}
