// What the sidebar reads of the server beyond what the panel does: see docs/api.md.

import type { Run } from "../panel/types.js";

export interface ListedRun extends Run {
  session_id: string;
  owner: string;
  lora: { rank?: number } | null;
}

export interface Engine {
  device: string;
  dtype: string;
  attention: string;
  reason: string;
  memory_bytes: number;
  memory_total_bytes?: number | null;
  base_models: string[];
  runs: string[];
}

/** `GET status`. */
export interface Status {
  engine: "running" | "starting" | "stopped";
  busy_seconds: number;
  status: Engine | null;
}

/** `POST engine/attach`; a kernel that is null is not to be had, and `refusal` says why. */
export interface Attachable {
  kernel_id: string | null;
  kernel_name: string;
  refusal: string | null;
}

export interface Key {
  name: string;
  created_at: number;
  revoked_at: number | null;
}
