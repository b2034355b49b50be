// What the sidebar and the status bar say.

import { bytes, short } from "../panel/words.js";
import type { Board } from "./board.js";
import type { ListedRun, Status } from "./types.js";

/** The engine and the newest run in a few words. */
export function statusWords(board: Pick<Board, "live" | "status" | "newest">): string {
  if (!board.live) return "is not reached";
  const run = board.newest;
  const engine = `engine ${engineWord(board.status)}`;
  if (run === null) return engine;
  const doing = run.state === "waiting" || run.state === "training" ? "" : ` · ${run.state}`;
  const { last_step: last } = run;
  if (last === null) return `${engine}${doing} · no step yet`;
  return `${engine}${doing} · step ${last.step} · loss ${short(last.loss_mean)}`;
}

export function engineWord(status: Status | null): string {
  if (status === null) return "unknown";
  return { running: "running", starting: "starting", stopped: "not started" }[status.engine];
}

/** The memory that the engine uses, as the last step of its runs tells, or as it was at its start. */
export function memoryWords(status: Status | null, runs: readonly ListedRun[]): string {
  const engine = status?.status;
  if (!engine) return "–";
  const steps = runs.flatMap((run) => (inMemory(run) && run.last_step ? [run.last_step] : []));
  const last = steps.reduce((a, b) => (b.time > a.time ? b : a), steps[0]!);
  const used = last?.memory_bytes || engine.memory_bytes;
  const whole = engine.memory_total_bytes;
  return whole ? `${bytes(used)} of ${bytes(whole)}` : bytes(used);
}

export function inMemory({ state }: ListedRun): boolean {
  return state !== "ended" && state !== "idle";
}

/** Who drives a run: a key's name, or who came with Jupyter's token. */
export function ownerWords(owner: string): string {
  const [kind, name] = owner.split(/:(.*)/s);
  return kind === "tinker-key" && name ? `key ${name}` : owner;
}

export function when(seconds: number): string {
  const then = new Date(seconds * 1000);
  const time = then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const today = then.toDateString() === new Date().toDateString();
  return today ? time : `${then.toLocaleDateString()} ${time}`;
}
