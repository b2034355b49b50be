// The extension's sign: a loss that falls.

import { LabIcon } from "@jupyterlab/ui-components";

export const tinkerIcon = new LabIcon({
  name: "jupyter-tinker:icon",
  // JupyterLab colours what has the attribute `stroke`; with `fill` it would fill the curve, too.
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16" viewBox="0 0 24 24">
  <g class="jp-icon3" stroke="#616161" stroke-width="2.2" stroke-linecap="round"
     stroke-linejoin="round" style="fill: none">
    <path d="M3 3v16.500A1.500 1.500 0 0 0 4.500 21H21"/>
    <path d="M6.500 4.500c1.500 0 1.500 8 3.500 8s1.500-3 3-3 1.500 7 3.500 7h4"/>
  </g>
</svg>`,
});
