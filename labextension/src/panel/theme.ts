// JupyterLab's colours, for what is not drawn by CSS.

export interface Theme {
  text: string;
  ground: string;
  muted: string;
  grid: string;
  warn: string;
  error: string;
}

// Told apart by people of any colour vision, on light and dark ground; the first is the main run's.
export const RUN_COLOURS = ["#3b8eea", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#8f7ae5"];

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
