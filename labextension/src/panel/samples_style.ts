// The looks of the tab of samples: a table, and cards where that would be too narrow.

export const SAMPLES_STYLE = `
.jt-asks { margin: 6px 0; }
.jt-prompts { flex: 1 1 100%; display: flex; flex-direction: column; gap: 4px; }
.jt-prompt { display: flex; gap: 6px; align-items: flex-start; }
.jt-prompt textarea { flex: 1; min-width: 0; font: inherit; color: inherit; resize: vertical;
  min-height: 26px; padding: 3px 8px; field-sizing: content; max-height: 120px;
  background: var(--jp-layout-color0, #fff); border: 1px solid var(--jp-border-color1, #bbb);
  border-radius: 3px; }
.jt-prompt textarea::placeholder { color: var(--jp-ui-font-color3, #999); }
.jt-asks .jt-number { width: 62px; }
.jt-said { flex: 1 1 100%; }
.jt-said:not(:has(:not(:empty))) { display: none; }
.jt-answers-box { max-height: 460px; overflow: auto;
  border: 1px solid var(--jp-border-color2, #ddd); border-radius: 4px; }
.jt-panel .jt-answers { border-collapse: separate; border-spacing: 0; width: 100%; margin: 0;
  font: inherit; table-layout: fixed; min-width: calc(110px + var(--jt-prompts) * 190px); }
.jt-panel .jt-answers th, .jt-panel .jt-answers td { text-align: left; vertical-align: top;
  padding: 6px 10px; white-space: normal; max-width: none;
  border-bottom: 1px solid var(--jp-border-color2, #ddd); overflow-wrap: anywhere; }
.jt-panel .jt-answers tbody tr:last-child > * { border-bottom: 0; }
.jt-panel .jt-answers thead th { position: sticky; top: 0; z-index: 1; font-weight: 600;
  background: var(--jp-layout-color2, #eee); }
.jt-answers thead div { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3;
  overflow: hidden; }
.jt-panel .jt-answers tr > :first-child { width: 110px; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.jt-panel .jt-answers tbody tr, .jt-panel .jt-answers tbody tr:hover {
  background: var(--jp-layout-color1, #fff); }
.jt-answers th .jt-faint { font-weight: normal; font-size: 0.85em; }
.jt-answer { white-space: pre-wrap; user-select: text; }
.jt-answer[data-folded="true"] { display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 6; overflow: hidden; }
.jt-faint { color: var(--jp-ui-font-color2, #666); }
.jt-left > :not(.jt-grave) { color: var(--jp-ui-font-color2, #666); }
.jt-panel .jt-link { background: none; border: 0; padding: 0; height: auto;
  color: var(--jp-content-link-color, #1976d2); }
.jt-panel .jt-link:hover:enabled { background: none; text-decoration: underline; }
@container (max-width: 640px) {
  .jt-answers thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); }
  .jt-answers, .jt-answers tbody, .jt-answers tbody tr { display: block; }
  .jt-panel .jt-answers { min-width: 0; }
  .jt-panel .jt-answers tbody tr > * { display: block; width: auto; min-width: 0; border: 0;
    padding: 4px 10px; }
  .jt-panel .jt-answers tbody tr + tr { border-top: 1px solid var(--jp-border-color2, #ddd); }
  .jt-panel .jt-answers tbody tr > :first-child { width: auto; }
  .jt-panel .jt-answers tbody th { background: var(--jp-layout-color2, #eee); }
  .jt-answers tbody th::before { content: "Step "; }
  .jt-answers td[data-prompt]::before { content: attr(data-prompt); display: -webkit-box;
    -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden;
    color: var(--jp-ui-font-color2, #666); font-size: 0.85em; }
}
`;
