// What a server would say, for tests.

import type { Run, Step, TinkerEvent } from "../src/panel/types.js";

export function step(id: number, more: Partial<Step> = {}): Step {
  return {
    id,
    run_id: "a",
    branch: 0,
    step: id,
    time: 1000 + id,
    skipped: null,
    loss_mean: 1 / id,
    tokens: 100,
    grad_norm: 1,
    learning_rate: 1e-3,
    learning_rate_requested: 1e-3,
    grad_clip_norm: 0,
    memory_bytes: 2 ** 30,
    ...more,
  };
}

export function stepEvent(id: number): TinkerEvent {
  const data = step(id) as unknown as Record<string, unknown>;
  return { id, run_id: "a", time: 1000 + id, kind: "step", actor: null, step: id, data };
}

export function event(id: number, kind: string, data = {}, at: number | null = 5): TinkerEvent {
  return { id, run_id: "a", time: 1000 + id, kind, actor: "ada", step: at, data };
}

export const RUN: Run = {
  run_id: "a",
  base_model: "tiny",
  created_at: 1000,
  state: "waiting",
  ended: null,
  last_step: null,
  user_metadata: null,
  session_tags: [],
  controls: {
    learning_rate_scale: 1,
    learning_rate: null,
    ramp: null,
    grad_clip_norm: null,
    weight_decay: null,
    guards: { non_finite: false, loss_spike: null, plateau: null },
    paused: false,
    paused_because: null,
    steps_until_pause: null,
  },
  branches: [],
};
