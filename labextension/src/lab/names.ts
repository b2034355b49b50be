// The names of the extension's commands, which settings and other extensions use.

export const Names = {
  dashboard: "tinker:open-dashboard",
  sidebar: "tinker:show-sidebar",
  engineNotebook: "tinker:notebook-on-engine",
  engineConsole: "tinker:console-on-engine",
  togglePause: "tinker:toggle-pause",
  halve: "tinker:halve-learning-rate",
  double: "tinker:double-learning-rate",
  reset: "tinker:reset-controls",
} as const;
