// The bar's looks. It appears after a moment, so that what is short does not flicker.

export const PROGRESS_STYLE = `
.jt-progress { display: flex; align-items: center; gap: 8px; overflow: hidden; height: 22px;
  animation: jt-progress-come 0.15s 0.4s both; }
.jt-progress-text { flex: none; max-width: 60%; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; font-variant-numeric: tabular-nums;
  color: var(--jp-ui-font-color2, #666); }
.jt-progress-bar { flex: 1; height: 6px; border-radius: 3px; overflow: hidden;
  background: var(--jp-layout-color3, #ddd); }
.jt-progress-fill { height: 100%; border-radius: 3px; transition: width 0.2s linear;
  background: var(--jp-brand-color1, #1976d2); }
[data-known="false"] > .jt-progress-fill { width: 30%; animation: jt-progress-go 1.4s infinite
  ease-in-out alternate; }
@keyframes jt-progress-come { from { height: 0; opacity: 0; } }
@keyframes jt-progress-go { from { transform: translateX(-60%); } to { transform: translateX(290%); } }
@media (prefers-reduced-motion: reduce) {
  [data-known="false"] > .jt-progress-fill { animation: none; width: 100%; opacity: 0.4; }
}
`;
