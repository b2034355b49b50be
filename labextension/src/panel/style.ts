// The panel's looks, in JupyterLab's colours.

import { SAMPLES_STYLE } from "./style-samples.js";

export const STYLE = `
.jt-panel { color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color1, #fff);
  font: var(--jp-ui-font-size1, 13px)/1.4 var(--jp-ui-font-family, system-ui, sans-serif);
  border: 1px solid var(--jp-border-color2, #ddd); border-radius: 4px; padding: 8px;
  box-sizing: border-box; max-width: 1200px; container-type: inline-size; }
.jt-panel *, .jt-panel *::before { box-sizing: border-box; }
.jt-head, .jt-group, .jt-picker, .jt-options { display: flex; flex-wrap: wrap; gap: 6px;
  align-items: center; }
.jt-head { justify-content: space-between; }
.jt-badge { border-radius: 9px; padding: 0 8px; background: var(--jp-layout-color3, #ddd); }
.jt-badge[data-kind="live"] { background: var(--jp-success-color1, #388e3c); color: #fff; }
.jt-badge[data-kind="warn"] { background: var(--jp-warn-color1, #f57c00); color: #000; }
.jt-panel button, .jt-panel select, .jt-number { font: inherit; color: inherit; height: 26px;
  background: var(--jp-layout-color2, #eee); border: 1px solid var(--jp-border-color1, #bbb);
  border-radius: 3px; padding: 0 8px; }
.jt-panel button { cursor: pointer; }
.jt-panel button:hover:enabled { background: var(--jp-layout-color3, #ddd); }
.jt-panel :disabled { opacity: 0.5; cursor: not-allowed; }
.jt-panel :focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
.jt-number { width: 84px; background: var(--jp-layout-color0, #fff); }
.jt-number::placeholder { color: var(--jp-ui-font-color3, #999); }
.jt-select { max-width: 340px; min-width: 0; }
.jt-slider { width: 150px; accent-color: var(--jp-brand-color1, #1976d2); }
.jt-readouts { display: grid; grid-template-columns: repeat(auto-fit, minmax(84px, 1fr));
  gap: 4px 12px; margin: 8px 0; }
.jt-name { color: var(--jp-ui-font-color2, #666); font-size: 0.85em; }
.jt-value { font-variant-numeric: tabular-nums; white-space: nowrap; }
.jt-steering { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 4px; }
.jt-controls { border: 1px solid var(--jp-border-color2, #ddd); border-radius: 4px; margin: 0;
  padding: 4px 8px 8px; display: flex; flex-wrap: wrap; gap: 8px 18px; min-width: 0; }
.jt-controls legend { color: var(--jp-ui-font-color2, #666); font-size: 0.85em; padding: 0 4px; }
.jt-why, .jt-note, .jt-fault, .jt-problem { margin: 4px 0; flex-basis: 100%; }
.jt-why, .jt-note { color: var(--jp-ui-font-color2, #666); }
.jt-fault, .jt-grave, .jt-problem { color: var(--jp-error-color1, #c62828); }
.jt-why:empty, .jt-note:empty, .jt-fault:empty, .jt-problem:empty,
.jt-panel [hidden] { display: none; }
.jt-note { overflow-wrap: anywhere; user-select: text; }
.jt-tabbed { margin-top: 8px; }
.jt-tabs { display: flex; flex-wrap: wrap; border-bottom: 1px solid var(--jp-border-color2, #ddd); }
.jt-panel .jt-tabs button { background: none; border: 0; border-bottom: 2px solid transparent;
  border-radius: 0; color: var(--jp-ui-font-color2, #666); }
.jt-panel .jt-tabs [aria-selected="true"] { color: inherit;
  border-bottom-color: var(--jp-brand-color1, #1976d2); }
.jt-none { color: var(--jp-ui-font-color2, #666); margin: 4px 0; }
.jt-list { list-style: none; margin: 4px 0 0; padding: 0; max-height: 110px; overflow-y: auto; }
.jt-list li { overflow-wrap: anywhere; }
.jt-list time { color: var(--jp-ui-font-color2, #666); font-variant-numeric: tabular-nums; }
.jt-details > summary { cursor: pointer; color: var(--jp-ui-font-color2, #666); }
.jt-compare { display: flex; flex-direction: column; max-height: 140px; overflow-y: auto; }
.jt-compare label { display: flex; gap: 6px; align-items: center; }
.jt-dot { width: 10px; height: 10px; border-radius: 50%; flex: none; }
.jt-chart { width: 100%; min-height: 420px; cursor: crosshair; }
.jt-options label { display: flex; gap: 4px; align-items: center; }
.jt-key { color: var(--jp-ui-font-color2, #666); font-size: 0.85em; }
.jt-dialog { color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color1, #fff);
  border: 1px solid var(--jp-border-color1, #bbb); border-radius: 4px; max-width: 460px; }
.jt-dialog::backdrop { background: rgba(0, 0, 0, 0.35); }
@container (max-width: 640px) {
  .jt-select { max-width: 230px; }
  .jt-controls { flex: 1 1 100%; }
}
${SAMPLES_STYLE}`;
