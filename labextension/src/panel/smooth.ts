// Exponential smoothing of a curve with holes.

/**
 * The moving average in which each value weighs `weight` times the one behind it.
 *
 * The first values are not drawn towards zero: weights are normalised. Holes (NaN) stay holes and
 * do not count. `weight` is from 0, which changes nothing, to below 1.
 */
export function smooth(values: ArrayLike<number>, weight: number): Float64Array {
  const out = new Float64Array(values.length);
  let sum = 0;
  let norm = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    if (!Number.isFinite(value)) {
      out[i] = Number.NaN;
      continue;
    }
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    out[i] = sum / norm;
  }
  return out;
}
