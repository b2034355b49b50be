// The extension's sign: a loss that falls.

import { LabIcon } from "@jupyterlab/ui-components";

export const tinkerIcon = new LabIcon({
  name: "jupyter-tinker:icon",
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16" viewBox="0 0 24 24">
  <g class="jp-icon3" fill="none" stroke="#616161" stroke-width="2" stroke-linecap="round"
     stroke-linejoin="round">
    <path class="jp-icon-none" d="M3 3v16.5A1.5 1.5 0 0 0 4.500 21H21"/>
    <path class="jp-icon-none" d="M6.500 5c1.500 0 1.500 7 3.500 7s1.500-2.500 3-2.500 1.500 6.500 3.500 6.500H19.500"/>
  </g>
</svg>`,
});
