// Which of a run's steps lead to what it is now.

import type { Branch } from "./types.js";

/**
 * The last step of each branch that the end of a branch came by, of the newest one if none is given;
 * branches that are not there were left as a whole. `branches` are as the server lists them, from 1;
 * branch 0 is the beginning.
 */
export function lineage(branches: readonly Branch[], end?: number): Map<number, number> {
  const upto = new Map<number, number>();
  let current = end ?? branches.reduce((newest, branch) => Math.max(newest, branch.number), 0);
  let limit = Number.POSITIVE_INFINITY;
  for (;;) {
    upto.set(current, limit);
    const branch = branches.find(({ number }) => number === current);
    if (branch === undefined || branch.parent === current) return upto;
    limit = Math.min(limit, branch.step);
    current = branch.parent;
  }
}
