// The settings page, as the rest of the extension reads it; its form is schema/plugin.json.

export const NOTICES = ["paused", "diverged", "ended", "failed", "revived", "engine"] as const;
export type Notice = (typeof NOTICES)[number];

export interface Settings {
  notifications: Record<Notice, boolean>;
  /** Steps whose loss a sparkline draws; 0: none is drawn. */
  sparkline: number;
  /** Seconds between two questions of what no event tells. */
  poll: number;
}

export const DEFAULTS: Settings = {
  notifications: {
    paused: true,
    diverged: true,
    ended: true,
    failed: true,
    revived: true,
    engine: true,
  },
  sparkline: 200,
  poll: 4,
};

/** What is missing, or is not what it should be, is as at first. */
export function readSettings(found: Record<string, unknown>): Settings {
  const wanted = (found.notifications ?? {}) as Record<string, unknown>;
  const notifications = { ...DEFAULTS.notifications };
  for (const kind of NOTICES) notifications[kind] = wanted[kind] !== false;
  return {
    notifications,
    sparkline: Math.round(within(found.sparkline, 0, 600) ?? DEFAULTS.sparkline),
    poll: within(found.poll, 1, 60) ?? DEFAULTS.poll,
  };
}

function within(value: unknown, least: number, most: number): number | null {
  if (typeof value !== "number" || !Number.isFinite(value)) return null;
  return Math.min(most, Math.max(least, value));
}
