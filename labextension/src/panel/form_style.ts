// The looks of what is pressed and filled in.

export const FORM_STYLE = `
.jt-panel button, .jt-panel select, .jt-number { font: inherit; color: inherit; height: 26px;
  background: var(--jp-layout-color2, #eee); border: 1px solid var(--jp-border-color1, #bbb);
  border-radius: 3px; padding: 0 8px; }
.jt-panel button { cursor: pointer; white-space: nowrap; }
.jt-panel button:hover:enabled { background: var(--jp-layout-color3, #ddd); }
.jt-panel .jt-primary { background: var(--jt-brand); border-color: var(--jt-brand);
  color: var(--jp-ui-inverse-font-color0, #fff); }
.jt-panel .jt-small { height: 20px; padding: 0 5px; border-color: transparent; background: none; }
.jt-panel :is(button, input, select):disabled { opacity: 0.5; cursor: not-allowed; }
.jt-number { width: 84px; background: var(--jp-layout-color0, #fff);
  font-variant-numeric: tabular-nums; }
.jt-number::placeholder { color: var(--jt-soft); opacity: 1; }
.jt-number[data-edited] { border-color: var(--jt-brand); border-style: dashed; }
.jt-number[aria-invalid] { border-color: var(--jp-error-color1, #c62828); }
.jt-slider { width: 150px; margin: 0; accent-color: var(--jt-brand); }
.jt-scale { display: inline-flex; flex-direction: column; flex: 1 1 110px; min-width: 100px;
  max-width: 260px; }
.jt-scale .jt-slider { width: 100%; }
.jt-ticks { display: flex; justify-content: space-between; color: var(--jt-soft); font-size: 0.72em;
  line-height: 1; }
.jt-ticks span { width: 28px; text-align: center; }
.jt-ticks span:first-child { text-align: left; }
.jt-ticks span:last-child { text-align: right; }
.jt-steering { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px;
  margin-top: 8px; }
.jt-steering > .jt-why { grid-column: 1 / -1; margin: 0; }
.jt-controls { border: 1px solid var(--jt-line); border-radius: 4px; margin: 0; min-width: 0;
  padding: 4px 10px 10px; display: flex; flex-direction: column; gap: 8px; }
.jt-controls legend { color: var(--jt-soft); font-size: 0.9em; padding: 0 4px; }
.jt-row { display: grid; grid-template-columns: 94px minmax(0, 1fr); gap: 8px; align-items: center; }
.jt-label { color: var(--jt-soft); white-space: nowrap; }
.jt-row .jt-number { width: 74px; }
.jt-guards { display: block; }
.jt-rule { margin: 8px 0 0; padding-top: 6px; border-top: 1px solid var(--jt-line); }
.jt-rule label { display: flex; gap: 6px; align-items: center; font-weight: 600; }
.jt-sentence { margin: 2px 0 0 20px; line-height: 1.5; }
.jt-sentence .jt-number { width: 62px; height: 22px; padding: 0 5px; margin: 1px 0; }
.jt-sentence button { height: 22px; margin-left: 6px; }
`;
