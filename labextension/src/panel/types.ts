// What the server says: see docs/api.md, "Our own routes".

/** A row of `GET runs/{run}/steps`, and the data of a `step` event. */
export interface Step {
  id: number;
  run_id: string;
  branch: number;
  step: number;
  time: number;
  skipped: string | null;
  loss_mean: number | null;
  tokens: number;
  grad_norm: number | null;
  learning_rate: number;
  learning_rate_requested: number | null;
  grad_clip_norm: number | null;
  memory_bytes: number;
}

export interface TinkerEvent {
  id: number;
  run_id: string | null;
  time: number;
  kind: string;
  actor: string | null;
  step: number | null;
  data: Record<string, unknown>;
}

/** The way from a former learning rate to the one that is set. */
export interface Ramp {
  /** The step of the change; step `start + steps` has what is set. */
  start: number;
  steps: number;
}

/** Rules that pause a run by themselves: see docs/steering.md, "Guards". */
export interface Guards {
  non_finite: boolean;
  loss_spike: Record<string, number> | null;
  plateau: Record<string, number> | null;
}

/** Something that takes long: of `GET status`, and the data of a `progress` message. */
export interface Task {
  task: number;
  /** null: the engine's or the server's. */
  run_id: string | null;
  what: string;
  done: number;
  total: number | null;
  unit: "steps" | "tensors" | "bytes";
}

export interface Controls {
  learning_rate_scale: number;
  learning_rate: number | null;
  ramp: Ramp | null;
  grad_clip_norm: number | null;
  weight_decay: number | null;
  guards: Guards;
  paused: boolean;
  paused_because: string | null;
  steps_until_pause: number | null;
}

export interface Branch {
  number: number;
  parent: number;
  step: number;
}

export interface Run {
  run_id: string;
  base_model: string;
  created_at: number;
  state: "waiting" | "training" | "paused" | "reviving" | "idle" | "ended";
  ended: string | null;
  controls: Controls;
  last_step: Step | null;
  user_metadata: Record<string, unknown> | null;
  /** What its client's environment names in TINKER_TAGS. */
  session_tags: string[];
  /** In the answer for one run only. */
  branches?: Branch[];
  branch?: number;
}

/** `GET status`. */
export interface Status {
  /** What the engine is; null while there is none. */
  status: {
    device: string;
    dtype: string;
    memory_total_bytes: number | null;
  } | null;
}
