// What happened, in words; and numbers as people read them.

import type { Series } from "./series.js";
import type { Ramp, Run, TinkerEvent } from "./types.js";
import type { Watched } from "./watched.js";

/** A number with few digits: 0.0003, 3e-5, 1.25. */
export function short(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${s} s` : `${s} s`;
}

export function bytes(count: number): string {
  if (!Number.isFinite(count) || count === 0) return "–";
  const gib = count / 2 ** 30;
  return gib >= 1 ? `${gib.toFixed(1)} GiB` : `${Math.round(count / 2 ** 20)} MiB`;
}

/** Tokens a second over the last steps; NaN for fewer than two. */
export function throughput(series: Series, steps = 20): number {
  const first = Math.max(0, series.length - 1 - steps);
  const seconds = series.at("time", -1) - series.at("time", first);
  if (series.length < 2 || !(seconds > 0)) return Number.NaN;
  let tokens = 0;
  for (const own of series.column("tokens").subarray(first + 1)) tokens += own;
  return tokens / seconds;
}

/** The step that a run is at: after a rewind that is not its newest one. */
export function stepNow({ run, upto }: Pick<Watched, "run" | "upto">): number {
  const last = run?.last_step;
  if (!last) return 0;
  if (last.step <= (upto.get(last.branch) ?? -1)) return last.step;
  return run?.branches?.at(-1)?.step ?? last.step;
}

/** How many steps a run will make, where its client said so, in its metadata or a tag. */
export function totalSteps(run: Run): number {
  const tag = run.session_tags.find((own) => own.startsWith("total_steps="));
  const total = Number(run.user_metadata?.total_steps ?? tag?.split("=")[1] ?? Number.NaN);
  return total > 0 ? total : Number.NaN;
}

/**
 * Seconds until the end of a run that is at a step, where its client said how many it will make; NaN
 * where it did not, or the run has ended.
 */
export function remaining(run: Run, series: Series, step: number): number {
  if (run.ended !== null) return Number.NaN;
  return Math.max(0, totalSteps(run) - step) * secondsEach(series);
}

/** Seconds between two steps, of the last ones; NaN for fewer than two. */
export function secondsEach(series: Series, steps = 20): number {
  const first = Math.max(0, series.length - 1 - steps);
  const made = series.length - 1 - first;
  return made < 1 ? Number.NaN : (series.at("time", -1) - series.at("time", first)) / made;
}

type Values = Record<string, unknown>;

function change(before: Values, after: Values): string {
  const named: string[] = [];
  const says = (key: string) => key in after && after[key] !== before[key];
  if (says("learning_rate") && after.learning_rate !== null) {
    named.push(`LR ${short(after.learning_rate as number)}`);
  } else if (says("learning_rate_scale") || says("learning_rate")) {
    const scale = Number(after.learning_rate_scale ?? 1);
    named.push(scale === 1 ? "LR as asked" : `LR ×${short(scale)}`);
  }
  if (says("ramp")) named.push(ramped(after.ramp as Ramp | null, named));
  for (const [key, name] of [
    ["grad_clip_norm", "clip"],
    ["weight_decay", "weight decay"],
  ] as const) {
    if (!says(key)) continue;
    const value = after[key] as number | null;
    named.push(value === null ? `${name} as asked` : `${name} ${short(value)}`);
  }
  if (says("guards")) named.push(...guarded(before.guards as Values, after.guards as Values));
  return named.join(", ");
}

function ramped(ramp: Ramp | null, named: string[]): string {
  const rate = named.pop() ?? "";
  if (ramp) return `${rate || "LR"} over ${ramp.steps} steps`;
  return rate || "LR ramp ended";
}

function guarded(before: Values | undefined, after: Values): string[] {
  return Object.entries(after)
    .filter(([name, rule]) => JSON.stringify(rule) !== JSON.stringify(before?.[name]))
    .map(([name, rule]) => `guard ${name.replaceAll("_", " ")} ${rule ? "on" : "off"}`);
}

/** A few words to stand beside a line in the curves; empty for what is not marked there. */
export function label(event: TinkerEvent): string {
  const data = event.data as Values;
  switch (event.kind) {
    case "control_changed":
      return change((data.before ?? {}) as Values, (data.after ?? {}) as Values);
    case "rewound":
      return `rewound from ${(data.abandoned as Values | undefined)?.step ?? "?"}`;
    case "guard":
      return data.paused ? String(data.rule).replaceAll("_", " ") : "skipped";
    case "run_revived":
      return "revived";
    case "paused":
    case "resumed":
    case "forked":
      return event.kind;
    default:
      return "";
  }
}

function asked(setting: Values): string {
  const count = (setting.prompts as string[]).length;
  const prompts = count === 1 ? "1 prompt" : `${count} prompts`;
  const every = setting.every;
  return `samples of ${prompts} ${every === null ? "on request only" : `every ${every} steps`}`;
}

/** A sentence for the list of messages; empty for what needs none. */
export function sentence(event: TinkerEvent): string {
  const data = event.data as Values;
  const by = event.actor ? ` by ${event.actor}` : "";
  const at = event.step === null ? "" : `Step ${event.step}: `;
  switch (event.kind) {
    case "control_changed": {
      const what = label(event);
      return what && `${at}${what}${by}`;
    }
    case "rewound":
      return `${at}${label(event)}${by}`;
    case "guard":
      return `${at}${data.reason}${data.paused ? " The run is paused." : ""}`;
    case "paused":
      return `${at}paused: ${data.reason}`;
    case "resumed":
      return `${at}resumed${by}`;
    case "forked":
      return `${at}forked${by}: ${data.path}`;
    case "preview_changed":
      return `${at}${asked(data)}${by}`;
    case "run_revived":
      return `${at}brought back in ${duration(Number(data.seconds))}`;
    case "request_failed":
      return `${at}${data.request} number ${data.seq_id} failed: ${data.error}`;
    case "run_ended":
      if (data.failed) return `${at}the run could not be created: ${data.error}`;
      return `${at}the run ended${data.reason ? `: ${data.reason}` : ""}`;
    case "lr_find_started":
      return `${at}a sweep over learning rates began on a copy${by}`;
    case "lr_find_done": {
      const rate = (data.suggestion as Values | null)?.learning_rate as number | undefined;
      if (rate !== undefined)
        return `${at}the sweep suggests LR ${short(Number(rate.toPrecision(2)))}`;
      const ended = data.status === "done" ? "found no learning rate" : String(data.status);
      return `${at}sweep over learning rates ${ended}: ${data.message}`;
    }
    case "engine_died":
      return `The engine died: ${data.reason}`;
    case "engine_stopped":
      return `The engine was stopped: ${data.reason}`;
    case "checkpoint_saved":
      return `${at}saved ${data.path}`;
    default:
      return "";
  }
}
