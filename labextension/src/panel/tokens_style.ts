// The looks of tokens. Mixed in OKLab, where equal steps are equal to the eye; the two ends differ
// in lightness, so that no colour has to be told from another, and text is readable on both.

export const TOKENS_STYLE = `
.jt-panel { --jt-hard: oklch(0.71 0.17 55); }
[data-jp-theme-light="false"] .jt-panel { --jt-hard: oklch(0.49 0.15 45); }
.jt-batch { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; margin: 6px 0; }
.jt-batch label { display: flex; gap: 4px; align-items: center; }
.jt-batch [aria-pressed="true"] { border-color: var(--jp-brand-color1, #1976d2);
  box-shadow: inset 0 0 0 1px var(--jp-brand-color1, #1976d2); }
.jt-legend { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: center; font-size: 0.85em;
  color: var(--jp-ui-font-color2, #666); margin-left: auto; }
.jt-legend .jt-token { padding: 0 4px; }
.jt-scale { display: flex; }
.jt-scale .jt-token { min-width: 24px; text-align: center; border-radius: 0; }
.jt-sequences { max-height: 440px; overflow-y: auto; border-top: 1px solid
  var(--jp-border-color2, #ddd); }
.jt-sequence { padding: 6px 0; border-bottom: 1px solid var(--jp-border-color2, #ddd); }
.jt-sequence > div:first-child { color: var(--jp-ui-font-color2, #666); font-size: 0.85em; }
.jt-text { font-family: var(--jp-code-font-family, monospace); line-height: 1.75; margin-top: 2px;
  white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
.jt-token { --jt-t: 0; border-radius: 2px; unicode-bidi: isolate; padding: 1px 0;
  color: var(--jp-ui-font-color1, #222); background: color-mix(in oklab,
  var(--jt-hard) calc(var(--jt-t) * 100%), var(--jp-layout-color1, #fff)); }
.jt-token[data-kind~="idle"] { background: none; color: var(--jp-ui-font-color2, #666); }
.jt-token[data-kind~="special"] { outline: 1px dotted currentColor; outline-offset: -1px; }
.jt-token[data-kind~="bare"] { margin-right: 3px; }
.jt-text .jt-token { cursor: default; }
.jt-text .jt-token:hover { box-shadow: 0 0 0 1px var(--jp-ui-font-color1, #222); }
.jt-unshown { color: var(--jp-error-color1, #c62828); margin: 4px 0; }
.jt-unshown:empty { display: none; }
.jt-about { min-height: 2.8em; margin: 6px 0 0; overflow-wrap: anywhere; user-select: text;
  font-variant-numeric: tabular-nums; }
`;
