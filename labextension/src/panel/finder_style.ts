// The looks of the learning rate finder.

export const FINDER_STYLE = `
.jt-finder { padding-top: 6px; }
.jt-finder .jt-controls { align-items: center; gap: 6px 12px; }
.jt-finder .jt-number { width: 64px; }
.jt-finder label { display: flex; gap: 6px; align-items: center; }
.jt-sweep { width: 100%; min-height: 260px; margin-top: 6px; }
.jt-progress { display: flex; gap: 10px; align-items: center; margin: 6px 0; }
.jt-progress progress { flex: 1 1 160px; max-width: 420px; height: 8px;
  accent-color: var(--jp-brand-color1, #1976d2); }
.jt-progress span { font-variant-numeric: tabular-nums; }
.jt-panel button.jt-use:enabled { background: var(--jp-brand-color1, #1976d2);
  border-color: var(--jp-brand-color1, #1976d2); color: var(--jp-ui-inverse-font-color1, #fff); }
.jt-use-row { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; margin: 6px 0; }
.jt-use-row .jt-why { flex: 0 1 auto; margin: 0; }
`;
