// Which run a panel shows where nobody has chosen one.

import type { Run } from "./types.js";

/** Whether a run's client is in this kernel, or in what it has started. */
export function isOwn(run: Run, kernel: string | null): boolean {
  return kernel !== null && run.session_tags.includes(`jupyter-kernel=${kernel}`);
}

/** The newest run of the kernel's own that has not ended; `runs` are newest first. */
export function newestOwn(runs: readonly Run[], kernel: string | null): Run | undefined {
  return runs.find((run) => isOwn(run, kernel) && run.ended === null);
}

/** The kernel's newest run while one has not ended, else the newest of all. */
export function followed(runs: readonly Run[], kernel: string | null): Run | undefined {
  return newestOwn(runs, kernel) ?? runs[0];
}
