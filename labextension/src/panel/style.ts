// The panel's looks, in JupyterLab's colours.

import { FINDER_STYLE } from "./finder_style.js";
import { FORM_STYLE } from "./form_style.js";
import { PROGRESS_STYLE } from "./progress_style.js";
import { SAMPLES_STYLE } from "./samples_style.js";
import { RUN_STYLE } from "./theme.js";
import { TOKENS_STYLE } from "./tokens_style.js";

const FRAME = `
.jt-panel { --jt-soft: var(--jp-ui-font-color2, #616161); --jt-line: var(--jp-border-color2, #ddd);
  --jt-brand: var(--jp-brand-color1, #1976d2);
  color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color1, #fff);
  font: var(--jp-ui-font-size1, 13px)/1.4 var(--jp-ui-font-family, system-ui, sans-serif);
  border: 1px solid var(--jt-line); border-radius: 6px; padding: 10px 12px;
  box-sizing: border-box; max-width: 1200px; container-type: inline-size; }
.jt-panel *, .jt-panel *::before { box-sizing: border-box; }
.jt-panel [hidden] { display: none; }
.jt-panel :focus-visible { outline: 2px solid var(--jt-brand); outline-offset: 1px; }
.jt-head, .jt-group, .jt-picker, .jt-options { display: flex; flex-wrap: wrap; gap: 6px 8px;
  align-items: center; }
.jt-head { justify-content: space-between; }
.jt-badge { border-radius: 9px; padding: 0 9px; background: var(--jp-layout-color3, #e0e0e0); }
.jt-badge[data-kind="live"] { background: #2e7d32; color: #fff; }
.jt-badge[data-kind="warn"] { background: #ffb74d; color: #000; }
.jt-select { max-width: min(340px, 58cqw); min-width: 0; text-overflow: ellipsis; }
.jt-menu { position: relative; }
.jt-menu > summary { border: 1px solid var(--jp-border-color1, #bbb); border-radius: 3px;
  line-height: 24px; padding: 0 8px; color: inherit; background: var(--jp-layout-color2, #eee); }
.jt-compare { position: absolute; z-index: 5; top: calc(100% + 4px); left: 0; width: max-content;
  max-width: min(480px, 85cqw); display: flex; flex-direction: column; gap: 2px; padding: 8px 10px;
  max-height: 260px; overflow-y: auto; background: var(--jp-layout-color1, #fff);
  border: 1px solid var(--jp-border-color1, #bbb); border-radius: 4px;
  box-shadow: var(--jp-elevation-z4, 0 2px 6px rgba(0, 0, 0, 0.3)); }
.jt-compare label { display: flex; gap: 6px; align-items: center; }
.jt-dot { width: 10px; height: 10px; border-radius: 50%; flex: none;
  background: var(--jt-colour, transparent); }
.jt-readouts { display: grid; grid-template-columns: repeat(auto-fit, minmax(104px, 1fr));
  gap: 6px; margin: 8px 0; }
.jt-card { background: var(--jp-layout-color2, #f5f5f5); border-radius: 4px; padding: 4px 8px 5px;
  min-width: 0; min-height: 58px; position: relative; overflow: hidden; }
.jt-name { color: var(--jt-soft); font-size: 0.85em; }
.jt-value { font-size: 1.25em; line-height: 1.25; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.jt-more { color: var(--jt-soft); font-size: 0.8em; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; font-variant-numeric: tabular-nums; }
.jt-bar { position: absolute; left: 0; bottom: 0; width: 100%; height: 3px; border: 0;
  appearance: none; background: transparent; }
.jt-bar::-webkit-progress-bar { background: transparent; }
.jt-bar::-webkit-progress-value { background: var(--jt-brand); }
.jt-bar::-moz-progress-bar { background: var(--jt-brand); }
.jt-legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 4px 0 0;
  padding: 0; }
.jt-legend li { display: flex; flex-wrap: wrap; gap: 0 6px; align-items: center; min-width: 0; }
.jt-run { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.jt-line { width: 18px; border-top: 3px solid var(--jt-colour); flex: none; }
.jt-dotted { border-top-style: dotted; margin-left: 6px; }
.jt-hint, .jt-key { color: var(--jt-soft); font-size: 0.9em; font-variant-numeric: tabular-nums; }
.jt-chart { width: 100%; min-height: 420px; cursor: crosshair; }
.jt-options label { display: flex; gap: 5px; align-items: center; }
.jt-options { gap: 4px 14px; }
/* Beside the badges, so that nothing moves when a run is paused. */
.jt-banner { flex: 1 1 0; min-width: 120px; margin: 0; max-height: 2.8em; overflow: hidden;
  text-align: right; overflow-wrap: anywhere; }
.jt-note, .jt-fault, .jt-problem, .jt-why { margin: 6px 0; padding: 4px 8px;
  border-left: 3px solid var(--jp-border-color1, #bbb); background: var(--jp-layout-color2, #f5f5f5);
  border-radius: 2px; overflow-wrap: anywhere; user-select: text; }
.jt-fault, .jt-problem { border-color: var(--jp-error-color1, #c62828); }
.jt-note { border-color: var(--jt-brand); }
.jt-why:empty, .jt-note:empty, .jt-fault:empty, .jt-problem:empty,
.jt-banner:empty { display: none; }
.jt-tabbed { margin-top: 8px; }
.jt-tabs { display: flex; flex-wrap: wrap; border-bottom: 1px solid var(--jt-line); }
.jt-panel .jt-tabs button { background: none; border: 0; border-bottom: 2px solid transparent;
  border-radius: 0; color: var(--jt-soft); }
.jt-panel .jt-tabs [aria-selected="true"] { color: inherit; border-bottom-color: var(--jt-brand); }
.jt-none { color: var(--jt-soft); margin: 4px 0; }
.jt-list { list-style: none; margin: 4px 0 0; padding: 0; max-height: 130px; overflow-y: auto; }
.jt-list li { overflow-wrap: anywhere; }
.jt-list time { color: var(--jt-soft); font-variant-numeric: tabular-nums; }
.jt-grave::before { content: "⚠ "; }
.jt-grave { color: var(--jp-error-color1, #c62828); }
.jt-details > summary { cursor: pointer; }
.jt-dialog { color: var(--jp-ui-font-color1, #222); background: var(--jp-layout-color1, #fff);
  border: 1px solid var(--jp-border-color1, #bbb); border-radius: 6px; max-width: 460px; }
.jt-dialog::backdrop { background: rgba(0, 0, 0, 0.35); }
`;

/** Of narrow panels: the last, so that it goes before what is above. */
const NARROW = `
@container (max-width: 640px) {
  .jt-banner { flex-basis: 100%; order: 3; text-align: left; max-height: none; }
  .jt-readouts { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .jt-steering { grid-template-columns: minmax(0, 1fr); }
}
`;

const TABS = [TOKENS_STYLE, SAMPLES_STYLE, FINDER_STYLE];

export const STYLE = [RUN_STYLE, FRAME, PROGRESS_STYLE, FORM_STYLE, ...TABS, NARROW].join("");
