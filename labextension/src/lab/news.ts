// Which events a person is told of, and in which words.

import type { TinkerEvent } from "../panel/types.js";
import { duration } from "../panel/words.js";
import type { Notice } from "./settings.js";

export interface News {
  kind: Notice;
  type: "info" | "success" | "warning" | "error";
  text: string;
  run: string | null;
  /** Whether a button shall be there that lets the run go on. */
  resumable: boolean;
}

/** A run in a word: the beginning of its session's id, and its place there. */
export function shortName(run: string): string {
  const [session = "", ...rest] = run.split(":");
  return [session.slice(0, 8), ...rest.slice(-1)].join(":");
}

/** Turns events into news, one after the other. */
export class Newsroom {
  /** Why a guard paused a run: the pause itself is no news then. */
  private readonly alarms = new Map<string, string>();
  /** Why a run's last request failed, until it steps: a client that tries again is no news. */
  private readonly failures = new Map<string | null, string>();

  /** Null for what is none; `began` is when this page was opened, by the server's clock. */
  news(event: TinkerEvent, began: number): News | null {
    const told = this.read(event);
    return event.time < began ? null : told;
  }

  private read(event: TinkerEvent): News | null {
    const { run_id: run, data } = event;
    const name = shortName(run ?? "");
    const short = (text: unknown) =>
      run === null ? String(text ?? "") : String(text ?? "").replaceAll(run, name);
    const [reason, error] = [short(data.reason), short(data.error)];
    const who = `Run ${name}`;
    const at = event.step === null ? "" : ` at step ${event.step}`;
    const made = (kind: Notice, type: News["type"], text: string): News => {
      const resumable = kind === "paused" || data.paused === true;
      return { kind, type, run, resumable, text };
    };
    switch (event.kind) {
      case "guard":
        if (run !== null && data.paused) this.alarms.set(run, reason);
        return data.paused
          ? made("diverged", "error", `${who} is paused by a guard${at}: ${reason}`)
          : made("diverged", "warning", `${who} skipped a step${at}: ${reason}`);
      case "paused":
        if (run !== null && this.alarms.get(run) === reason) {
          this.alarms.delete(run);
          return null;
        }
        return made("paused", "warning", `${who} is paused${at}: ${reason}`);
      case "step":
        this.failures.delete(run);
        return null;
      case "request_failed":
        if (this.failures.get(run) === error) return null;
        this.failures.set(run, error);
        return made("failed", "error", `${who}: ${data.request} failed${at}: ${error}`);
      case "run_ended":
        this.failures.delete(run);
        if (data.failed) return made("failed", "error", `${who} could not be created: ${error}`);
        return made("ended", "info", `${who} has ended${at}. ${reason}`.trim());
      case "run_revived":
        return made("revived", "success", `${who} is back${at}, after ${seconds(data.seconds)}.`);
      case "engine_died":
        return made("engine", "error", "The engine died. It is started anew, and its runs go on.");
      default:
        return null;
    }
  }
}

const seconds = (value: unknown) => duration(Number(value));
