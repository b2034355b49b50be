// JupyterLab's colours, for what is not drawn by CSS.

export interface Theme {
  text: string;
  ground: string;
  muted: string;
  grid: string;
  warn: string;
  error: string;
  runs: string[];
}

// Told apart by people of any colour vision, and from the ground; the first is the main run's.
export const RUN_COLOURS = {
  light: ["#1f77d0", "#c28900", "#ff5188", "#5b0954", "#830f00", "#8200ff"],
  dark: ["#5aa9f5", "#ffb18f", "#c23973", "#bedb00", "#7a41ff", "#7a7000"],
} as const;

/** The colour of the run at a place in the curves, for CSS. */
export const runColour = (place: number) => `var(--jt-run-${place % RUN_COLOURS.light.length})`;

const variables = (colours: readonly string[]) =>
  colours.map((colour, place) => `--jt-run-${place}: ${colour};`).join(" ");

export const RUN_STYLE = `
.jt-panel { ${variables(RUN_COLOURS.light)} }
[data-jp-theme-light="false"] .jt-panel, .vscode-dark .jt-panel { ${variables(RUN_COLOURS.dark)} }
`;

export function readTheme(element: HTMLElement): Theme {
  const style = getComputedStyle(element);
  const colour = (name: string, otherwise: string) =>
    style.getPropertyValue(name).trim() || otherwise;
  return {
    text: colour("--jp-ui-font-color1", "#333333"),
    ground: colour("--jp-layout-color1", "#ffffff"),
    muted: colour("--jp-ui-font-color2", "#777777"),
    grid: colour("--jp-border-color2", "#dddddd"),
    warn: colour("--jp-warn-color0", "#b26a00"),
    error: colour("--jp-error-color1", "#d32f2f"),
    runs: RUN_COLOURS.light.map((light, place) => colour(`--jt-run-${place}`, light)),
  };
}

/** Calls back when the page's theme changes. Returns what ends that. */
export function onThemeChange(changed: () => void): () => void {
  const observer = new MutationObserver(changed);
  observer.observe(document.body, {
    attributes: true,
    attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"],
  });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", changed);
  // JupyterLab sets the attribute before the theme's style sheet is there.
  const late = () => setTimeout(changed, 300);
  document.addEventListener("load", late, true);
  return () => {
    observer.disconnect();
    dark.removeEventListener("change", changed);
    document.removeEventListener("load", late, true);
  };
}
