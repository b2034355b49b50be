// Bundles the panel into one file that goes into the Python package.

import { build } from "esbuild";

const { metafile } = await build({
  entryPoints: ["src/widget.ts"],
  outfile: "../jupyter_tinker/notebook/static/panel.js",
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "linked",
  metafile: true,
});
for (const [file, { bytes }] of Object.entries(metafile.outputs)) {
  if (file.endsWith(".js")) console.log(`${file}: ${Math.round(bytes / 1024)} KiB`);
}
